import itertools
import math
import runpy
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amid.metrics import Front, compare_areas, compare_at, over_sets, quality_at
from amid.metrics.fronts import Curves, difference_of_areas, differences_at, seed_spreads
from amid.metrics.monotone import in_order

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "fronts.py"
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


def test_a_difference_outside_of_a_ladder_is_refused_and_unknown():
    low, high = front([3, 2], [20, 10]), front([9, 8], [50, 40])
    ranges = r"the first reaches 10\.0 to 20\.0 and the second reaches 40\.0 to 50\.0"
    with pytest.raises(
        ValueError, match=f"the curves share no diversity, or too little of it: {ranges}; score"
    ):
        compare_areas(low, high, resamples=20)
    with pytest.raises(ValueError, match=f"diversity 15 is outside of a ladder.*: {ranges}; choose"):
        compare_at(low, high, 15.0, resamples=20)
    one, other = Curves(low, 20), Curves(high, 20)
    assert differences_at(one, other, [15.0, 45.0]) == [None, None]
    assert difference_of_areas(one, other) is None


def test_the_interval_is_of_the_prompts():
    one, other = simulated(2, better=3.0), simulated(3)
    found = compare_areas(one, other, resamples=1000)
    assert found.significant
    assert found.low < 3.0 < found.high
    assert found.p_value < 0.01
    assert compare_areas(one, other, resamples=1000) == found
    assert compare_areas(other, one, resamples=1000).difference == pytest.approx(-found.difference)


def plain_pchip(x, y, at):
    """Fritsch and Butland's cubic at one point, written out as in a textbook."""
    h = [b - a for a, b in itertools.pairwise(x)]
    d = [(b - a) / width for (a, b), width in zip(itertools.pairwise(y), h, strict=True)]

    def end(h0, h1, d0, d1):
        m = ((2 * h0 + h1) * d0 - h0 * d1) / (h0 + h1)
        if m * d0 <= 0:
            return 0.0
        return 3 * d0 if d0 * d1 <= 0 and abs(m) > 3 * abs(d0) else m

    slopes = [end(h[0], h[1], d[0], d[1])]
    for i in range(1, len(d)):
        w1, w2 = 2 * h[i] + h[i - 1], h[i] + 2 * h[i - 1]
        slopes.append((w1 + w2) / (w1 / d[i - 1] + w2 / d[i]) if d[i - 1] * d[i] > 0 else 0.0)
    slopes.append(end(h[-1], h[-2], d[-1], d[-2]))
    i = max(k for k in range(len(d)) if at >= x[k])
    t = (at - x[i]) / h[i]
    a, b = y[i], y[i + 1]
    return (
        a * (1 - t) ** 2 * (1 + 2 * t)
        + b * t**2 * (3 - 2 * t)
        + h[i] * (slopes[i] * t * (1 - t) ** 2 - slopes[i + 1] * t**2 * (1 - t))
    )


def calm(system):
    """The system with less noise in its diversities, so that no resample has them in the wrong order."""
    middle = numpy.mean(system.diversity, axis=1, keepdims=True)
    return Front(system.temperatures, system.quality, middle + (system.diversity - middle) / 8)


def test_an_interval_is_that_of_a_plain_loop_over_resamples():
    """One set, one training seed: the mean curves of each draw, interpolated one by one."""
    one, other = calm(simulated(4, better=1.0, prompts=30)), calm(simulated(5, prompts=30))
    found = compare_at(one, other, 30.0, resamples=200, seed=7)
    drawn_prompts = numpy.random.default_rng(7).integers(30, size=(200, 30))
    counts = [numpy.bincount(drawn, minlength=30) for drawn in drawn_prompts]

    def quality(system, weights):
        x = [float(weights @ of) for of in reversed(numpy.asarray(system.diversity))]
        y = [float(weights @ of) for of in reversed(numpy.asarray(system.quality))]
        assert x == sorted(x)
        return plain_pchip(x, y, 30.0)

    even = numpy.full(30, 1 / 30)
    drawn = numpy.array([quality(one, w / 30) - quality(other, w / 30) for w in counts])
    wider = numpy.sqrt(30 / numpy.random.default_rng(7).chisquare(29, 200))
    moved = drawn.mean() + (drawn - drawn.mean()) * wider
    assert found.difference == pytest.approx(quality(one, even) - quality(other, even))
    assert [found.low, found.high] == pytest.approx(numpy.quantile(moved, [0.025, 0.975]).tolist())
    assert found.p_value == pytest.approx(min(1, 2 * (moved <= 0).mean()))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 50)), min_size=2, max_size=7))
