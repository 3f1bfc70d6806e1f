"""Measured latency: models run in turns on the same feeds, so that a busy machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from surgeon.graph import sessions
from surgeon.stats.chunks import Array

_WARM_UP = 3


@dataclass(frozen=True)
class Latency:
    """Time of one run in milliseconds, and how it relates to the first model of the comparison.

    ``ratio`` is the median over the rounds of (this model's time / the first model's time in the same
    round): below 1 is faster. The first model's is 1.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    ratio: float
    ratio_p10: float
    ratio_p90: float


def compare(
    models: Sequence[onnx.ModelProto | bytes | Path],
    feeds: Mapping[str, Array],
    threads: int = 1,
    runs: int = 30,
) -> list[Latency]:
    """Measures models side by side: every round runs each of them once.

    Args:
        models: The models; ratios are against the first.
        feeds: Inputs for all of them.
        threads: Threads per model; 1 gives the steadiest ratios.
        runs: Rounds that count, after three that warm up.

    Raises:
        UnsupportedModelError: A model does not load or run.
        DataError: The feeds do not fit.
    """
    runners = [sessions.session(model, threads=threads) for model in models]
    for runner in runners:
        for _ in range(_WARM_UP):
            sessions.run(runner, feeds)
    times = np.empty((len(runners), max(runs, 1)))
    for turn in range(times.shape[1]):
        for index, runner in enumerate(runners):
            start = time.perf_counter()
            sessions.run(runner, feeds)
            times[index, turn] = (time.perf_counter() - start) * 1e3
    return [_summary(row, times[0]) for row in times]


def _summary(times: np.ndarray, reference: np.ndarray) -> Latency:
    quantiles = (50, 10, 90)
    median, low, high = np.percentile(times, quantiles)
    ratio, ratio_low, ratio_high = np.percentile(times / reference, quantiles)
    return Latency(*(float(value) for value in (median, low, high, ratio, ratio_low, ratio_high)))
