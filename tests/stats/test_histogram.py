"""Streaming histograms against all values in memory, counted one by one."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from surgeon.stats.histogram import AVERAGING, Histogram, add_channels, channel_histograms

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
lists = st.lists(floats, min_size=1, max_size=40)


def counted(values: list[float], first: int, width: float, bins: int) -> list[int]:
    counts = [0] * bins
    for value in values:
        counts[math.floor(value / width) - first] += 1
    return counts


@given(st.lists(lists, min_size=1, max_size=5), st.sampled_from([2, 7, 64]))
def test_widened_bins_hold_what_counting_afresh_would_put_there(
    batches: list[list[float]], bins: int
) -> None:
    histogram = Histogram(bins)
    for batch in batches:
        histogram.add(np.array(batch, np.float32))
    everything = [value for batch in batches for value in batch]
    found = histogram.distribution()
    assert found.counts.tolist() == counted(everything, found.first, found.width, len(found.counts))
    assert (found.lowest, found.highest) == (min(everything), max(everything))
    assert found.zeros == everything.count(0)
    assert math.frexp(found.width)[0] == 0.5  # a power of two
    assert len(found.counts) <= bins


@given(lists, st.data())
def test_how_the_data_are_cut_does_not_matter(values: list[float], data: st.DataObject) -> None:
    order = data.draw(st.permutations(values))
    cut = data.draw(st.integers(0, len(values)))
    once, twice = Histogram(16), Histogram(16)
    once.add(np.array(values, np.float32))
    twice.add(np.array(order[:cut], np.float32))
    twice.add(np.array(order[cut:], np.float32))
    ours, theirs = once.distribution(), twice.distribution()
    assert ours.counts.tolist() == theirs.counts.tolist()
    assert (ours.first, ours.width, ours.zeros) == (theirs.first, theirs.width, theirs.zeros)


def test_bins_are_no_wider_than_needed() -> None:
    histogram = Histogram(1024)
    histogram.add(np.linspace(-1, 5, 10_000, dtype=np.float32))
    assert 512 < len(histogram.distribution().counts) <= 1024


def test_one_value_zeros_and_extremes() -> None:
    for value in (0.0, 1.0, -3e38, 1e-45):
        histogram = Histogram(8)
        histogram.add(np.full(5, value, np.float32))
        found = histogram.distribution()
        assert found.counts.tolist() == [5]
        assert found.zeros == (5 if value == 0 else 0)
    histogram = Histogram(8)
    histogram.add(np.zeros(3, np.float32))
    histogram.add(np.array([3e38, -3e38, 1e-45, -1e-45], np.float32))
    assert histogram.distribution().counts.sum() == 7


def test_more_values_than_fit_into_a_slice() -> None:
    values = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    histogram = Histogram(64)
    histogram.add(values)
    found = histogram.distribution()
    assert found.counts.tolist() == np.histogram(values, found.edges)[0].tolist()


def test_infinities_nans_and_nothing_at_all() -> None:
    histogram = Histogram()
    histogram.add(np.zeros((0, 3), np.float32))
    histogram.add(np.array([np.nan, np.inf], np.float32))
    assert histogram.empty
    with pytest.raises(ValueError, match="no finite value"):
        histogram.distribution()
    histogram.add(np.array([[1.0, -np.inf, 2.0]], np.float32))
    found = histogram.distribution()
    assert (found.lowest, found.highest, found.counts.sum(), found.strange) == (1, 2, 2, 3)


def test_moving_averages_are_weighted_means_of_batches() -> None:
    random = np.random.default_rng(0)
    batches = [random.standard_normal(9).astype(np.float32) for _ in range(30)]
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch)
    ages = np.arange(len(batches))[::-1]
    weights = (1 - AVERAGING) ** ages
    found = histogram.distribution()
    assert found.average_lowest == pytest.approx(np.average([b.min() for b in batches], weights=weights))
    assert found.average_highest == pytest.approx(np.average([b.max() for b in batches], weights=weights))


def test_channels_apart_and_channels_that_count_more() -> None:
    values = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32)
    values[:, 1] *= 100
    apart = channel_histograms(3)
    add_channels(apart, values[:2], axis=1)
    add_channels(apart, values[2:], axis=1)
    for channel, histogram in enumerate(apart):
        alone = Histogram()
        alone.add(values[:, channel])
        assert histogram.distribution().counts.tolist() == alone.distribution().counts.tolist()
    weights = np.array([1.0, 0.0, 4.0]).reshape(1, 3, 1)
    heavy = Histogram(32)
    heavy.add(values[:1], weights)
    heavy.add(values[1:], weights)
    found = heavy.distribution()
    wanted, _ = np.histogram(values, found.edges, weights=np.broadcast_to(weights, values.shape))
    assert found.counts.tolist() == wanted.tolist()


def test_memory_does_not_grow_with_the_data() -> None:
    def used(batches: int) -> int:
        histogram, random = Histogram(), np.random.default_rng(0)
        tracemalloc.start()
        for _ in range(batches):
            histogram.add(random.standard_normal(100_000, dtype=np.float32))
        peak: int = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    used(1)
    assert used(60) < used(2) * 1.1


def test_float64_and_float16() -> None:
    for dtype in (np.float64, np.float16):
        values: NDArray[np.floating] = np.array([0.5, -2.0, 0.25, 2.5], dtype)
        histogram = Histogram(4)
        histogram.add(values)
        found = histogram.distribution()
        assert found.counts.tolist() == counted(values.tolist(), found.first, found.width, len(found.counts))
