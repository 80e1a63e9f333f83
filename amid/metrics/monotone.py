"""Curves through a few points, for many resamples at once: monotone cubics between points in order."""

import numpy
from numpy.typing import NDArray

Floats = NDArray[numpy.float64]


def in_order(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Returns copies of x and y, [B, T], in which neighbours with x in the wrong order share their means.

    x is then the isotonic regression of what it was (Barlow et al. 1972): it does not fall along T.
    Neighbours that differ by rounding share their means as well.
    """
    least_step = 1e-9 * (1 + numpy.abs(x).max(1, keepdims=True))
    wrong = (numpy.diff(x, axis=1) <= least_step).any(axis=1)
    if not wrong.any():
        return x, y
    before, points = x[wrong], x.shape[1]
    sums = numpy.concatenate([numpy.zeros((len(before), 1)), before.cumsum(1)], axis=1)
    rising = numpy.full(before.shape, -numpy.inf)
    for first in range(points):
        least = numpy.full(len(before), numpy.inf)
        for last in reversed(range(first, points)):
            mean = (sums[:, last + 1] - sums[:, first]) / (last + 1 - first)
            least = numpy.minimum(least, mean)
            rising[:, last] = numpy.maximum(rising[:, last], least)
    pooled = numpy.abs(rising[:, :, None] - rising[:, None, :]) <= least_step[wrong][:, :, None]
    share, first_of = pooled / pooled.sum(2, keepdims=True), pooled.argmax(2)
    x, y = x.copy(), y.copy()
    for values in (x, y):  # the points of a pool get the value of its first: equal to the last digit
        values[wrong] = numpy.take_along_axis((share @ values[wrong][:, :, None])[:, :, 0], first_of, 1)
    return x, y


def interpolated(x: Floats, y: Floats, at: Floats) -> Floats:
    """Returns monotone cubics through the points x and y, [B, T], at `at`, [B, K]; NaN outside of the points.

    The cubic has no other extreme than the points have (Fritsch and Carlson 1980). x does not fall along T;
    points with equal x must have equal y, and count once. With one point left, all is NaN.
    """
    result = numpy.full(at.shape, numpy.nan)
    first = numpy.ones((len(x), 1), bool)
    kept = numpy.concatenate([first, numpy.diff(x, axis=1) > 0], axis=1)
    patterns = kept @ (1 << numpy.arange(x.shape[1]))  # a number for each set of points that count
    for one in numpy.unique(patterns):
        rows = patterns == one
        points = kept[rows.argmax()]
        if points.sum() > 1:
            result[rows] = _cubic(x[rows][:, points], y[rows][:, points], at[rows])
    return result


def _cubic(x: Floats, y: Floats, at: Floats) -> Floats:
    width = numpy.diff(x, axis=1)
    slope = numpy.diff(y, axis=1) / width
    tangent = numpy.empty_like(y)
    if x.shape[1] == 2:
        tangent[:] = slope
    else:
        before, after = 2 * width[:, 1:] + width[:, :-1], width[:, 1:] + 2 * width[:, :-1]
        with numpy.errstate(divide="ignore", invalid="ignore", over="ignore"):
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
