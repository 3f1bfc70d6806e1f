"""Streaming histograms: how the values of a tensor are distributed, in memory that no amount of data changes.

Bins have a width that is a power of two, and bin k holds ``k * width <= x < (k + 1) * width``. When a value arrives
that the bins cannot reach, their width doubles and neighbours are added up. That is exact, and how wide the bins are
depends on the least and the greatest value only: counts are the same however the data were cut into batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

BINS = 4096
AVERAGING = 0.01  # share of the newest batch in the moving averages, as onnxruntime and PyTorch have it
_SLICE = 2**16  # values at a time: they fit into the cache
_FINEST = -149  # exponent of the smallest float32
_DIGITS = 24  # bits of a float32; bins finer than the greatest value's last bit tell nothing apart
_LONGEST_SHIFT = 62


@dataclass(frozen=True)
class Distribution:
    """What a histogram knows.

    Attributes:
        counts: Values (or their weight) in each bin, ``[bins]``, from the least value's bin to the greatest's.
        first: The number of the first bin, which starts at ``first * width``.
        width: Width of a bin.
        zeros: Values that are exactly zero (they are in ``counts`` too); every quantizer represents them exactly.
        lowest: The least value.
        highest: The greatest value.
        average_lowest: Moving average of the least values of batches.
        average_highest: Moving average of the greatest values of batches.
        strange: Values that are infinite or not a number; they are counted nowhere else.
    """

    counts: Array
    first: int
    width: float
    zeros: float
    lowest: float
    highest: float
    average_lowest: float
    average_highest: float
    strange: int = 0

    @property
    def edges(self) -> Array:
        """Where bins begin and the last one ends, ``[bins + 1]``."""
        return np.asarray((self.first + np.arange(len(self.counts) + 1)) * self.width)

    @property
    def centres(self) -> Array:
        """The middles of the bins, ``[bins]``, within the least and the greatest value."""
        middles = (self.first + 0.5 + np.arange(len(self.counts))) * self.width
        return np.asarray(np.clip(middles, self.lowest, self.highest))


class Histogram:
    """The distribution of all values that were added so far.

    Args:
        bins: How many bins there are at most; from half of them on are in use once there are two different values.
    """

    def __init__(self, bins: int = BINS) -> None:
        self.bins = bins
        self.counts: Array = np.zeros(bins, np.int64)
        self.first, self.exponent = 0, _FINEST
        self.lowest, self.highest = math.inf, -math.inf
        self.zeros: float = 0
        self.strange = 0
        self._averages = np.zeros(2)
        self._trust = 0.0

    @property
    def empty(self) -> bool:
        """Whether no finite value was added."""
        return self.lowest > self.highest

    @property
    def nbytes(self) -> int:
        """Bytes held, whatever was added."""
        return self.counts.nbytes

    def add(self, values: Array, weights: Array | None = None) -> None:
        """Adds one batch.

        Args:
            values: Floats of any shape; none at all is fine. Infinities and NaNs are counted in ``strange`` only.
            weights: What each value counts instead of one, in a shape that broadcasts to the values', as
                ``[1, channels, 1, 1]`` for a weight per channel.
        """
        flat = np.asarray(values).reshape(-1)
        heavy = None if weights is None else np.broadcast_to(weights, np.shape(values)).reshape(-1)
        if not flat.size:
            return
        low, high = flat.min(), flat.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            usual = np.isfinite(flat)
            self.strange += int(flat.size - np.count_nonzero(usual))
            flat, heavy = flat[usual], None if heavy is None else heavy[usual]
            if not flat.size:
                return
            low, high = flat.min(), flat.max()
        self._note(float(low), float(high))
        if heavy is not None and self.counts.dtype != np.float64:
            self.counts = self.counts.astype(np.float64)
        for start in range(0, flat.size, _SLICE):
            part = slice(start, start + _SLICE)
            self._count(flat[part], None if heavy is None else heavy[part])

    def distribution(self) -> Distribution:
        """Returns what is known by now.

        Raises:
            ValueError: No finite value was added.
        """
        if self.empty:
            raise ValueError("no finite value was added")
        width = 2.0**self.exponent
        used = math.floor(self.highest / width) - self.first + 1
        averages = self._averages / self._trust
        return Distribution(
            self.counts[:used].copy(),
            self.first,
            width,
            self.zeros,
            self.lowest,
            self.highest,
            float(averages[0]),
            float(averages[1]),
            self.strange,
        )

    def _note(self, low: float, high: float) -> None:
        """Takes the extremes of a batch, and makes the bins reach them."""
        # an average over few batches is not drawn to where it started: weights are divided by their sum
        self._averages = (1 - AVERAGING) * self._averages + AVERAGING * np.array([low, high])
        self._trust = (1 - AVERAGING) * self._trust + AVERAGING
        was_empty = self.empty
        if low >= self.lowest and high <= self.highest:
            return
        self.lowest, self.highest = min(low, self.lowest), max(high, self.highest)
        exponent = _exponent(self.lowest, self.highest, self.bins)
        first = math.floor(self.lowest / 2.0**exponent)
        if not was_empty:
            shift = min(exponent - self.exponent, _LONGEST_SHIFT)
            filled = np.flatnonzero(self.counts)
            moved = np.zeros_like(self.counts)
            np.add.at(moved, ((filled + self.first) >> shift) - first, self.counts[filled])
            self.counts = moved
        self.first, self.exponent = first, exponent

    def _count(self, values: Array, weights: Array | None) -> None:
        scaled = np.multiply(values, 2.0**-self.exponent, dtype=np.float64)
        places = np.floor(scaled, out=scaled).astype(np.int64)
        places -= self.first
        self.counts += np.bincount(places, weights, minlength=self.bins)
        if weights is None:
            self.zeros += int(values.size - np.count_nonzero(values))
        else:
            self.zeros += float(weights[values == 0].sum())


def channel_histograms(channels: int, bins: int = BINS) -> list[Histogram]:
    """Returns a histogram for each channel, for :func:`add_channels`."""
    return [Histogram(bins) for _ in range(channels)]


def add_channels(histograms: list[Histogram], values: Array, axis: int) -> None:
    """Adds a batch to the histograms of its channels, which are along ``axis``."""
    for histogram, channel in zip(histograms, np.moveaxis(values, axis, 0), strict=True):
        histogram.add(channel)


def _exponent(low: float, high: float, bins: int) -> int:
    """Returns the binary logarithm of the least width with which ``bins`` bins reach from ``low`` to ``high``."""
    largest = max(abs(low), abs(high))
    finest = max(math.frexp(largest)[1] - _DIGITS, _FINEST) if largest else _FINEST
    span = high / bins - low / bins
    # no finer width than span / bins can do; one less in case the quotient was rounded up
    exponent = max(finest, math.frexp(span)[1] - 2) if span else finest
    while math.floor(high / 2.0**exponent) - math.floor(low / 2.0**exponent) >= bins:
        exponent += 1
    return exponent
