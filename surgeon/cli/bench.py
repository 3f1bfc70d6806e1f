"""What ``surgeon bench`` measures: models side by side on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.errors import UsageError
from surgeon.suggest import did_you_mean

if TYPE_CHECKING:
    from surgeon.stats.chunks import Feeds, Input

MOST_ROUNDS = 100_000  # with --seconds


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        threads: Threads of onnxruntime.
        rounds: How often each model runs; with ``seconds`` at most.
        warm_up: Rounds before that, which do not count.
        seconds: How long to measure, roughly, instead of a number of rounds.
        batch: Samples in a run where the models leave it open.
        sizes: Sizes of other dimensions that the models leave open, by name.
        data: Real inputs, as text, or None for seeded random ones.
        preprocess: How images become arrays.
        seed: Seed of random inputs.
    """

    threads: int = 1
    rounds: int = 30
    warm_up: int = 3
    seconds: float | None = None
    batch: int = 1
    sizes: Mapping[str, int] = field(default_factory=dict)
    data: str | None = None
    preprocess: str | None = None
    seed: int = 0


def measure(models: Sequence[Path], settings: Settings) -> dict[str, Any]:
    """Measures latency, interleaved.

    Inputs have the same names in all models; shapes and types may differ, each model gets inputs that fit it.

    Returns:
        ``{schema, threads, rounds, warm_up, batch, clock, models: [{model, median_ms, p10_ms, p90_ms, ratio, ratio_p10,
        ratio_p90, ratio_error, speedup}]}``; ratios are medians of the pairs with the first model.

    Raises:
        UsageError: The models do not take the same inputs, or a size is given for a dimension that none has.
        DataError: The data do not fit.
        UnsupportedModelError: A model cannot be read or run.
    """
    import time

    from surgeon.stats.latency import clock, compare

    feeds = _feeds(models, settings)
    measured = compare(
        models,
        feeds,
        threads=settings.threads,
        runs=settings.rounds,
        warm_up=settings.warm_up,
        seconds=settings.seconds,
    )
    rows = [
        {
            "model": str(model),
            "median_ms": each.median_ms,
            "p10_ms": each.p10_ms,
            "p90_ms": each.p90_ms,
            "ratio": each.ratio,
            "ratio_p10": each.ratio_p10,
            "ratio_p90": each.ratio_p90,
            "ratio_error": each.error,
            "speedup": 1.0 / each.ratio if each.ratio else None,
        }
        for model, each in zip(models, measured, strict=True)
    ]
    return {
        "schema": 1,
        "threads": settings.threads,
        "rounds": measured[0].rounds,
        "warm_up": settings.warm_up,
        "batch": settings.batch,
        "clock": "wall" if clock(settings.threads) is time.perf_counter else "processor",
        "models": rows,
    }


def _feeds(models: Sequence[Path], settings: Settings) -> list[Feeds]:
    """Makes or reads inputs for each model."""
    from surgeon.api import load
    from surgeon.measure import inputs_of
    from surgeon.stats.data import open_data
    from surgeon.stats.synthetic import synthetic

    inputs = [inputs_of(load(model)) for model in models]
    names = sorted(entry.name for entry in inputs[0])
    for model, entries in zip(models, inputs, strict=True):
        own = sorted(entry.name for entry in entries)
        if own != names:
            raise UsageError(
                f"has the inputs {', '.join(own)}, unlike {models[0]} with {', '.join(names)}",
                where=str(model),
                hint="models are compared on the same inputs; measure them one by one",
            )
    _check_sizes(settings.sizes, inputs)
    if settings.data is None:
        return [synthetic(entries, settings.seed, settings.batch, settings.sizes) for entries in inputs]
    return [
        next(iter(open_data(settings.data, entries, settings.preprocess, batch=settings.batch)))[0]
        for entries in inputs
    ]


def _check_sizes(sizes: Mapping[str, int], inputs: Sequence[Sequence[Input]]) -> None:
    known = {size for entries in inputs for entry in entries for size in entry.shape if isinstance(size, str)}
    for name in sizes:
        if name not in known:
            raise UsageError(
                "no input has an open dimension of this name",
                where=f"--size {name}",
                hint=did_you_mean(name, known, what="open dimensions") if known else None,
            )
