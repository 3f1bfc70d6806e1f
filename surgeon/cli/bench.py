"""What ``surgeon bench`` measures: models side by side on the same inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surgeon.errors import UsageError


def measure(
    models: Sequence[Path],
    *,
    threads: int,
    rounds: int,
    batch: int,
    data: str | None,
    preprocess: str | None,
    seed: int,
) -> dict[str, Any]:
    """Measures latency, interleaved.

    Returns:
        ``{schema, threads, rounds, batch, models: [{model, median_ms, p10_ms, p90_ms, ratio, speedup}]}``; ratios are
        medians of the pairs with the first model.

    Raises:
        UsageError: The models do not take the same inputs.
        DataError: The data do not fit.
    """
    from surgeon.api import load
    from surgeon.measure import inputs_of
    from surgeon.stats.data import open_data
    from surgeon.stats.latency import compare
    from surgeon.stats.synthetic import synthetic

    inputs = inputs_of(load(models[0]))
    for other in models[1:]:
        names = sorted(entry.name for entry in inputs_of(load(other)))
        if names != sorted(entry.name for entry in inputs):
            raise UsageError(f"has the inputs {', '.join(names)}, unlike {models[0]}", where=str(other))
    if data is None:
        feeds = synthetic(inputs, seed, batch)
    else:
        feeds, _ = next(iter(open_data(data, inputs, preprocess, batch=batch)))
    measured = compare(models, feeds, threads=threads, runs=rounds)
    rows = [
        {
            "model": str(model),
            "median_ms": each.median_ms,
            "p10_ms": each.p10_ms,
            "p90_ms": each.p90_ms,
            "ratio": each.ratio,
            "speedup": 1.0 / each.ratio if each.ratio else None,
        }
        for model, each in zip(models, measured, strict=True)
    ]
    return {"schema": 1, "threads": threads, "rounds": rounds, "batch": batch, "models": rows}
