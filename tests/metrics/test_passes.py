from itertools import combinations
from math import comb

import pytest

from amid.metrics import pass_at_k


@pytest.mark.parametrize(
    ("right", "answers", "k", "value"),
    [
        (0, 5, 3, 0.0),
        (5, 5, 1, 100.0),
        (1, 4, 1, 25.0),
        (1, 4, 2, 50.0),
        (1, 4, 4, 100.0),
        (2, 4, 2, 100 * 5 / 6),
        (3, 10, 5, 100 * (1 - 21 / 252)),
        (1, 2000, 1000, 50.0),  # beyond the range of floats
    ],
)
def test_closed_forms(right, answers, k, value):
    assert pass_at_k(right, answers, k) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("right", range(6))
def test_it_is_the_share_of_the_sets_with_a_right_answer(right):
    answers = [1] * right + [0] * (5 - right)
    for k in range(1, 6):
        sets = list(combinations(answers, k))
        assert pass_at_k(right, 5, k) == pytest.approx(100 * sum(map(any, sets)) / len(sets))


def test_its_mean_over_draws_of_the_answers_is_pass_at_k():
    """With a right answer of chance q, 1 - (1 - q)^k; the plug-in estimate 1 - (1 - c/n)^k is below it."""
    chance, answers, k = 0.3, 6, 4
    drawn = [comb(answers, c) * chance**c * (1 - chance) ** (answers - c) for c in range(answers + 1)]
    mean = sum(share * pass_at_k(c, answers, k) for c, share in enumerate(drawn))
    plugged_in = sum(share * 100 * (1 - (1 - c / answers) ** k) for c, share in enumerate(drawn))
    assert mean == pytest.approx(100 * (1 - (1 - chance) ** k))
    assert plugged_in < mean - 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 4, 5), "k=5 must be from 1 to the 4 answers to a prompt"),
        ((1, 4, 0), "k=0 must be from 1"),
        ((5, 4, 1), "right must be from 0 to answers=4, got 5"),
        ((-1, 4, 1), "right must be from 0"),
    ],
)
def test_outside_of_its_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        pass_at_k(*arguments)
