"""Prints how far outputs are off after `sparsify` and `cluster`, with data and without, as Markdown, each row as soon as it is finished.

    python tests/benchmarks/values.py MODEL... [--sparsity 0.75] [--clusters 16] [--samples 48] [--timeout 240]

The passes with data are compared with the largest weights as they are, and with the nearest of the values that k-means finds. Errors
are squared differences over the mean square of each output, on samples that neither has seen: those of the task where the model is
one of `pretrained`, random ones of another seed where it is not. Seconds are those of a processor, in the run with data. Ends with 1
where a run fails, or is worse with data than without.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import stored_feeds
import subprocesses
from pretrained import tasks
from quantized import OURS, SURGEON_RUN

from surgeon.graph.load import load
from surgeon.stats.compare import output_errors
from surgeon.stats.data import graph_inputs, open_data
from surgeon.stats.synthetic import synthetic_dataset

SCRIPT = f"{Path(stored_feeds.__file__).resolve()}:calibration"
COMPARED = 128  # samples, at most
HEAD = "| model | pass | zeros | values | error | without data | ratio | not fitted | seconds |"
RULE = "|---|---|---|---|---|---|---|---|---|"
Feeds = stored_feeds.Feeds


@dataclass(frozen=True)
class Pair:
    """A pass as a user would call it, and what it is compared with."""

    name: str
    passes: str
    plain: str


def pairs(sparsity: float, clusters: int) -> tuple[Pair, ...]:
    """What is compared."""
    share, few = f"sparsity={sparsity}", f"clusters={clusters}"
    return (
        Pair(
            "sparsify",
            f"sparsify{{{share}}}",
            f"sparsify{{{share} score=magnitude scope=layer refit=false}}",
        ),
        Pair("cluster", f"cluster{{{few}}}", f"cluster{{{few} refit=false}}"),
    )


@dataclass(frozen=True)
class Made:
    """What a run made.

    Attributes:
        why: Why it failed, or None.
        seconds: Of a processor, that it took.
        error: Of the outputs.
        zeros: The share of the weights that are zero.
        values: The most different values of a weight.
        left: Operators that were not fitted, and why.
    """

    why: str | None
    seconds: float
    error: float = float("nan")
    zeros: float = float("nan")
    values: int = 0
    left: tuple[str, ...] = ()


def feeds_of(model: Path, seed: int, samples: int) -> Iterator[Feeds]:
    """The task's samples for calibration (seed 0) or comparison, evenly spread over all there are, or random ones."""
    task = next((each for each in tasks() if each.model == model.stem), None)
    if task is not None:
        every = list(stored_feeds.singles(task.calibration(0) if seed == 0 else task.trial()))
        chosen = np.linspace(0, len(every) - 1, min(samples, len(every)))
        return (every[k] for k in chosen.astype(int))
    made = synthetic_dataset(graph_inputs(load(model)), seed, samples)
    return (dict(feeds) for feeds, _ in made)


def run(model: Path, passes: str, samples: Path, held: Path, timeout: float) -> Made:
    """One run of surgeon in a process of its own, and what its result puts out."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "made.onnx"
        command = [*SURGEON_RUN, str(model), "--passes", passes, "--data", SCRIPT]
        command += ["--threads", "1", "--force", "-o", str(output)]
        started = _children()
        ended = subprocesses.run(command, timeout, {**OURS, "SURGEON_FEEDS": str(samples)})
        seconds = _children() - started
        if ended.why is not None:
            return Made(ended.why, seconds)
        report = json.loads(output.with_suffix(".report.json").read_text(encoding="utf-8"))
        error = error_of(model, output, held)
    return described(report["passes"][-1], error, seconds)


def _children() -> float:
    """Seconds of a processor that programs started here have taken, those that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def error_of(model: Path, output: Path, held: Path) -> float:
    """The mean error of the outputs on what has been held back."""
    os.environ["SURGEON_FEEDS"] = str(held)
    data = open_data(SCRIPT, graph_inputs(load(model)))
    return float(output_errors(onnx.load(model), onnx.load(output), data, threads=1).mean())


def described(record: dict[str, Any], error: float, seconds: float) -> Made:
    """What the report of a pass says."""
    tensors = [each for each in record["tensors"] if "elements" in each]
    elements = sum(each["elements"] for each in tensors)
    zeros = elements - sum(each["nonzeros"] for each in tensors)
    fitted = any(each["error_after"] is not None for each in record["tensors"])
    silent = [each["node"] for each in record["tensors"] if each["error_after"] is None]
    known = {each["node"]: each["reason"] for each in record["left"]}
    left = [f"{node}: {known.get(node, 'nobody says why')}" for node in silent] if fitted else []
    most = max((each.get("values", 0) for each in record["tensors"]), default=0)
    return Made(None, seconds, error, zeros / max(elements, 1), most, tuple(left))


def is_worse(found: Made, plain: Made) -> bool:
    """Whether a run failed, or is farther off than what it is compared with; what is not a number is farther than all."""
    if found.why is not None or plain.why is not None:
        return True
    return not found.error <= plain.error


def line(model: Path, pair: Pair, found: Made, plain: Made) -> str:
    """One row."""
    why = found.why or plain.why
    if why is not None:
        return f"| {model.stem} | {pair.name} | | | failed: {why} | | | | {found.seconds:.0f} |"
    ratio = found.error / plain.error if plain.error else float("nan")
    cells = [model.stem, pair.name, f"{found.zeros:.4f}", str(found.values or "")]
    cells += [f"{found.error:.3g}", f"{plain.error:.3g}", f"{ratio:.3f}", str(len(found.left))]
    return f"| {' | '.join([*cells, format(found.seconds, '.0f')])} |"


def rows(model: Path, chosen: Sequence[Pair], samples: int, timeout: float) -> Iterator[tuple[str, bool]]:
    """The rows of a model, and whether they are as they should not be."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        seen, held = Path(first), Path(second)
        stored_feeds.store(feeds_of(model, 0, samples), seen)
        stored_feeds.store(feeds_of(model, 1, COMPARED), held)
        for pair in chosen:
            found = run(model, pair.passes, seen, held, timeout)
            plain = run(model, pair.plain, seen, held, timeout)
            notes = "".join(f"\n<!-- {each} -->" for each in found.left)
            yield line(model, pair, found, plain) + notes, is_worse(found, plain)


def main() -> int:
    """Runs everything and prints the table; 1 where something is worse with data than without, or failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--sparsity", type=float, default=0.75)
    parser.add_argument("--clusters", type=int, default=16)
    parser.add_argument("--samples", type=int, default=48, help="calibration samples")
    parser.add_argument("--timeout", type=float, default=240, help="seconds for each run")
    asked = parser.parse_args()
    print(HEAD, RULE, sep="\n", flush=True)
    wrong = 0
    for model in asked.models:
        for text, bad in rows(model, pairs(asked.sparsity, asked.clusters), asked.samples, asked.timeout):
            print(text, flush=True)
            wrong += bad
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
