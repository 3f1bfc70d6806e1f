"""Prints what pruning without training does to pretrained models, as Markdown, each row as soon as it is finished.

    SURGEON_SHARED=FOLDER python tests/benchmarks/accuracy.py [--models PATTERN] [--factors 0.769,0.5] [--cache FILE]

Classifiers are scored by top-1 at 1.3 and 2 times fewer MACs, the others at 1.3 times by the cosine of their outputs with
the original's (of class maps: the share that is equal) and by their task where there is a figure for it; no label is seen
before. Under each table stand the targets that could not be met, and why. With --cache every cell is written down when it
is finished, and a second call goes on where the first one was stopped. Cells are compared on the same held-out samples;
--seeds draws further calibration samples, and cells become mean ± standard deviation.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from pretrained import Session, Task, dense, tasks

import surgeon
from surgeon.errors import SurgeonError
from surgeon.graph.sessions import session
from surgeon_passes.prune import Prune
from surgeon_passes.reconstruct import Reconstruct

FACTORS = (0.769, 0.5)  # of the MACs: 1.3 and 2 times fewer
DENSE, COSINE, METRIC = "dense", "cosine", "task"
WAYS: dict[str, Mapping[str, Any]] = {
    "random": {"score": "random", "reconstruct": False},
    "random + refit": {"score": "random"},
    "magnitude": {"score": "l2", "reconstruct": False},
    "magnitude + refit": {"score": "l2"},
    "obs": {},
    "obs + reconstruct": {},
}
TRAINED = "reconstruct"  # ways that end so are followed by that pass
Cell = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """One column: a way to prune and what of the result is shown."""

    way: str
    shows: str

    @property
    def title(self) -> str:
        """What stands above it."""
        return f"{self.shows}, {self.way}"


CLASSIFIERS = [Column(way, METRIC) for way in (DENSE, *WAYS)]
OTHERS = [
    *(Column(way, COSINE) for way in ("magnitude", "magnitude + refit", "obs", "obs + reconstruct")),
    *(Column(way, METRIC) for way in (DENSE, "obs", "obs + reconstruct")),
]


class Cells:
    """Everything measured so far, in a file where one is given."""

    def __init__(self, path: Path | None, batches: int | None = None) -> None:
        self.path, self.batches = path, batches
        self.known: dict[str, Cell] = {}
        if path is not None and path.exists():
            self.known = json.loads(path.read_text(encoding="utf-8"))

    def get(self, task: Task, way: str, factor: float, seed: int) -> Cell:
        """A cell from the file, or measured now."""
        key = f"{task.model}/{way}"
        if way != DENSE:
            key += f"/{factor:g}/{seed}" + (f"/{self.batches} batches" if self.batches else "")
        if key not in self.known:
            started = time.perf_counter()
            cell = measured(task, way, factor, seed, self.batches)
            self.known[key] = {**cell, "seconds": time.perf_counter() - started, "peak_mb": peak_megabytes()}
            if self.path is not None:
                draft = self.path.with_name(f"{self.path.name}.new")
                draft.write_text(json.dumps(self.known, indent=1), encoding="utf-8")
                draft.replace(self.path)
        return self.known[key]


def peak_megabytes() -> int:
    """The largest resident memory of this process so far (Linux counts in kilobytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def measured(task: Task, way: str, factor: float, seed: int, batches: int | None = None) -> Cell:
    """Prunes one model in one way and scores it; ``why`` says what was in the way."""
    if way == DENSE:
        return {METRIC: None if task.metric is None else task.metric(dense(task.model))}
    try:
        found = surgeon.run(
            task.path,
            [Prune(**WAYS[way]), *([Reconstruct()] if way.endswith(TRAINED) else [])],
            data=lambda: islice(task.calibration(seed), batches),
            target={"macs": factor},
            seed=seed,
            threads=1,
        )
    except SurgeonError as error:
        return {"why": str(error).replace(str(task.path), task.path.name)}
    macs = found.report["after"]["macs"] / found.report["before"]["macs"]
    run = session(found.model)
    cell: Cell = {"macs": macs, "warnings": found.report["warnings"]}
    cell[METRIC] = None if task.metric is None else task.metric(run)
    if not task.classifier:
        cell[COSINE] = likeness(task, run)
    return cell


def likeness(task: Task, run: Session) -> float:
    """Mean over batches and outputs of the cosine with the original's; of integers, the share that are equal."""
    alike = []
    for feeds in task.trial():
        for ours, theirs in zip(run.run(None, feeds), dense(task.model).run(None, feeds), strict=True):
            if theirs.dtype.kind != "f":
                alike.append(float((ours == theirs).mean()))
                continue
            a, b = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
            alike.append(float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30)))
    return float(np.mean(alike))


