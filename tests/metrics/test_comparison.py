import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amid.metrics import paired_bootstrap, paired_bootstrap_of_sets, paired_bootstraps

scores = st.lists(st.floats(0, 100), min_size=2, max_size=30)


@given(scores)
def test_a_system_does_not_differ_from_itself(values):
    found = paired_bootstrap(values, values, resamples=100)
    assert (found.difference, found.low, found.high, found.significant) == (0, 0, 0, False)
    assert found.p_value == 1


@given(scores, st.floats(0.1, 50))
def test_a_constant_difference_is_significant(values, more):
    found = paired_bootstrap([value + more for value in values], values, resamples=100)
    assert found.difference == pytest.approx(more, abs=1e-9)
    assert found.low == pytest.approx(more, abs=1e-9)
    assert found.significant
    assert found.p_value == 0


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


def test_one_in_twenty_of_equal_systems_is_called_different():
    random = numpy.random.default_rng(3)
    called = [
        paired_bootstrap(random.normal(size=100), random.normal(size=100), resamples=500).significant
        for _ in range(400)
    ]
    assert 0.02 < sum(called) / len(called) < 0.10


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


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=2, max_size=30))
def test_a_mean_as_a_score_of_sets_is_compared_as_a_mean(pairs):
    first, second = zip(*pairs, strict=True)
    one = paired_bootstrap(first, second, resamples=50)
    other = paired_bootstrap_of_sets(mean_of(first), mean_of(second), len(pairs), resamples=50)
    assert (other.difference, other.low, other.high) == pytest.approx(
        (one.difference, one.low, one.high), abs=1e-9
    )


def test_a_score_of_sets_that_is_no_mean():
    """Of two prompts drawn twice, the largest value of the first system is 8 in three of four draws."""
    values = numpy.array([8.0, 4.0])
    found = paired_bootstrap_of_sets(
        lambda draws: numpy.where(draws > 0, values, 0).max(1), lambda draws: numpy.full(len(draws), 6.0), 2
    )
    assert (found.difference, found.low, found.high, found.significant) == (2, -2, 2, False)
    assert found.p_value == pytest.approx(2 * 0.25, abs=0.03)


def test_what_is_refused_of_sets():
    with pytest.raises(ValueError, match="prompts must be at least 2, got 1"):
        paired_bootstrap_of_sets(mean_of([1]), mean_of([2]), 1)
    with pytest.raises(ValueError, match="resamples must be at least 1"):
        paired_bootstrap_of_sets(mean_of([1, 2]), mean_of([2, 1]), 2, resamples=0)
