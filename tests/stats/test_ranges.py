"""Every method of finding a range against loops over all values."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnxruntime.quantization.quant_utils import compute_scale_zp

from surgeon.stats.entropy import NOTHING, divergences
from surgeon.stats.histogram import Histogram
from surgeon.stats.ranges import METHODS, Range, by_entropy, by_error, by_percentile, find_range

Array = NDArray[Any]
SYMMETRIES = pytest.mark.parametrize("symmetric", [False, True])


def distribution(values: Array, bins: int = 4096) -> Any:
    histogram = Histogram(bins)
    histogram.add(values)
    return histogram.distribution()


def samples(kind: str, count: int = 20_000) -> Array:
    random = np.random.default_rng(0)
    values = {
        "normal": random.standard_normal(count),
        "relu": np.maximum(random.standard_normal(count), 0),
        "negative": -random.exponential(size=count),
        "offset": 5 + random.random(count),
        "heavy": random.standard_t(2, count),
        "zero": np.zeros(count),
    }[kind]
    return np.asarray(values, np.float32)


KINDS = pytest.mark.parametrize("kind", ["normal", "relu", "negative", "offset", "heavy", "zero"])


@SYMMETRIES
@KINDS
@pytest.mark.parametrize("method", METHODS)
def test_every_range_includes_zero_and_nothing_that_never_occurs(
    method: str, kind: str, symmetric: bool
) -> None:
    values = samples(kind)
    lowest, highest = find_range(method, distribution(values), symmetric=symmetric)
    assert lowest <= 0 <= highest
    most = np.abs(values).max()
    if symmetric:
        assert lowest == -highest
        assert highest <= most
    else:
        assert lowest >= min(values.min(), 0)
        assert highest <= max(values.max(), 0)


@SYMMETRIES
def test_minmax_and_moving_average(symmetric: bool) -> None:
    histogram = Histogram()
    for batch in ([-1.0, 2.0], [-3.0, 1.0]):
        histogram.add(np.array(batch, np.float32))
    found = histogram.distribution()
    low, high = (-1 * 0.99 - 3) / 1.99, (2 * 0.99 + 1) / 1.99
    if symmetric:
        assert find_range("minmax", found, symmetric=True) == (-3, 3)
        assert find_range("moving-average", found, symmetric=True) == pytest.approx((low, -low))
    else:
        assert find_range("minmax", found, symmetric=False) == (-3, 2)
        assert find_range("moving-average", found, symmetric=False) == pytest.approx((low, high))


@KINDS
@pytest.mark.parametrize("percentile", [90.0, 99.9, 100.0])
def test_percentiles_are_the_edges_of_bins_around_the_sorted_values(kind: str, percentile: float) -> None:
    values = samples(kind)
    found = distribution(values)
    width = found.width
    ordered = sorted(values.tolist())
    cut = len(ordered) * (1 - percentile / 100) / 2  # so many values may be outside at either end
    low, high = ordered[math.floor(cut + 1e-6)], ordered[len(ordered) - 1 - math.floor(cut + 1e-6)]
    lowest, highest = by_percentile(found, percentile, symmetric=False)
    assert lowest == max(math.floor(low / width) * width, ordered[0])
    assert highest == min((math.floor(high / width) + 1) * width, ordered[-1])
    magnitudes = sorted(abs(value) for value in ordered)
    inside = magnitudes[math.ceil(len(ordered) * percentile / 100 - 1e-6) - 1]
    threshold = by_percentile(found, percentile, symmetric=True)[1]
    edge = math.floor(inside / width) + 1 if inside in ordered else math.ceil(inside / width)
    assert threshold == min(edge * width, magnitudes[-1])


def divergence(counts: list[float], kept: int, levels: int, before: float) -> float:
    """The definition, bin by bin."""
    true = [float(count) for count in counts[:kept]]
    true[0] += before
    true[-1] += sum(counts[kept:])
    rounded = [0.0] * kept
    for level in range(levels):
        bins = range(level * kept // levels, (level + 1) * kept // levels)
        held = sum(counts[k] for k in bins)
        used = [k for k in bins if true[k] > 0]
        for k in used:
            rounded[k] = max(held, NOTHING) / len(used)
    if not sum(counts[:kept]):
        return math.inf
    return sum(
        p / sum(true) * math.log(p / sum(true) / (q / sum(rounded)))
        for p, q in zip(true, rounded, strict=True)
        if p > 0
    )


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 50) | st.just(0), min_size=1, max_size=40),
    st.integers(2, 9),
    st.integers(0, 30),
    st.integers(1, 3),
)
def test_divergences_by_their_definition(counts: list[int], levels: int, before: int, step: int) -> None:
    kept, lost = divergences(np.array(counts), levels=levels, before=before, step=step)
    assert kept[-1] == len(counts)
    if len(counts) <= levels:
        assert lost.tolist() == [0.0]
        return
    assert kept.tolist() == sorted({*range(levels, len(counts), step), len(counts)})
    wanted = [divergence([float(c) for c in counts], int(k), levels, float(before)) for k in kept]
    assert lost == pytest.approx(wanted, abs=1e-12)


def test_symmetric_entropy_is_the_best_of_all_thresholds() -> None:
    values = samples("heavy")
    values = values[values != 0]
    found = distribution(values, bins=512)
    size = max(found.first + len(found.counts), -found.first)
    counts = [0.0] * size
    for value in values:
        counts[
            math.floor(abs(value) / found.width) if value > 0 else math.ceil(-value / found.width) - 1
        ] += 1
    lost = {kept: divergence(counts, kept, 128, 0.0) for kept in range(128, size + 1)}
    best = min(lost, key=lambda kept: (lost[kept], kept))
    assert by_entropy(found, True)[1] == min(best * found.width, float(np.abs(values).max()))


def test_asymmetric_entropy_cannot_be_bettered_at_either_end() -> None:
    found = distribution(samples("heavy"), bins=2048)
    lowest, highest = by_entropy(found, False)
    start, end = round(lowest / found.width) - found.first, round(highest / found.width) - found.first
    counts = [float(count) for count in found.counts]
    ours = divergence(counts[start:], end - start, 256, sum(counts[:start]))
    step = math.ceil((len(counts) - start) / 128)
    for other in range(256, len(counts) - start, step):
        if start + other >= -found.first:
            assert divergence(counts[start:], other, 256, sum(counts[:start])) >= ours - 1e-12


def expected_cost(values: Array, counts: Array, zeros: float, low: float, high: float, steps: int) -> float:
    step = (high - low) / steps
    cost, inside = 0.0, 0.0
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        if value < low:
            cost += count * (value - low) ** 2
        elif value > high:
            cost += count * (value - high) ** 2
        else:
            inside += count
    return cost + (inside - zeros) * step**2 / 12


@SYMMETRIES
@pytest.mark.parametrize("kind", ["normal", "relu", "negative", "heavy"])
def test_least_error_over_all_pairs_of_ends(kind: str, symmetric: bool) -> None:
    found = distribution(samples(kind), bins=64)
    lowest, highest = min(found.lowest, 0.0), max(found.highest, 0.0)
    if symmetric:
        most = max(-lowest, highest)
        pairs = [(-most * k / 128, most * k / 128) for k in range(1, 129)]
    else:
        lows = [lowest * k / 128 for k in range(1, 129)] if lowest else [0.0]
        highs = [highest * k / 128 for k in range(1, 129)] if highest else [0.0]
        pairs = [(low, high) for low in [*lows[::8], lows[-1]] for high in [*highs[::8], highs[-1]]]
    steps = 254 if symmetric else 255
    costs = [expected_cost(found.centres, found.counts, found.zeros, *pair, steps) for pair in pairs]
    ours = expected_cost(found.centres, found.counts, found.zeros, *by_error(found, symmetric), steps)
    assert ours <= min(costs) * (1 + 1e-9)
    if symmetric:
        assert ours == pytest.approx(min(costs), rel=1e-9)


def true_error(values: Array, found: Range, *, symmetric: bool) -> float:
    scale, zero = found.grid(symmetric=symmetric)
    low, high = (-127, 127) if symmetric else (0, 255)
    whole = np.clip(np.round(values.astype(np.float64) / scale) + zero, low, high)
    return float(np.square((whole - zero) * scale - values).mean())


@SYMMETRIES
@pytest.mark.parametrize("kind", ["normal", "relu", "negative", "heavy"])
def test_least_expected_error_is_close_to_the_least_error_there_is(kind: str, symmetric: bool) -> None:
    values = samples(kind)
    ours = true_error(
        values, find_range("mse", distribution(values), symmetric=symmetric), symmetric=symmetric
    )
    tried = [
        true_error(values, Range(values.min() * a, values.max() * b), symmetric=symmetric)
        for a in np.linspace(0.02, 1, 25)
        for b in np.linspace(0.02, 1, 25)
    ]
    assert ours <= 1.05 * min(tried)
    assert ours <= true_error(values, Range(float(values.min()), float(values.max())), symmetric=symmetric)


ends = st.floats(-1e6, 1e6, width=32)


@given(ends, ends, st.booleans())
def test_grids_are_those_of_onnxruntime(low: float, high: float, symmetric: bool) -> None:
    low, high = sorted((low, high))
    dtype, limits = (np.int8, (-127, 127)) if symmetric else (np.uint8, (0, 255))
    zero, scale = compute_scale_zp(
        np.float32(low), np.float32(high), *(np.array(end, dtype) for end in limits), symmetric
    )
    assert Range(low, high).grid(symmetric=symmetric) == (float(scale), int(zero))


def test_a_narrow_range_far_from_zero_takes_no_more_memory_than_a_wide_one() -> None:
    def peak(values: Array) -> int:
        found = distribution(values)
        tracemalloc.start()
        for method in METHODS:
            for symmetric in (False, True):
                find_range(method, found, symmetric=symmetric)
        most: int = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    random = np.random.default_rng(0)
    wide = peak(random.standard_normal(1000).astype(np.float32))
    assert peak((1e6 + random.random(1000)).astype(np.float32)) < wide * 1.1