def shown(values: Sequence[float], *, percent: bool) -> str:
    """Mean, and the standard deviation of several."""
    scale, digits = (100, 2) if percent else (1, 4)
    text = f"{scale * np.mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {scale * np.std(values, ddof=1):.{digits}f}"


def row(
    task: Task, factor: float, columns: Sequence[Column], seeds: int, cells: Cells
) -> tuple[str, dict[str, str]]:
    """One line of a table, and why what is missing in it is missing, by column."""
    texts, macs, seconds, whys = [], [], 0.0, {}
    ways = dict.fromkeys(column.way for column in columns)
    every = {
        way: [cells.get(task, way, factor, k) for k in range(1 if way == DENSE else seeds)] for way in ways
    }
    for way, measures in every.items():
        seconds += sum(cell["seconds"] for cell in measures)
        macs += [cell["macs"] for cell in measures if "macs" in cell]
        reasons = [cell["why"] for cell in measures if "why" in cell]
        if reasons:
            whys[way] = reasons[0]
    for column in columns:
        values = [cell.get(column.shows) for cell in every[column.way]]
        known = [value for value in values if value is not None]
        texts.append(shown(known, percent=task.classifier) if known else "–")
    reached = f"{min(macs):.3f}–{max(macs):.3f}" if macs else "–"
    unit = [] if task.classifier else [task.unit or "–"]
    return f"| {' | '.join([task.model, *unit, *texts, reached, f'{seconds:.0f}'])} |", whys


def table(
    title: str, chosen: Sequence[Task], factor: float, columns: Sequence[Column], seeds: int, cells: Cells
) -> Iterator[str]:
    """The lines of one table, as they are finished."""
    heads = ["model", *([] if all(task.classifier for task in chosen) else ["task"])]
    heads += [column.way if chosen[0].classifier else column.title for column in columns]
    heads += ["MACs left", "seconds"]
    yield f"\n{title}\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}"
    missing = []
    for task in chosen:
        line, whys = row(task, factor, columns, seeds, cells)
        yield line
        for why in dict.fromkeys(whys.values()):
            ways = [way for way, reason in whys.items() if reason == why]
            missing.append(f"- {task.model}, {', '.join(ways)}: {why}")
    if missing:
        yield "\n" + "\n".join(missing)


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--models", default="*", help="pattern of model names; several, separated by commas")
    parser.add_argument(
        "--factors",
        default=",".join(map(str, FACTORS)),
        help="MACs that are left; default %(default)s; models that are no classifiers take the first",
    )
    parser.add_argument(
        "--columns", default="*", help="patterns of ways to prune: dense, random, obs, …; separated by commas"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, help="calibration samples to draw; cells become mean ± deviation"
    )
    parser.add_argument(
        "--batches", type=int, help="calibrate with at most so many batches, to try things out"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        help="a JSON file that keeps finished cells; remove it when the code has changed",
    )
    return parser.parse_args()


def matches(name: str, patterns: str) -> bool:
    """Whether a name matches one of several patterns."""
    return any(fnmatch.fnmatchcase(name, pattern.strip()) for pattern in patterns.split(","))


def selected(columns: Sequence[Column], patterns: str) -> list[Column]:
    """The columns whose way of pruning matches."""
    return [column for column in columns if matches(column.way, patterns)]


def main() -> None:
    """Prints both tables."""
    asked = arguments()
    cells = Cells(asked.cache, asked.batches)
    factors = [float(text) for text in asked.factors.split(",")]
    chosen = [task for task in tasks() if matches(task.model, asked.models)]
    classifiers = [task for task in chosen if task.classifier]
    others = [task for task in chosen if not task.classifier]
    parts = [
        (
            f"Top-1 in %, {1 / factor:.2g} times fewer MACs",
            classifiers,
            factor,
            selected(CLASSIFIERS, asked.columns),
        )
        for factor in factors
    ]
    parts.append(
        (
            f"Other tasks, {1 / factors[0]:.2g} times fewer MACs",
            others,
            factors[0],
            selected(OTHERS, asked.columns),
        )
    )
    for title, models, factor, columns in parts:
        if models and columns:
            for line in table(title, models, factor, columns, asked.seeds, cells):
                print(line, flush=True)
    print(f"\nLargest resident memory {peak_megabytes()} MB")


if __name__ == "__main__":
    main()
