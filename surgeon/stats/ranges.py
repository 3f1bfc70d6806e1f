"""From how values are distributed to the range that 8 bits cover: five methods.

A range always includes zero, which quantized operators pad with. Symmetric ranges are ``-t .. t`` for int8 in -127..127,
others ``lowest .. highest`` for uint8 in 0..255. A method sees one distribution; for ranges per channel it is asked once for each.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from surgeon.stats.entropy import divergences

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from surgeon.stats.histogram import Distribution

    Array = NDArray[Any]

PERCENTILE = 99.999
_STEPS = {False: 255, True: 254}  # between the ends of a range: uint8 0..255, int8 -127..127
_ENDS = 128  # candidates for either end of a range
_ROUNDING = 1e-9  # a share of the values that is a whole number stays one
_TURNS = 8
_MAGNITUDES = 2048  # bins of magnitudes, as many as TensorRT has
_TINY = float(np.finfo(np.float32).tiny)


class Range(NamedTuple):
    """What 8 bits cover."""

    lowest: float
    highest: float

    def grid(self, *, symmetric: bool) -> tuple[float, int]:
        """Returns scale and zero point, as onnxruntime makes them of a range (float32 scales).

        A value x becomes ``round(x / scale) + zero_point``, cut off at the type's limits.
        """
        lowest, highest = min(self.lowest, 0.0), max(self.highest, 0.0)
        if symmetric:
            highest = max(-lowest, highest)
            lowest = -highest
        scale = (highest - lowest) / _STEPS[symmetric]
        if scale < _TINY:
            return 1.0, 0
        zero = 0 if symmetric else int(np.round(-lowest / scale))
        return float(np.float32(scale)), zero


def find_range(
    method: str, values: Distribution, *, symmetric: bool, percentile: float = PERCENTILE
) -> Range:
    """Returns the range that a method suggests.

    Args:
        method: One of :data:`METHODS`.
        values: How the values are distributed.
        symmetric: Whether the range is symmetric around zero.
        percentile: For the method of that name: per cent of the values that are inside.
    """
    if method == "percentile":
        found = by_percentile(values, percentile, symmetric=symmetric)
    else:
        found = METHODS[method](values, symmetric)
    return _with_zero(*found, symmetric=symmetric)


def by_percentile(values: Distribution, percentile: float, *, symmetric: bool) -> tuple[float, float]:
    """Covers that share of the values: of their magnitudes if symmetric, else cut off equally at both ends.

    Ends are edges of bins, the closest that do not cut off more, as in onnxruntime's calibrator.
    """
    if symmetric:
        places = values.first + np.arange(len(values.counts))
        bins = np.where(places < 0, -1 - places, places)  # those below zero, mirrored onto those above
        order = np.argsort(bins, kind="stable")
        inside = np.cumsum(values.counts[order])
        needed = inside[-1] * (percentile / 100) * (1 - _ROUNDING)
        threshold = float(bins[order[np.searchsorted(inside, needed)]] + 1) * values.width
        threshold = min(threshold, max(values.highest, -values.lowest))
        return -threshold, threshold
    counts, edges = values.counts, values.edges
    cut = counts.sum() * (100 - percentile) / 200 * (1 + _ROUNDING)
    low = int(np.searchsorted(np.cumsum(counts), cut, side="right"))
    high = len(counts) - int(np.searchsorted(np.cumsum(counts[::-1]), cut, side="right"))
    low, high = min(low, len(counts) - 1), max(high, 1)
    return max(float(edges[low]), values.lowest), min(float(edges[high]), values.highest)


def by_entropy(values: Distribution, symmetric: bool) -> tuple[float, float]:
    """Loses least information: the least Kullback-Leibler divergence of the rounded from the true distribution.

    Symmetric ranges are those of TensorRT (Migacz, "8-bit inference with TensorRT", 2017): magnitudes, 128 levels.
    Asymmetric ones have 256 levels between two ends, found in turns: the best upper end for a lower one, the best
    lower end for that upper one, until neither moves. An end never crosses zero. Exact zeros, which a Relu makes in
    masses, are left out: they lose nothing, and spread over the first level they would outweigh everything else.
    """
    counts = _without_zeros(values)
    if not counts.any():
        return values.lowest, values.highest
    if symmetric:
        magnitudes, width = _folded(values, counts)
        ends, lost = divergences(magnitudes, levels=128)
        threshold = float(ends[int(np.argmin(lost))]) * width
        threshold = min(threshold, max(values.highest, -values.lowest))
        return -threshold, threshold
    zero = min(max(-values.first, 0), len(counts))  # the edge that is zero, or the closest to it
    start, end = 0, len(counts)
    for _ in range(_TURNS):
        before = (start, end)
        end = start + _best_end(counts[start:], counts[:start].sum(), zero - start)
        start = end - _best_end(counts[:end][::-1], counts[end:].sum(), end - zero)
        if before == (start, end):
            break
    edges = values.edges
    return max(float(edges[start]), values.lowest), min(float(edges[end]), values.highest)


def by_error(values: Distribution, symmetric: bool) -> tuple[float, float]:
    """Has the least expected squared error: s²/12 for what is rounded to steps of s, and what is cut off.

    Tried are all pairs of ``k/128`` of the least and ``l/128`` of the greatest value. Zeros are never rounded.
    """
    lowest, highest = min(values.lowest, 0.0), max(values.highest, 0.0)
    shares = np.arange(1, _ENDS + 1) / _ENDS
    if symmetric:
        highs = max(-lowest, highest) * shares
        lows = -highs
    else:
        highs = highest * shares if highest > 0 else np.zeros(1)
        lows = lowest * shares if lowest < 0 else np.zeros(1)
    below, beneath = _cut(-values.centres[::-1], values.counts[::-1], -lows)
    above, beyond = _cut(values.centres, values.counts, highs)
    if not symmetric:
        lows, below, beneath = (each[:, np.newaxis] for each in (lows, below, beneath))
    steps = (highs - lows) / _STEPS[symmetric]
    rounded = values.counts.sum() - values.zeros - beneath - beyond
    cost = below + above + rounded * steps**2 / 12
    low, high = np.broadcast_arrays(lows, highs)
    best = cost.size - 1 - int(np.argmin(cost.ravel()[::-1]))  # of equals, the widest
    return float(low.ravel()[best]), float(high.ravel()[best])


def _minmax(values: Distribution, symmetric: bool) -> tuple[float, float]:
    """Covers everything."""
    del symmetric
    return values.lowest, values.highest


def _moving_average(values: Distribution, symmetric: bool) -> tuple[float, float]:
    """Covers what a usual batch has."""
    del symmetric
    return values.average_lowest, values.average_highest


def _percentile(values: Distribution, symmetric: bool) -> tuple[float, float]:
    """Covers all but a few in a hundred thousand."""
    return by_percentile(values, PERCENTILE, symmetric=symmetric)


METHODS: Mapping[str, Callable[[Distribution, bool], tuple[float, float]]] = {
    "minmax": _minmax,
    "moving-average": _moving_average,
    "percentile": _percentile,
    "entropy": by_entropy,
    "mse": by_error,
}


def _with_zero(lowest: float, highest: float, *, symmetric: bool) -> Range:
    lowest, highest = min(lowest, 0.0), max(highest, 0.0)
    if symmetric:
        highest = max(-lowest, highest)
        lowest = -highest
    return Range(lowest, highest)


def _cut(points: Array, counts: Array, ends: Array) -> tuple[Array, Array]:
    """What is beyond each end (at least 0): the sum of squared distances to it, and how many there are."""
    positive = points > 0
    points, counts = points[positive], counts[positive].astype(np.float64)
    start = np.searchsorted(points, ends, side="right")

    def behind(each: Array) -> Array:
        total: Array = np.append(np.cumsum(each[::-1])[::-1], 0.0)
        return total[start]

    number = behind(counts)
    squares = behind(counts * points**2) - 2 * ends * behind(counts * points) + ends**2 * number
    return np.maximum(squares, 0.0), number


def _without_zeros(values: Distribution) -> Array:
    counts = values.counts.astype(np.float64)
    if values.zeros:
        counts[-values.first] -= values.zeros
    return counts


def _folded(values: Distribution, counts: Array) -> tuple[Array, float]:
    """The histogram of magnitudes, from zero: counts and width. Bins below zero are mirrored onto those above."""
    size = max(values.first + len(counts), -values.first, 1)
    merge = math.ceil(size / _MAGNITUDES)
    places = values.first + np.arange(len(counts))
    places = np.where(places < 0, -1 - places, places) // merge
    return np.bincount(places, counts, minlength=math.ceil(size / merge)), values.width * merge


def _best_end(counts: Array, before: float, least: int) -> int:
    """How many of the bins are best kept, of those numbers that are at least ``least``; all if zero is behind them."""
    if least >= len(counts):
        return len(counts)
    ends, lost = divergences(counts, levels=256, before=before, step=math.ceil(len(counts) / _ENDS))
    lost = np.where(ends >= least, lost, np.inf)
    return int(ends[len(ends) - 1 - int(np.argmin(lost[::-1]))])