def test_points_in_order_are_those_of_pooling_neighbours(points):
    x, y = (numpy.array([values], float) for values in zip(*points, strict=True))
    blocks = []  # sums of x and y, and how many
    for a, b in points:
        blocks.append([a, b, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][2] >= blocks[-1][0] / blocks[-1][2]:
            last = blocks.pop()
            blocks[-1] = [p + q for p, q in zip(blocks[-1], last, strict=True)]
    pooled = [(a / n, b / n) for a, b, n in blocks for _ in range(n)]
    found = in_order(x, y)
    assert list(zip(*(of[0] for of in found), strict=True)) == [pytest.approx(point) for point in pooled]
    assert len(set(found[0][0])) == len(blocks)  # equal to the last digit within a block


class TestSets:
    def test_sets_have_equal_weights(self):
        few = Front((1, 2), [[10.0], [6.0]], [[40.0], [20.0]])
        many = Front((1, 2), [[30.0] * 3, [20.0] * 3], [[60.0] * 3, [40.0] * 3])
        both = over_sets([few, many])
        assert both.sets == (1, 3)
        x, y = both.curve()
        assert x[0] == pytest.approx([30, 50])
        assert y[0] == pytest.approx([13, 20])
        assert both.reach == pytest.approx((30, 50))

    def test_each_set_is_drawn_by_itself(self):
        """Prompts that are alike within each set: no draw changes anything."""
        quality = [[9.0] * 4 + [5.0] * 6, [7.0] * 4 + [2.0] * 6]
        diversity = [[40.0] * 4 + [30.0] * 6, [20.0] * 4 + [10.0] * 6]
        better = [[value + 1 for value in row] for row in quality]
        found = compare_at(
            Front((1, 2), better, diversity, (4, 6)), Front((1, 2), quality, diversity, (4, 6)), 25.0
        )
        assert (found.low, found.high) == pytest.approx((1, 1))

    def test_unlike_ladders_are_no_front_of_several_sets(self):
        with pytest.raises(ValueError, match="need one ladder of temperatures"):
            over_sets([front([2, 1], [2, 1], (0.5, 1)), front([2, 1], [2, 1], (0.4, 1))])


class TestSeeds:
    def seeds(self, qualities):
        return [front([q + 4, q], [40, 20]) for q in qualities]

    def test_the_difference_is_the_mean_over_seeds(self):
        ours, theirs = self.seeds([11, 12, 16]), self.seeds([10, 11, 12])
        found = compare_at(ours, theirs, 30.0)
        assert found.difference == pytest.approx(2)
        assert quality_at(ours, [30, 50]) == pytest.approx([15, math.nan], nan_ok=True)

    def test_the_spread_of_seeds_gives_the_interval_of_students_t(self):
        """All prompts alike: what is left is the spread of 1, 1 and 4 over three seeds."""
        found = compare_at(self.seeds([11, 12, 16]), self.seeds([10, 11, 12]), 30.0, resamples=50_000)
        half = 4.303 * math.sqrt(3) / math.sqrt(3)
        assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), abs=0.2)
        assert found.p_value == pytest.approx(0.184, abs=0.01)  # t = 2 with two degrees of freedom

    def test_one_front_is_compared_with_every_seed(self):
        (teacher,) = self.seeds([20])
        ours = self.seeds([11, 13])
        assert compare_at(ours, teacher, 30.0).difference == pytest.approx(-8)
        assert compare_areas(teacher, ours).difference == pytest.approx(8)

    def test_the_spread_of_seeds_is_pooled_over_settings(self):
        """Variances 2, 2 and 8 with 1, 2 and 1 degrees of freedom; the teacher and one seed do not count."""
        settings = [Curves(self.seeds(of), 50_000) for of in ([11, 13], [10, 10, 10 + 6**0.5], [20, 24], [9])]
        teacher = Curves(self.seeds([10, 90]), 50_000, trained=False)
        (spread, outside) = seed_spreads([*settings, teacher], [30.0, 50.0])
        assert outside is None
        assert spread.freedom == 4
        assert spread.variance == pytest.approx((2 * 1 + 2 * 2 + 8 * 1) / 4)
        assert spread.of_prompts == pytest.approx(0)
        for other, share in ((settings[3], 1 / 2 + 1), (teacher, 1 / 2)):
            (found,) = differences_at(settings[0], other, [30.0], [spread])
            half = 2.776 * math.sqrt(3.5 * share)
            assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)
            area = difference_of_areas(settings[0], other, spread)
            assert (area.high - area.low) / 2 == pytest.approx(half, rel=0.05)
            assert area.difference == pytest.approx(found.difference)

    @pytest.mark.parametrize(
        ("first", "second", "message"),
        [
            ([1, 2, 3], [1, 2], "got 3 and 2 fronts; give the fronts of the seeds that both have"),
            ([], [1], "needs at least one front"),
        ],
    )
    def test_other_numbers_of_seeds_are_refused(self, first, second, message):
        with pytest.raises(ValueError, match=message):
            compare_at(self.seeds(first), self.seeds(second), 30.0)


class TestCoverage:
    """How many intervals hold the true difference, of the systems that benchmarks/fronts.py simulates."""

    covered = staticmethod(runpy.run_path(str(BENCHMARK))["covered"])

    def test_a_few_systems(self):
        for seeds, of_a_seed in ((1, 0.0), (3, 2.0)):
            shares = self.covered(40, seeds, of_a_seed, 50, resamples=200)
            assert min(shares) >= 0.88, (seeds, shares)  # 44 of 50; 47.5 expected

    @pytest.mark.slow
    @pytest.mark.parametrize(("prompts", "seeds", "of_a_seed"), [(60, 1, 0.0), (256, 1, 0.0), (60, 3, 2.0)])
    def test_many_systems(self, prompts, seeds, of_a_seed):
        shares = self.covered(prompts, seeds, of_a_seed, 600)
        assert all(0.93 <= share <= 0.975 for share in shares), shares


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((1.0,), [[1]], [[1]]), "temperatures must rise, and be two or more"),
        (((1.0, 0.5), [[1], [2]], [[1], [2]]), "temperatures must rise"),
        (((0.5, 1.0), [[1]], [[1], [2]]), "quality must be .temperatures, prompts., 2 rows"),
        (((0.5, 1.0), [[1], [math.nan]], [[1], [2]]), "quality has values that are no finite numbers"),
        (((0.5, 1.0), [[1], [2]], [[1, 2], [2, 3]]), "quality has 1 prompts and diversity 2"),
        (((0.5, 1.0), [[1], [2]], [[1], [2]], (1, 1)), "sets must count the prompts of each set, 1 in all"),
    ],
)
def test_what_is_no_front_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Front(*arguments)


def test_systems_with_other_prompts_are_not_compared():
    with pytest.raises(ValueError, match="got 60 and 50; score the same set"):
        compare_areas(simulated(0), simulated(0, prompts=50))
