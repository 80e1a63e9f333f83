import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amid.metrics import Front, compare_areas, compare_at, quality_at

LADDER = (0.4, 0.55, 0.7, 0.85, 1.0, 1.2)


def front(quality, diversity, temperatures=None):
    steps = range(1, len(quality) + 1) if temperatures is None else temperatures
    return Front(tuple(steps), [[q] * 2 for q in quality], [[d] * 2 for d in diversity])


def simulated(seed, scale=1.0, better=0.0, prompts=60):
    """A system whose curve is known: at temperature t it is what another one is at `scale` times t."""
    draw = numpy.random.default_rng(seed)
    hard = numpy.random.default_rng(seed // 2).normal(size=prompts)  # of two systems of a pair the same
    t = scale * numpy.array(LADDER)[:, None]
    diversity = 70 * numpy.exp(-1.1 * t) + 4 * hard + 6 * draw.normal(size=(6, prompts))
    quality = 20 - 24 * (t - 0.6) ** 2 + better + 8 * hard + 5 * draw.normal(size=(6, prompts))
    return Front(LADDER, quality, diversity)


@pytest.mark.parametrize(
    ("diversity", "quality", "at", "expected"),
    [
        (
            [5, 9, 16, 28, 33],
            [8.9, 10.2, 11.4, 11.6, 11.1],
            [5, 6.5, 9, 12, 20, 27.5, 30, 33],
            # scipy.interpolate.PchipInterpolator
            [
                8.9,
                9.45328367455,
                10.2,
                10.874489376199,
                11.51006152155,
                11.599640990395,
                11.488470588235,
                11.1,
            ],
        ),
        (
            [1, 2, 4],
            [3, 1, 0.5],
            [1, 1.25, 1.9, 3, 4],
            [3, 2.347022804054, 1.072155405405, 0.628378378378, 0.5],
        ),
        ([10, 30], [5, 9], [10, 15, 30], [5, 6, 9]),
    ],
)
def test_the_curve_is_the_monotone_cubic_through_the_knots(diversity, quality, at, expected):
    found = quality_at(front(quality[::-1], diversity[::-1]), at)
    assert found == pytest.approx(expected, abs=1e-9)


def test_nothing_is_extrapolated():
    found = quality_at(front([9, 5], [30, 10]), [9.99, 30.01, math.nan])
    assert numpy.isnan(found).all()


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=2, max_size=6))
def test_between_two_knots_the_curve_stays_between_them(points):
    diversity, quality = zip(*sorted(points, reverse=True), strict=True)
    made = front(quality, diversity)
    x, y = (knots[0] for knots in made.curve())
    for low, high, first, second in zip(x, x[1:], y, y[1:], strict=False):
        found = quality_at(made, numpy.linspace(low, high, 9))
        least, most = min(first, second), max(first, second)
        if high > low:
            assert numpy.all((found >= least - 1e-6) & (found <= most + 1e-6))


def test_temperatures_in_the_wrong_order_of_diversity_share_their_means():
    made = front([9, 7, 5, 1], [40, 20, 30, 10])
    x, y = made.curve()
    assert x[0].tolist() == [10, 25, 25, 40]
    assert y[0].tolist() == [1, 6, 6, 9]
    assert quality_at(made, [25]) == pytest.approx(6)


def test_two_temperatures_of_one_system_are_equal_and_a_better_one_is_better():
    def exact(scale, better):
        t = scale * numpy.array(LADDER)
        return front(20 - 24 * (t - 0.6) ** 2 + better, 70 * numpy.exp(-1.1 * t), LADDER)

    one = exact(1.0, 0.0)
    for other, expected in ((exact(0.85, 0.0), 0.0), (exact(0.85, 1.5), 1.5)):
        assert compare_areas(other, one, resamples=50).difference == pytest.approx(expected, abs=0.1)
        assert compare_at(other, one, 30.0, resamples=50).difference == pytest.approx(expected, abs=0.1)


def test_a_difference_outside_of_a_ladder_is_not_known():
    low, high = front([3, 2], [20, 10]), front([9, 8], [50, 40])
    assert compare_areas(low, high, resamples=20) is None
    assert compare_at(low, high, 15.0, resamples=20) is None


def test_the_interval_is_of_the_prompts():
    one, other = simulated(2, better=3.0), simulated(3)
    found = compare_areas(one, other, resamples=1000)
    assert found.significant
    assert found.low < 3.0 < found.high
    assert found.p_value < 0.01
    assert compare_areas(one, other, resamples=1000) == found
    assert compare_areas(other, one, resamples=1000).difference == pytest.approx(-found.difference)


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "better"), [(0.85, 0.0), (1.0, 1.0), (1.0, 0.0)])
def test_ninety_five_of_a_hundred_intervals_hold_the_true_difference(scale, better):
    found = [
        compare_areas(simulated(2 * i, scale, better), simulated(2 * i + 1), resamples=500)
        for i in range(400)
    ]
    covered = sum(one.low <= better <= one.high for one in found) / len(found)
    assert 0.92 <= covered <= 0.98, covered


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((1.0,), [[1]], [[1]]), "temperatures must rise, and be two or more"),
        (((1.0, 0.5), [[1], [2]], [[1], [2]]), "temperatures must rise"),
        (((0.5, 1.0), [[1]], [[1], [2]]), "quality must be .temperatures, prompts., 2 rows"),
        (((0.5, 1.0), [[1], [math.nan]], [[1], [2]]), "quality has values that are no finite numbers"),
        (((0.5, 1.0), [[1], [2]], [[1, 2], [2, 3]]), "quality has 1 prompts and diversity 2"),
    ],
)
def test_what_is_no_front_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Front(*arguments)


def test_systems_with_other_prompts_are_not_compared():
    with pytest.raises(ValueError, match="got 60 and 50; score the same set"):
        compare_areas(simulated(0), simulated(0, prompts=50))
