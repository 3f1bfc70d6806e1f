"""Measured latency: models run in turns on their feeds, so that a busy machine slows all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from surgeon.graph import sessions
from surgeon.stats.chunks import Array

_WARM_UP = 3
_FINE = 1e-5  # seconds; a coarser clock cannot time one run
Feeds = Mapping[str, Array]


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
    rounds: int = 0

    @property
    def error(self) -> float:
        """How far the median ratio may be off: its standard error, estimated from the middle 80 % of the rounds."""
        # of a normal distribution the middle 80 % are 2.56 standard deviations wide; a median strays 1.25 times as far
        return 1.25 * (self.ratio_p90 - self.ratio_p10) / 2.56 / math.sqrt(max(self.rounds, 1))


def clock(threads: int) -> Callable[[], float]:
    """Returns what to time a run with, in seconds.

    With one thread everything runs on the caller's, so its processor time is the model's time, and what other
    programs take from a busy machine does not count. With more threads it is wall time.
    """
    fine = time.get_clock_info("thread_time").resolution <= _FINE
    return time.thread_time if threads == 1 and fine else time.perf_counter


def compare(
    models: Sequence[onnx.ModelProto | bytes | Path],
    feeds: Feeds | Sequence[Feeds],
    threads: int = 1,
    runs: int = 30,
    *,
    warm_up: int = _WARM_UP,
    seconds: float | None = None,
) -> list[Latency]:
    """Measures models side by side: every round runs each of them once, in an order that is turned each time.

    Args:
        models: The models; ratios are against the first.
        feeds: Inputs for all of them, or one set for each.
        threads: Threads per model; 1 gives the steadiest ratios.
        runs: Rounds that count, after those that warm up.
        warm_up: Rounds that do not count.
        seconds: Rounds end after this time, whatever ``runs`` says; three are made at least.

    Raises:
        UnsupportedModelError: A model does not load or run.
        DataError: The feeds do not fit.
    """
    runners = [sessions.session(model, threads=threads, timed=True) for model in models]
    given = [feeds] * len(runners) if isinstance(feeds, Mapping) else list(feeds)
    for runner, each in zip(runners, given, strict=True):
        for _ in range(warm_up):
            sessions.run(runner, each)
    now = clock(threads)
    end = None if seconds is None else time.perf_counter() + seconds
    rounds = []
    for turn in range(max(runs, 1)):
        times = np.empty(len(runners))
        for index in np.roll(np.arange(len(runners)), -turn):
            start = now()
            sessions.run(runners[index], given[index])
            times[index] = (now() - start) * 1e3
        rounds.append(times)
        if end is not None and turn >= 2 and time.perf_counter() > end:
            break
    measured = np.stack(rounds, axis=1)
    return [_summary(row, measured[0]) for row in measured]


def _summary(times: np.ndarray, reference: np.ndarray) -> Latency:
    quantiles = (50, 10, 90)
    median, low, high = np.percentile(times, quantiles)
    ratio, ratio_low, ratio_high = np.percentile(times / np.maximum(reference, 1e-9), quantiles)
    return Latency(
        float(median),
        float(low),
        float(high),
        float(ratio),
        float(ratio_low),
        float(ratio_high),
        rounds=len(times),
    )
