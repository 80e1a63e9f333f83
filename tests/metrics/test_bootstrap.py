from itertools import product

import numpy
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from amid.metrics import (
    FEW,
    bleu,
    chrf,
    how_tested,
    paired_bootstrap,
    paired_bootstrap_of_sets,
    paired_bootstraps,
)

scores = st.lists(st.floats(0, 100), min_size=2, max_size=30)


@given(scores)
def test_a_system_does_not_differ_from_itself(values):
    found = paired_bootstrap(values, values, resamples=100)
    assert (found.difference, found.low, found.high, found.significant) == (0, 0, 0, False)
    assert found.p_value == 1


@given(st.lists(st.floats(0, 100), min_size=6, max_size=60), st.floats(0.1, 50))
def test_a_constant_difference_is_significant(values, more):
    found = paired_bootstrap([value + more for value in values], values, resamples=100)
    assert found.difference == pytest.approx(more, abs=1e-9)
    assert found.low == pytest.approx(more, abs=1e-9)
    assert found.significant
    ways = 2 ** len(values) if len(values) <= 13 else 101
    assert found.p_value == pytest.approx(2 / ways if len(values) < FEW else 0)


@pytest.mark.parametrize("seed", range(5))
def test_draws_with_equal_sums_are_ties_however_the_means_round(seed):
    """Scores of three answers to a prompt, exact match: the sums of thirds are counted in whole numbers."""
    random = numpy.random.default_rng(seed)
    thirds = random.integers(0, 4, size=(2, 60))
    found = paired_bootstrap(*(100 * thirds / 3), resamples=2000, seed=7)
    drawn = numpy.random.default_rng(7).integers(60, size=(2000, 60))
    sums = (thirds[0] - thirds[1])[drawn].sum(1)
    against = sums <= 0 if thirds[0].sum() > thirds[1].sum() else sums >= 0
    assert found.p_value == pytest.approx(min(1, 2 * against.mean()))
    low, high = numpy.quantile(sums, [0.025, 0.975]) / 1.8
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.significant == (low > 0 or high < 0)


def test_the_two_orders_mirror_each_other():
    random = numpy.random.default_rng(1)
    first, second = random.normal(1, 3, 50), random.normal(0, 3, 50)
    one, other = paired_bootstrap(first, second), paired_bootstrap(second, first)
    assert (one.low, one.high, one.difference) == pytest.approx((-other.high, -other.low, -other.difference))
    assert one.p_value == other.p_value


def test_the_interval_is_that_of_the_mean():
    """Of many prompts, the normal interval of a mean."""
    random = numpy.random.default_rng(2)
    first, second = random.normal(1, 10, 5000), random.normal(0, 10, 5000)
    found = paired_bootstrap(first, second)
    error = numpy.std(first - second, ddof=1) / numpy.sqrt(5000)
    assert found.low == pytest.approx(found.difference - 1.96 * error, abs=0.05 * error)
    assert found.high == pytest.approx(found.difference + 1.96 * error, abs=0.05 * error)


def normal(random, n):
    return random.normal(size=(2, n))


def exact_match(random, n):
    return 100.0 * (random.random((2, n)) < 0.3)


def skewed(random, n):
    return random.exponential(size=(2, n)) ** 2


@pytest.mark.parametrize("draw", [normal, exact_match, skewed])
@pytest.mark.parametrize("n", [2, 5, 6, 10, 20, 30, 100])
def test_one_in_twenty_of_equal_systems_is_called_different(n, draw):
    random = numpy.random.default_rng(n)
    found = [paired_bootstrap(*draw(random, n), resamples=1000) for _ in range(600)]
    assert all(0 < one.p_value <= 1 for one in found if one.exact)
    share = sum(one.significant for one in found) / len(found)
    assert share <= 0.075, "5%, and 2.8 standard errors of a share of 600"
    if n >= 20 and draw is normal:
        assert share > 0.025, "the test finds what it may"


@pytest.mark.parametrize("metric", [bleu, chrf])
@pytest.mark.parametrize("n", [2, 5, 10])
def test_scores_of_few_answers_as_a_set_are_called_different_as_seldom(n, metric):
    random = numpy.random.default_rng(n)
    words = numpy.array([f"w{i}" for i in range(30)])

    def answer(reference):
        kept = random.random(12) < random.beta(4, 2)
        return " ".join(numpy.where(kept, reference, random.choice(words, 12)))

    called = 0
    for _ in range(100):
        texts = random.choice(words, (n, 12))
        references = [[" ".join(text)] for text in texts]
        first, second = (metric([answer(text) for text in texts], references) for _ in range(2))
        called += paired_bootstrap_of_sets(first.resampled, second.resampled, n).significant
    assert called <= 11, "5 of 100, and 2.8 standard errors"


def p_by_all_flips(differences):
    """Of the test by sign flips, as it is defined."""
    flipped = [abs(numpy.dot(signs, differences)) for signs in product([1, -1], repeat=len(differences))]
    return numpy.mean(numpy.array(flipped) >= abs(sum(differences)) - 1e-9)


