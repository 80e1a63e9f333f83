"""Quality at equal diversity: the curve of a system over a ladder of temperatures, and two curves compared.

A sharper student has better and less varied answers, and so has any student at a lower temperature. Scores at
one temperature therefore mix a method with its sharpness. Curves of quality over diversity do not.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import ArrayLike, NDArray

from amid.metrics.bootstrap import Comparison

Floats = NDArray[numpy.float64]

_LEAST_DEFINED = 0.95
"""A share of resamples at least so large must hold a diversity, for a quality there to be given."""

_GRID = 65
"""Diversities, evenly spaced over the shared range, that an area is summed over."""


@dataclass(frozen=True)
class Front:
    """The scores of a system's answers to each prompt, at each temperature of a ladder.

    Args:
        temperatures: [T], rising; at least two.
        quality: [T, N], of each prompt, such as ROUGE-L; the mean over prompts is the curve's quality.
        diversity: [T, N], of each prompt, such as Self-BLEU, high where answers resemble each other.

    Raises:
        ValueError: for shapes that do not fit, temperatures that do not rise, or values that are no numbers.
    """

    temperatures: Sequence[float]
    quality: ArrayLike
    diversity: ArrayLike

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
            weights = numpy.full((1, self.prompts), 1 / self.prompts)
        diversity = weights @ numpy.asarray(self.diversity).T[:, ::-1]
        quality = weights @ numpy.asarray(self.quality).T[:, ::-1]
        return _in_order(diversity, quality)


def quality_at(front: Front, diversities: ArrayLike) -> Floats:
    """Returns the quality of a system at given diversities, [K]; NaN outside of the range of its ladder.

    Between two temperatures the curve is a cubic that has no other extreme than the knots have (Fritsch and
    Carlson 1980, "Monotone Piecewise Cubic Interpolation"). Nothing is extrapolated.
    """
    at = numpy.atleast_1d(numpy.asarray(diversities, dtype=float))
    (found,) = _interpolated(*front.curve(), at[None, :])
    return numpy.asarray(found)


def compare_at(
    first: Front, second: Front, diversity: float, *, resamples: int = 10_000, seed: int = 0
) -> Comparison | None:
    """Returns the difference of two systems' quality at one diversity, with its 95% interval over prompts.

    The prompts are drawn anew for both systems at once, and both curves are interpolated in each resample.

    Returns:
        The first less the second; None where the diversity is outside of either ladder's range, or of more
        than 5% of the resamples'.

    Raises:
        ValueError: if the two have unlike prompts, or fewer than two.
    """
    return _differences(first, second, resamples, seed, lambda a, b: _at(a, b, diversity))


def compare_areas(
    first: Front, second: Front, *, resamples: int = 10_000, seed: int = 0
) -> Comparison | None:
    """Returns the mean difference of two systems' quality over the diversities that both ladders reach.

    It is the area between the two curves, divided by the width of the range that they share; that range is
    taken anew in each resample.

    Returns:
        The first less the second; None where the ranges of the two do not overlap.

    Raises:
        ValueError: if the two have unlike prompts, or fewer than two.
    """
    return _differences(first, second, resamples, seed, _over_the_shared_range)


Curves = tuple[Floats, Floats]


def _differences(
    first: Front,
    second: Front,
    resamples: int,
    seed: int,
    difference: Callable[[Curves, Curves], Floats],
) -> Comparison | None:
    """Returns a difference of two curves, with its interval over prompts; None where it is not known."""
    if first.prompts != second.prompts or first.prompts < 2:
        raise ValueError(
            f"two systems are compared on the same prompts, two at least, got {first.prompts} and "
            f"{second.prompts}; score the same set"
        )
    estimate = float(difference(first.curve(), second.curve())[0])
    drawn = numpy.concatenate(
        [difference(first.curve(w), second.curve(w)) for w in _weights(first.prompts, resamples, seed)]
    )
    known = drawn[numpy.isfinite(drawn)]
    if not numpy.isfinite(estimate) or len(known) < _LEAST_DEFINED * resamples:
        return None
    low, high = numpy.quantile(known, [0.025, 0.975])
    other = (known <= 0).mean() if estimate > 0 else (known >= 0).mean()
    return Comparison(estimate, float(low), float(high), min(1.0, 2 * float(other)), first.prompts, False)


def _weights(prompts: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Yields the weights of the prompts in each resample, [B, N], a thousand resamples at a time."""
    random = numpy.random.default_rng(seed)
    for begun in range(0, resamples, 1000):
        counts = random.multinomial(prompts, numpy.full(prompts, 1 / prompts), min(1000, resamples - begun))
        yield counts / prompts


