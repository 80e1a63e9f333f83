"""Quality at equal diversity: the curve of a system over a ladder of temperatures, and two curves compared.

A sharper student has better and less varied answers, and so has any student at a lower temperature. Scores at
one temperature therefore mix a method with its sharpness. Curves of quality over diversity do not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import ArrayLike, NDArray

from amid.metrics.bootstrap import Comparison
from amid.metrics.monotone import Floats, in_order, interpolated

_LEAST_DEFINED = 0.95
"""A share of resamples at least so large must hold a diversity, for a quality there to be given."""

_GRID = 33
"""Diversities, evenly spaced over the shared range, that an area is summed over."""


@dataclass(frozen=True)
class Front:
    """The scores of a system's answers to each prompt, at each temperature of a ladder.

    Args:
        temperatures: [T], rising; at least two. A ladder of top-p values goes here as well.
        quality: [T, N], of each prompt, such as ROUGE-L; the mean over prompts is the curve's quality.
        diversity: [T, N], of each prompt, such as Self-BLEU, high where answers resemble each other.
        sets: the number of prompts of each evaluation set, in the order of the prompts. Sets have equal
            weights in the curve's means, whatever their numbers. By default all prompts are one set.

    Raises:
        ValueError: for shapes that do not fit, temperatures that do not rise, or values that are no numbers.
    """

    temperatures: Sequence[float]
    quality: ArrayLike
    diversity: ArrayLike
    sets: Sequence[int] = ()

    def __post_init__(self) -> None:
        steps = numpy.asarray(self.temperatures, dtype=float)
        if steps.ndim != 1 or len(steps) < 2 or not (numpy.diff(steps) > 0).all():
            raise ValueError(
                f"temperatures must rise, and be two or more, got {list(self.temperatures)}; "
                "give the scores in the order of their temperatures"
            )
        for name in ("quality", "diversity"):
            values = numpy.asarray(getattr(self, name), dtype=float)
            if values.ndim != 2 or values.shape[0] != len(steps) or not values.shape[1]:
                raise ValueError(
                    f"{name} must be [temperatures, prompts], {len(steps)} rows, got shape {values.shape}; "
                    "give a row of scores, one a prompt, for each temperature"
                )
            if not numpy.isfinite(values).all():
                raise ValueError(f"{name} has values that are no finite numbers; leave their prompts out")
            object.__setattr__(self, name, values)
        if numpy.shape(self.quality) != numpy.shape(self.diversity):
            raise ValueError(
                f"quality has {numpy.shape(self.quality)[1]} prompts and diversity "
                f"{numpy.shape(self.diversity)[1]}; score the same prompts"
            )
        object.__setattr__(self, "sets", tuple(self.sets) or (self.prompts,))
        if min(self.sets) < 1 or sum(self.sets) != self.prompts:
            raise ValueError(
                f"sets must count the prompts of each set, {self.prompts} in all, got {self.sets}"
            )

    @property
    def prompts(self) -> int:
        """How many prompts were answered."""
        return int(numpy.shape(self.quality)[1])

    def curve(self, weights: Floats | None = None) -> tuple[Floats, Floats]:
        """Returns diversity and quality at the knots, [B, T] each, at rising diversity.

        Temperatures whose mean diversities are in the wrong order, by chance of the prompts, share their mean
        diversity and quality (isotonic regression).

        Args:
            weights: [B, N], of each prompt in each resample, summing to 1; None for the prompts as they are.
        """
        if weights is None:
            weights = _even(self.sets)[None]
        diversity = weights @ numpy.asarray(self.diversity).T[:, ::-1]
        quality = weights @ numpy.asarray(self.quality).T[:, ::-1]
        return in_order(diversity, quality)

    @property
    def reach(self) -> tuple[float, float]:
        """The lowest and the highest diversity of the curve."""
        diversity, _ = self.curve()
        return float(diversity[0, 0]), float(diversity[0, -1])


System = Front | Sequence[Front]
"""The front of one model, or the fronts of several training seeds of one setting, on the same prompts."""


def over_sets(fronts: Sequence[Front]) -> Front:
    """Returns the front of a model over several evaluation sets, which have equal weights.

    Raises:
        ValueError: for no fronts, or ladders that differ.
    """
    ladders = {tuple(front.temperatures) for front in fronts}
    if len(ladders) != 1:
        raise ValueError(
            f"fronts of several sets need one ladder of temperatures, got {sorted(ladders)}; "
            "score each set at the same temperatures"
        )
    quality, diversity = (
        numpy.concatenate([getattr(front, name) for front in fronts], axis=1)
        for name in ("quality", "diversity")
    )
    return Front(ladders.pop(), quality, diversity, [n for front in fronts for n in front.sets])


def quality_at(system: System, diversities: ArrayLike) -> Floats:
    """Returns the quality of a system at given diversities, [K]; NaN outside of the range of its ladder.

    Between two temperatures the curve is a cubic that has no other extreme than the knots have (Fritsch and
    Carlson 1980, "Monotone Piecewise Cubic Interpolation"). Nothing is extrapolated. Of several training
    seeds it is the mean of their qualities, and NaN where one of them does not reach the diversity.
    """
    at = numpy.atleast_1d(numpy.asarray(diversities, dtype=float))[None]
    of_seeds = [interpolated(*front.curve(), at)[0] for front in _fronts(system)]
    return numpy.asarray(numpy.mean(of_seeds, axis=0))


def compare_at(
    first: System, second: System, diversity: float, *, resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """Returns the difference of two systems' quality at one diversity, with its 95% interval.

    The prompts of each set are drawn anew for both systems at once, and both curves are interpolated in each
    resample. The percentile interval of the resamples is widened for few prompts, as Student's t is. With
    several training seeds, the difference is the mean over seeds, and each resample adds an error of this
    mean, by Student's t, from the spread of the seeds. Two seeds give a wide interval: t is 12.7.

    Args:
        first: a front, or the fronts of several training seeds.
        second: another system's, with equal seeds in the same order. A single front, such as the teacher's,
            is compared with each of the other system's fronts.
        diversity: the diversity to compare at.
        resamples: sets of prompts drawn.
        seed: the seed of the draws; the same seed gives the same result.

    Returns:
        The first less the second.

    Raises:
        ValueError: if the two have unlike prompts, fewer than two, or unlike numbers of seeds, or if a ladder
            does not reach the diversity, in all prompts or in more than 5% of the resamples.
    """
    pair = Curves(first, resamples, seed), Curves(second, resamples, seed)
    (found,) = differences_at(*pair, [diversity])
    if found is None:
        raise ValueError(
            f"diversity {diversity:g} is outside of a ladder, or too near to its end: {_ranges(*pair)}; "
            "choose another diversity, or score more temperatures"
        )
    return found


def compare_areas(first: System, second: System, *, resamples: int = 10_000, seed: int = 0) -> Comparison:
    """Returns the mean difference of two systems' quality over the diversities that both ladders reach.

    It is the area between the two curves (by the trapezoidal rule on 33 points), divided by the width of the
    range that they share; that range is taken anew in each resample. Arguments and interval are those of
    `compare_at`.

    Returns:
        The first less the second.

    Raises:
        ValueError: as `compare_at`, and if the ranges of the two do not overlap in enough resamples.
    """
    pair = Curves(first, resamples, seed), Curves(second, resamples, seed)
    found = difference_of_areas(*pair)
    if found is None:
        raise ValueError(
            f"the curves share no diversity, or too little of it: {_ranges(*pair)}; score the first or the "
            "second at further temperatures"
        )
    return found


class Curves:
    """The curves of a system in each resample of the prompts, for many comparisons with other systems.

    Systems with the same numbers of prompts, `resamples` and `seed` have the same resamples.
    """

    def __init__(self, system: System, resamples: int, seed: int = 0, *, trained: bool = True) -> None:
        """Draws the resamples.

        Args:
            system: a front, or the fronts of several training seeds.
            resamples: sets of prompts drawn.
            seed: the seed of the draws.
            trained: False for a model that no training seed varies, such as the teacher.
        """
        if resamples < 2:
            raise ValueError(f"resamples must be at least 2, got {resamples}")
        fronts = _fronts(system)
        self.trained = trained
        self.sets = tuple(fronts[0].sets)
        self.drawn = resamples, seed
        if any(tuple(front.sets) != self.sets for front in fronts):
            raise ValueError("the training seeds of a system have unlike prompts; score the same sets")
        even = _even(self.sets)[None]
        parts = [
            [front.curve(weights) for front in fronts]
            for weights in (even, *_weights(self.sets, resamples, seed))
        ]
        self.knots: list[tuple[Floats, Floats]] = [
            (
                numpy.concatenate([part[place][0] for part in parts]),
                numpy.concatenate([part[place][1] for part in parts]),
            )
            for place in range(len(fronts))
        ]
        """Of each training seed, diversity and quality at the knots, [1 + resamples, T] each; the prompts as
        they are come first."""
        self._last: tuple[tuple[float, ...], Floats] | None = None

    def at(self, diversities: Sequence[float]) -> Floats:
        """Returns the quality at each diversity, [seeds, 1 + resamples, K]; NaN outside of the ladder."""
        if self._last is None or self._last[0] != tuple(diversities):
            shape = len(self.knots[0][0]), len(diversities)
            wanted = numpy.broadcast_to(numpy.asarray(diversities, dtype=float), shape)
            self._last = tuple(diversities), numpy.stack([interpolated(*of, wanted) for of in self.knots])
        return self._last[1]

    def known_at(self, diversities: Sequence[float]) -> NDArray[numpy.bool_]:
        """Returns whether all seeds reach each diversity, [K], also in 95% of the resamples."""
        finite = numpy.asarray(numpy.isfinite(self.at(diversities)).all(axis=0))
        known: NDArray[numpy.bool_] = finite[0] & (finite[1:].mean(axis=0) >= _LEAST_DEFINED)
        return known

    @property
    def reach(self) -> tuple[float, float]:
        """The lowest and the highest diversity that all training seeds reach."""
        ends = [(float(x[0, 0]), float(x[0, -1])) for x, _ in self.knots]
        return max(low for low, _ in ends), min(high for _, high in ends)


@dataclass(frozen=True)
class SeedSpread:
    """How the quality at a diversity varies over training seeds, pooled over settings that vary alike."""

    variance: float
    """The variance over the seeds of one setting."""
    of_prompts: float
    """The part of it that the choice of prompts gives each seed by itself."""
    freedom: int
    """Degrees of freedom: the number of fronts less the number of settings."""


def seed_spreads(systems: Sequence[Curves], diversities: Sequence[float]) -> list[SeedSpread | None]:
    """Returns the spread over training seeds at each diversity; None where no setting has two seeds.

    Args:
        systems: the settings; those with one seed, or not trained, and those that do not reach the diversity
            do not count.
        diversities: the diversities.
    """
    several = [curves.at(diversities) for curves in systems if curves.trained and len(curves.knots) > 1]
    found: list[SeedSpread | None] = []
    for k in range(len(diversities)):
        squares = of_prompts = 0.0
        freedom = 0
        for values in (of[:, :, k] for of in several):
            known = numpy.asarray(numpy.isfinite(values).all(axis=0))
            if known[0] and known.sum() > 2:
                squares += ((values[:, 0] - values[:, 0].mean()) ** 2).sum()
                alone = values[:, 1:] - values[:, 1:].mean(0)
                of_prompts += alone[:, known[1:]].var(axis=1).sum()
                freedom += len(values) - 1
        found.append(SeedSpread(squares / freedom, of_prompts / freedom, freedom) if freedom else None)
    return found


def differences_at(
    first: Curves,
    second: Curves,
    diversities: Sequence[float],
    spreads: Sequence[SeedSpread | None] | None = None,
) -> list[Comparison | None]:
    """Returns `compare_at` for each diversity; None where it is not known.

    Args:
        first: a system.
        second: another one. Without `spreads` it needs the same training seeds in the same order.
        diversities: the diversities.
        spreads: by diversity the spread over training seeds. It takes the place of the spread of the pair's
            own differences between equal seeds.
    """
    if spreads is None:
        _check(first, second)
        between = first.at(diversities) - second.at(diversities)
        return [_of_pairs(between[:, :, k], first) for k in range(len(diversities))]
    _check_prompts(first, second)
    between = first.at(diversities).mean(0) - second.at(diversities).mean(0)
    return [_compared(between[:, k], first, _pooled(of, first, second)) for k, of in enumerate(spreads)]


def difference_of_areas(first: Curves, second: Curves, spread: SeedSpread | None = None) -> Comparison | None:
    """Returns `compare_areas`; None where the ranges of the two do not overlap.

    Args:
        first: a system.
        second: another one. Without `spread` it needs the same training seeds in the same order.
        spread: the spread over training seeds in the middle of the range that both reach (`seed_spreads`).
    """
    share = numpy.linspace(0, 1, _GRID)

    def mean_between(one: Sequence[tuple[Floats, Floats]], other: Sequence[tuple[Floats, Floats]]) -> Floats:
        low = numpy.maximum.reduce([x[:, 0] for x, _ in (*one, *other)])
        high = numpy.minimum.reduce([x[:, -1] for x, _ in (*one, *other)])
        at = low[:, None] + (high - low)[:, None] * share
        at[:, -1] = high  # not beyond it by rounding
        ours, theirs = (numpy.mean([interpolated(*of, at) for of in knots], axis=0) for knots in (one, other))
        return numpy.where(high > low, numpy.trapezoid(ours - theirs, share, axis=1), numpy.nan)

    if spread is None:
        _check(first, second)
        seeds = max(len(first.knots), len(second.knots))
        ones, others = (of.knots * (seeds // len(of.knots)) for of in (first, second))
        pairs = zip(ones, others, strict=True)
        return _of_pairs(numpy.stack([mean_between([one], [other]) for one, other in pairs]), first)
    _check_prompts(first, second)
    return _compared(mean_between(first.knots, second.knots), first, _pooled(spread, first, second))


def _pooled(spread: SeedSpread | None, *systems: Curves) -> SeedSpread | None:
    """Returns the spread of the difference of the means of two systems over their seeds."""
    if spread is None:
        return None
    share = sum(1 / len(of.knots) for of in systems if of.trained)
    return SeedSpread(spread.variance * share, spread.of_prompts * share, spread.freedom)


def _of_pairs(differences: Floats, curves: Curves) -> Comparison | None:
    """Returns the mean of the differences between equal training seeds, [seeds, 1 + resamples]."""
    means, seeds = differences.mean(0), len(differences)
    if seeds == 1:
        return _compared(means, curves, None)
    own = (differences - means)[:, 1:][:, numpy.isfinite(means[1:])]
    of_prompts = own.var(axis=1).mean() / (seeds - 1) if own.size else 0.0
    variance = differences[:, 0].var(ddof=1) / seeds
    return _compared(means, curves, SeedSpread(float(variance), float(of_prompts), seeds - 1))


def _compared(means: Floats, curves: Curves, of_seeds: SeedSpread | None) -> Comparison | None:
    """Returns a difference of means over seeds with its interval; None if too few resamples have one.

    Args:
        means: [1 + resamples], the first with the prompts as they are.
        curves: one of the two systems.
        of_seeds: the spread of `means` over training seeds; None for one seed.
    """
    estimate, drawn = float(means[0]), means[1:]
    known = numpy.isfinite(drawn)
    if not numpy.isfinite(estimate) or known.sum() < max(2, _LEAST_DEFINED * len(drawn)):
        return None
    random = numpy.random.default_rng(curves.drawn[1])
    prompts, centre = sum(curves.sets), drawn[known].mean()
    freedom = prompts - len(curves.sets)
    wider = numpy.sqrt(prompts / random.chisquare(freedom, known.sum()))
    around = (drawn[known] - centre) * wider
    if of_seeds is not None:  # their spread holds what the choice of prompts does to each seed alone
        shared = max(0.0, 1 - of_seeds.of_prompts / max(drawn[known].var(), 1e-300))
        errors = random.standard_t(of_seeds.freedom, known.sum())
        around = numpy.sqrt(shared) * around + numpy.sqrt(of_seeds.variance) * errors
    moved = centre + around
    low, high = numpy.quantile(moved, [0.025, 0.975])
    other = (moved <= 0).mean() if estimate > 0 else (moved >= 0).mean()
    return Comparison(estimate, float(low), float(high), min(1.0, 2 * float(other)), prompts, False)


def _fronts(system: System) -> list[Front]:
    fronts = [system] if isinstance(system, Front) else list(system)
    if not fronts:
        raise ValueError("a system needs at least one front, got none; give one for each training seed")
    return fronts


def _check_prompts(first: Curves, second: Curves) -> None:
    if first.sets != second.sets or min(first.sets) < 2:
        raise ValueError(
            f"two systems are compared on the same prompts, two at least, got {sum(first.sets)} and "
            f"{sum(second.sets)}; score the same set"
        )
    if first.drawn != second.drawn:
        raise ValueError("two systems are compared over the same resamples; draw both with one seed")


def _check(first: Curves, second: Curves) -> None:
    _check_prompts(first, second)
    seeds = len(first.knots), len(second.knots)
    if seeds[0] != seeds[1] and 1 not in seeds:
        raise ValueError(
            f"two systems are compared over the same training seeds, got {seeds[0]} and {seeds[1]} fronts; "
            "give the fronts of the seeds that both have"
        )


def _ranges(first: Curves, second: Curves) -> str:
    words = zip(("first", "second"), (first.reach, second.reach), strict=True)
    return " and ".join(f"the {which} reaches {low:.1f} to {high:.1f}" for which, (low, high) in words)


def _even(sets: Sequence[int]) -> Floats:
    """Returns the weight of each prompt, [N], summing to 1, where sets have equal weights."""
    return numpy.repeat([1 / (n * len(sets)) for n in sets], sets)


def _weights(sets: Sequence[int], resamples: int, seed: int) -> Iterator[Floats]:
    """Yields the weights of the prompts in each resample, [B, N], a thousand resamples at a time."""
    random = numpy.random.default_rng(seed)
    for begun in range(0, resamples, 1000):
        many = min(1000, resamples - begun)
        starts = numpy.arange(many)[:, None]
        counts = [
            numpy.bincount((random.integers(n, size=(many, n)) + n * starts).ravel(), minlength=many * n)
            for n in sets
        ]
        yield numpy.concatenate(
            [of.reshape(many, n) / (n * len(sets)) for of, n in zip(counts, sets, strict=True)], axis=1
        )
