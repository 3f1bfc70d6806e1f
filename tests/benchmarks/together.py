"""Pruning and quantization in one run of surgeon: what both together leave of accuracy, size and time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import subprocesses
from pretrained import CIFAR10, DATA, Task
from quantized import FLOAT, OURS, SURGEON_RUN, Cell, Cells, Settings, cell, drop, latency_of, surgeon_version

from surgeon.errors import SurgeonError
from surgeon.graph.sessions import RUNTIME_ERRORS, first_line, session

ORIGINAL = "original"
HEADS = ("model", "run", "against", "top-1 of that", "top-1", "drop", "bytes ×", "latency ×", "seconds", "MB")
Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One call of ``surgeon run``.

    Attributes:
        passes: What runs.
        options: Further options.
        searches: Whether accuracy is measured on the search part on the way.
        against: The run whose result is compared with, or None for the original.
    """

    passes: str
    options: tuple[str, ...]
    searches: bool = False
    against: Run | None = None

    @property
    def title(self) -> str:
        """What stands in the table."""
        return " ".join((self.passes, *self.options))


_HALF = ("--target", "macs=0.474")  # 2.11 times fewer
PRUNED = Run("prune", _HALF)
TARGET_RUNS = {"cifar10_resnet56": (PRUNED, Run("prune,quantize", _HALF, against=PRUNED))}
BUDGET = Run("prune,quantize", ("--max-drop", "0.01"), searches=True)


def runs_of(task: Task) -> tuple[Run, ...]:
    """The runs of a model: a target where one is stated, and a budget of accuracy wherever there are data to search by."""
    budget = (BUDGET,) if kind_of(task) is not None else ()
    return (*TARGET_RUNS.get(task.model, ()), *budget)


def kind_of(task: Task) -> str | None:
    """What the data script's functions for a model end in; None for models of other data."""
    family, _, name = task.model.partition("_")
    return CIFAR10.get(name) if family == "cifar10" else None


def measured(task: Task, run: Run, settings: Settings, cells: Cells) -> Cell:
    """A run from the file, or made now; the data script is read as a user would, labels only by the search."""
    key = f"{task.model}/{run.title}/{surgeon_version()}"
    return cells.get(key, lambda: _made(task, run, settings))


def _made(task: Task, run: Run, settings: Settings) -> Cell:
    script, kind = DATA / "cifar10.py", kind_of(task)
    with tempfile.TemporaryDirectory(prefix="together-") as folder:
        output = Path(folder) / "small.onnx"
        command = [*SURGEON_RUN, str(task.path), "--passes", run.passes, *run.options]
        command += ["--data", f"{script}:calibration{kind}", "--threads", "1", "-o", str(output)]
        if run.searches:
            command += ["--eval", f"{script}:search{kind}"]
        ended = subprocesses.run(command, settings.timeout, OURS)
        made: Cell = {"seconds": round(ended.seconds, 1), "peak_mb": ended.peak_mb}
        if ended.why is not None:
            return {**made, "why": ended.why}
        try:
            score = None if task.metric is None else task.metric(session(output))
            size, times = output.stat().st_size, latency_of(task, output)
        except (SurgeonError, *RUNTIME_ERRORS) as error:
            return {**made, "why": f"the result does not run: {first_line(error)}"}
        return {**made, "metric": score, "bytes": size, "latency": times}


def row_of(task: Task, run: Run, dense: Cell, against: Cell, found: Cell) -> Row:
    """One row as facts; ratios against the original, the drop against what the run is compared with."""
    title = ORIGINAL if run.against is None else run.against.title
    row: Row = {"model": task.model, "run": run.title, "against": title}
    row |= {name: found[name] for name in ("seconds", "peak_mb")}
    for why in (found.get("why"), against.get("why")):
        if why is not None:
            return row | {"why": why}
    before, after = against["metric"], found["metric"]
    row |= {"before": 100 * before, "result": 100 * after, "drop": drop(task, before, after)}
    return row | {"bytes": found["bytes"] / dense["bytes"], "latency": found["latency"]["ratio"]}


def line_of(row: Row) -> str:
    """One row as Markdown."""
    texts = [row["model"], row["run"], row["against"]]
    if "why" in row:
        texts += ["–", f"failed: {row['why']}", *["–"] * 3]
    else:
        texts += [f"{row['before']:.2f}", f"{row['result']:.2f}", f"{row['drop']:+.2f}"]
        texts += [f"{row['bytes']:.3f}", f"{row['latency']:.2f}"]
    return f"| {' | '.join([*texts, format(row['seconds'], '.0f'), str(row['peak_mb'])])} |"


def table(chosen: Sequence[Task], settings: Settings, cells: Cells, rows: list[Row]) -> Iterator[str]:
    """The lines of the table, as they are finished; ``rows`` collects their facts."""
    yield "\nPruned and quantized in one run; ratios against the original\n"
    yield f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}"
    for task in chosen:
        for run in runs_of(task):
            dense = cell(task, FLOAT, settings, cells)
            against = dense if run.against is None else measured(task, run.against, settings, cells)
            rows.append(row_of(task, run, dense, against, measured(task, run, settings, cells)))
            yield line_of(rows[-1])