@given(st.lists(st.integers(-20, 20), min_size=2, max_size=9))
@example([1] * 6)  # the interval is one number
def test_few_prompts_are_tested_by_all_flips_of_signs(differences):
    found = paired_bootstrap(differences, [0] * len(differences))
    assert (found.exact, found.prompts) == (True, len(differences))
    assert found.p_value == pytest.approx(p_by_all_flips(differences))
    assert found.significant == (found.p_value <= 0.05)
    assert found.low <= found.difference <= found.high
    for end, inwards in ((found.low, 1), (found.high, -1)):
        if any(differences) and numpy.isfinite(end):  # it divides what the test rejects from what it does not
            assert p_by_all_flips([d - end + 0.01 * inwards for d in differences]) <= 0.05
            within = p_by_all_flips([d - end - 0.01 * inwards for d in differences])
            assert within > 0.05 or found.low == found.high


def test_of_two_to_five_prompts_nothing_is_told_and_of_six_something():
    for n in range(2, 6):
        found = paired_bootstrap([9.0] * n, [1.0] * n)
        assert (found.low, found.high, found.interval) == (-numpy.inf, numpy.inf, "-∞ to +∞")
        assert (found.difference, found.p_value, found.significant) == (8, 2 / 2**n, False)
    found = paired_bootstrap([9.0] * 6, [1.0] * 6)
    assert (found.low, found.high, found.p_value, found.significant) == (8, 8, 2 / 64, True)


def test_few_prompts_with_unlike_scores_are_few():
    """Four of a hundred: by resampling p would be 0.04."""
    found = paired_bootstrap([100.0] * 4 + [0.0] * 96, [0.0] * 100)
    assert (found.exact, found.significant) == (True, False)
    assert found.p_value == pytest.approx(2 / 16, abs=0.02)


def test_scores_that_differ_by_rounding_are_equal():
    found = paired_bootstrap([0.1 + 0.2 + 0.3] * 60, [0.3 + 0.2 + 0.1] * 60)
    assert (found.low, found.high, found.p_value, found.significant) == (0, 0, 1, False)


def test_how_it_was_tested_names_the_prompts():
    of = {n: paired_bootstrap(range(n), [0] * n) for n in (3, 40, 50)}
    assert how_tested([of[50]]) == "by paired bootstrap over the prompts"
    assert how_tested([of[40]]) == "by swapping the scores of the 40 prompts (exact; the bootstrap needs 50)"
    assert "3 prompts (exact; the bootstrap needs 50; 3 can show none at 5%, 6 are needed" in how_tested(
        [of[3]]
    )
    alike = paired_bootstrap([0] * 50, [0] * 50)
    assert how_tested([alike]) == "by swapping scores, where fewer than 10 prompts have unlike ones"
    assert how_tested([of[50], alike]).startswith("by paired bootstrap over the prompts, and by swapping")


@pytest.mark.parametrize(
    ("first", "second", "resamples", "message"),
    [
        ([1.0], [1.0], 10, "at least 2"),
        ([1.0, 2.0], [1.0], 10, r"got \[2, 1\]"),
        ([1.0, 2.0], [1.0, float("nan")], 10, "finite"),
        ([1.0, 2.0], [1.0, 2.0], 0, "resamples must be at least 1"),
    ],
)
def test_what_is_refused(first, second, resamples, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(first, second, resamples=resamples)


def test_many_pairs_are_compared_as_each_alone():
    """To the last bit, however many systems share the draws, and in both orders."""
    random = numpy.random.default_rng(4)
    systems = random.normal([[20], [20.1], [22], [22]], 5, (4, 70))
    systems[3] = systems[2]
    pairs = [(i, j) for i in range(4) for j in range(4)]
    found = paired_bootstraps(systems, pairs, seed=5)
    assert found == [paired_bootstrap(systems[i], systems[j], seed=5) for i, j in pairs]
    same = found[pairs.index((2, 3))]
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    with pytest.raises(ValueError, match=r"got \[\]"):
        paired_bootstraps([], [])


def mean_of(values):
    return lambda draws: draws @ numpy.asarray(values) / draws.sum(1)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=2, max_size=60))
def test_a_mean_as_a_score_of_sets_is_compared_as_a_mean(pairs):
    first, second = zip(*pairs, strict=True)
    one = paired_bootstrap(first, second, resamples=50)
    other = paired_bootstrap_of_sets(mean_of(first), mean_of(second), len(pairs), resamples=50)
    assert other.difference == pytest.approx(one.difference, abs=1e-9)
    if one.exact == other.exact:
        assert (other.low, other.high) == pytest.approx((one.low, one.high), abs=1e-6)
        assert other.p_value == one.p_value


def test_a_score_of_sets_that_is_no_mean():
    """Of 64 values drawn as often, the largest is above 6 in nearly all draws that hold one of two."""
    values = numpy.array([8.0, 8.0, *[4.0] * 62])
    found = paired_bootstrap_of_sets(
        lambda draws: numpy.where(draws > 0, values, 0).max(1), lambda draws: numpy.full(len(draws), 6.0), 64
    )
    assert (found.difference, found.low, found.high, found.significant) == (2, -2, 2, False)
    assert found.p_value == pytest.approx(2 * (62 / 64) ** 64, abs=0.03)


def test_what_is_refused_of_sets():
    with pytest.raises(ValueError, match="prompts must be at least 2, got 1"):
        paired_bootstrap_of_sets(mean_of([1]), mean_of([2]), 1)
    with pytest.raises(ValueError, match="resamples must be at least 1"):
        paired_bootstrap_of_sets(mean_of([1, 2]), mean_of([2, 1]), 2, resamples=0)
    with pytest.raises(ValueError, match="finite scores of all draws"):
        paired_bootstrap_of_sets(lambda draws: numpy.log(draws.min(1) - 1.0), mean_of([2, 1]), 2)