def _at(first: Curves, second: Curves, diversity: float) -> Floats:
    at = numpy.full((len(first[0]), 1), diversity)
    return (_interpolated(*first, at) - _interpolated(*second, at))[:, 0]


def _over_the_shared_range(first: Curves, second: Curves) -> Floats:
    low = numpy.maximum(first[0][:, 0], second[0][:, 0])
    high = numpy.minimum(first[0][:, -1], second[0][:, -1])
    share = numpy.linspace(0, 1, _GRID)
    at = low[:, None] + (high - low)[:, None] * share
    at[:, -1] = high  # not beyond it by rounding
    between = _interpolated(*first, at) - _interpolated(*second, at)
    mean = numpy.trapezoid(between, share, axis=1)
    return numpy.where(high > low, mean, numpy.nan)


def _in_order(diversity: Floats, quality: Floats) -> Curves:
    """Returns both, [B, T], with neighbours in the wrong order pooled."""
    wrong = (numpy.diff(diversity, axis=1) <= 0).any(axis=1)
    for row in numpy.flatnonzero(wrong):
        blocks: list[list[float]] = []  # diversity and quality summed, and how many
        for x, y in zip(diversity[row], quality[row], strict=True):
            blocks.append([x, y, 1])
            while len(blocks) > 1 and blocks[-2][0] / blocks[-2][2] >= blocks[-1][0] / blocks[-1][2]:
                last = blocks.pop()
                blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
        counts = [int(block[2]) for block in blocks]
        diversity[row] = numpy.repeat([block[0] / block[2] for block in blocks], counts)
        quality[row] = numpy.repeat([block[1] / block[2] for block in blocks], counts)
    return diversity, quality


def _interpolated(x: Floats, y: Floats, at: Floats) -> Floats:
    """Returns monotone cubics through the knots `x` and `y`, [B, T], at `at`, [B, K]; NaN outside of them."""
    result = numpy.full(at.shape, numpy.nan)
    distinct = numpy.diff(x, axis=1) > 0
    whole = distinct.all(axis=1)
    if whole.any():
        result[whole] = _cubic(x[whole], y[whole], at[whole])
    for row in numpy.flatnonzero(~whole):
        kept = numpy.concatenate([[True], distinct[row]])
        if kept.sum() > 1:
            result[row] = _cubic(x[None, row, kept], y[None, row, kept], at[None, row])[0]
    return result


def _cubic(x: Floats, y: Floats, at: Floats) -> Floats:
    width = numpy.diff(x, axis=1)
    slope = numpy.diff(y, axis=1) / width
    tangent = numpy.empty_like(y)
    if x.shape[1] == 2:
        tangent[:] = slope
    else:
        before, after = 2 * width[:, 1:] + width[:, :-1], width[:, 1:] + 2 * width[:, :-1]
        with numpy.errstate(divide="ignore", invalid="ignore"):
            mean = (before + after) / (before / slope[:, :-1] + after / slope[:, 1:])
        tangent[:, 1:-1] = numpy.where(slope[:, :-1] * slope[:, 1:] > 0, mean, 0.0)
        tangent[:, 0] = _end(width[:, 0], width[:, 1], slope[:, 0], slope[:, 1])
        tangent[:, -1] = _end(width[:, -1], width[:, -2], slope[:, -1], slope[:, -2])
    segment = (at[:, :, None] >= x[:, None, 1:-1]).sum(axis=2)
    left = numpy.take_along_axis(x, segment, 1)
    h = numpy.take_along_axis(width, segment, 1)
    t = (at - left) / h
    y0, y1 = numpy.take_along_axis(y, segment, 1), numpy.take_along_axis(y, segment + 1, 1)
    m0, m1 = numpy.take_along_axis(tangent, segment, 1), numpy.take_along_axis(tangent, segment + 1, 1)
    value = (
        (1 + 2 * t) * (1 - t) ** 2 * y0
        + t * (1 - t) ** 2 * h * m0
        + t**2 * (3 - 2 * t) * y1
        + t**2 * (t - 1) * h * m1
    )
    inside = (at >= x[:, :1]) & (at <= x[:, -1:])
    return numpy.where(inside, value, numpy.nan)


def _end(near: Floats, next_width: Floats, slope: Floats, next_slope: Floats) -> Floats:
    """Returns the tangent at an end: of three points, kept from turning round."""
    tangent = ((2 * near + next_width) * slope - near * next_slope) / (near + next_width)
    tangent = numpy.where(numpy.sign(tangent) != numpy.sign(slope), 0.0, tangent)
    turns = (numpy.sign(slope) != numpy.sign(next_slope)) & (abs(tangent) > 3 * abs(slope))
    return numpy.where(turns, 3 * slope, tangent)
