"""Measures of quantized models: each made in a process of its own, judged here, and written down when it is finished."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnxruntime as ort
import stored_feeds
import subprocesses
from accuracy import likeness
from integer_kernels import kernels
from pretrained import Task, dense

import surgeon
import surgeon_passes
from surgeon.errors import SurgeonError
from surgeon.graph.sessions import RUNTIME_ERRORS, first_line, session
from surgeon.stats import latency

HERE = Path(__file__).resolve().parent
FLOAT, SURGEON = "float", "surgeon"
RIVALS = ("ort-minmax", "ort-percentile", "nncf", "nncf-transformer")
TRANSFORMER = "nncf-transformer"
# the surgeon whose source is part of the key, whatever lies in the current folder (-P) or is installed
SURGEON_RUN = (sys.executable, "-P", "-m", "surgeon", "run")
OURS = {
    "PYTHONPATH": os.pathsep.join(
        str(Path(str(module.__file__)).resolve().parents[1]) for module in (surgeon, surgeon_passes)
    )
}
ROUNDS, LATENCY_SECONDS = (20, 200), 3.0
COMPARED = 512  # held-out samples whose outputs are compared; figures take all there are
Cell = dict[str, Any]


class Scale(NamedTuple):
    """How a task's figure is shown, and in which direction it gets worse."""

    factor: float = 100.0
    digits: int = 2
    better: int = 1


# shares are shown in percent; what is not listed is a share, of which more is better
SCALES = {
    "phoneme error": Scale(better=-1),
    "cross-entropy": Scale(1.0, 4, better=-1),
    "Y-PSNR in dB": Scale(1.0, 3),
}


def scale_of(task: Task) -> Scale:
    """How the figure of a task is shown."""
    return SCALES.get(task.unit, Scale())


def drop(task: Task, before: float, after: float) -> float:
    """How much worse a figure has become, in the unit it is shown in; below 0 is better than before."""
    scale = scale_of(task)
    return (before - after) * scale.better * scale.factor


@dataclass(frozen=True)
class Settings:
    """What every cell is made with.

    Attributes:
        samples: Calibration samples at most.
        timeout: Seconds that a quantizer may take.
        nncf_python: The interpreter that can import NNCF, or None.
        passes: What surgeon runs, by column.
        keep: A folder for the quantized models, or None.
        force: Whether surgeon gives out models that are slower than the original.
        draw: Which calibration samples are drawn, where there are more than are taken.
    """

    samples: int = 512
    timeout: float = 1800
    nncf_python: Path | None = None
    passes: dict[str, str] = field(default_factory=lambda: {SURGEON: "quantize"})
    keep: Path | None = None
    force: bool = False
    draw: int = 0


class Cells:
    """Everything measured so far, in a file where one is given; several runs may add to one file in turn."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[str, Cell] = {}
        self._read()

    def _read(self) -> None:
        if self.path is not None and self.path.exists():
            self.known |= json.loads(self.path.read_text(encoding="utf-8"))

    def get(self, key: str, measure: Callable[[], Cell]) -> Cell:
        """A cell from the file, or measured now."""
        if key not in self.known:
            cell = measure()
            self._read()
            self.known[key] = cell
            if self.path is not None:
                draft = self.path.with_name(f"{self.path.name}.new")
                draft.write_text(json.dumps(self.known, indent=1), encoding="utf-8")
                draft.replace(self.path)
        return self.known[key]


@cache
def surgeon_version() -> str:
    """The version, and a digest of the source, so that a cell is measured again when the code has changed."""
    digest = hashlib.sha256()
    for module in (surgeon, surgeon_passes):
        for path in sorted(Path(str(module.__file__)).parent.rglob("*.py")):
            digest.update(path.read_bytes())
    return f"surgeon {surgeon.__version__} {digest.hexdigest()[:10]}"


@cache
def rival_version(column: str, interpreter: str) -> str:
    """The packages behind a column, with their versions."""
    ended = subprocesses.run([interpreter, str(HERE / "rivals.py"), "--version", column], 60)
    return ended.output.strip() if ended.why is None else "unknown"


def interpreter(column: str, settings: Settings) -> str:
    """What runs a rival."""
    return str(settings.nncf_python) if column.startswith("nncf") else sys.executable


def key_of(task: Task, column: str, settings: Settings) -> str:
    """A cell's key: the model's content, the column with its samples, and the version of what makes it."""
    digest = hashlib.sha256(task.path.read_bytes()).hexdigest()[:8]
    if column == FLOAT:
        return f"{task.model} {digest}/{FLOAT}/onnxruntime {ort.__version__}"
    if column in settings.passes:
        version = f"{settings.passes[column]}/{surgeon_version()}"
    else:
        version = rival_version(column, interpreter(column, settings))
    return f"{task.model} {digest}/{column}/{settings.samples} samples/draw {settings.draw}/{version}"


def cell(task: Task, column: str, settings: Settings, cells: Cells) -> Cell:
    """What a column says of a model."""
    key = key_of(task, column, settings)
    if column == FLOAT:
        return cells.get(key, lambda: float_cell(task))
    return cells.get(key, lambda: quantized_cell(task, column, settings))


def float_cell(task: Task) -> Cell:
    """The original itself."""
    found = kernels(task.path)
    return {
        "metric": None if task.metric is None else task.metric(dense(task.model)),
        "bytes": task.path.stat().st_size,
        "operators": found.operators,
    }


def quantized_cell(task: Task, column: str, settings: Settings) -> Cell:
    """Quantizes a model as a column says, and judges the result; ``why`` says what was in the way."""
    with tempfile.TemporaryDirectory(prefix="quantized-") as folder:
        feeds, output = Path(folder) / "feeds", Path(folder) / "quantized.onnx"
        feeds.mkdir()
        samples = stored_feeds.store(
            stored_feeds.limited(task.calibration(settings.draw), settings.samples), feeds
        )
        command = command_of(task, column, settings, feeds, output)
        ended = subprocesses.run(command, settings.timeout, {**OURS, "SURGEON_FEEDS": str(feeds)})
        made: Cell = {"seconds": round(ended.seconds, 1), "peak_mb": ended.peak_mb, "samples": samples}
        if ended.why is not None:
            return {**made, "why": ended.why.replace(str(task.path), task.path.name)}
        made["notes"] = notes_of(ended.output)
        if settings.keep is not None:
            settings.keep.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(output, settings.keep / f"{task.model}.{column.replace(' ', '_')}.onnx")
        return {**made, **judged(task, output)}


def command_of(task: Task, column: str, settings: Settings, feeds: Path, output: Path) -> list[str]:
    """The program that quantizes."""
    if column not in settings.passes:
        program = [interpreter(column, settings), str(HERE / "rivals.py"), column]
        return [*program, str(task.path), str(feeds), str(output)]
    loader = f"{HERE / 'stored_feeds.py'}:calibration"
    command = [*SURGEON_RUN, str(task.path), "--data", loader]
    command += ["--passes", settings.passes[column], "--threads", "1", "-o", str(output)]
    return [*command, "--force"] if settings.force else command


def notes_of(output: str) -> list[str]:
    """What a rival notes in its last line."""
    last = output.strip().rsplit("\n", 1)[-1]
    return list(json.loads(last)["notes"]) if last.startswith("{") else []


def judged(task: Task, model: Path) -> Cell:
    """Metric, likeness of the outputs, size, time and kernels of a model against the original."""
    compared = replace(task, trial=lambda: stored_feeds.limited(task.trial(), COMPARED))
    try:
        run = session(model)
        found = kernels(model)
        return {
            "metric": None if task.metric is None else task.metric(run),
            "cosine": likeness(compared, run),
            "bytes": model.stat().st_size,
            "latency": latency_of(task, model),
            "integer": found.integer,
            "products": found.products,
            "conversions": found.conversions,
            "operators": found.operators,
        }
    except (SurgeonError, *RUNTIME_ERRORS) as error:
        return {"why": f"the result does not run: {first_line(error)}"}


def latency_of(task: Task, model: Path) -> Cell:
    """Time of one sample against the original's, in turns on one thread."""
    feeds = next(stored_feeds.singles(task.trial()))
    (pilot,) = latency.compare([task.path], feeds, runs=3)
    rounds = int(min(max(LATENCY_SECONDS / (2e-3 * pilot.median_ms), ROUNDS[0]), ROUNDS[1]))
    float_one, found = latency.compare([task.path, model], feeds, runs=rounds)
    return {
        "float_ms": float_one.median_ms,
        "ms": found.median_ms,
        "ratio": found.ratio,
        "undisturbed": found.p10_ms / float_one.p10_ms,  # what a busy machine changes least
        "rounds": rounds,
    }


def attends(task: Task) -> bool:
    """Whether a model has attention as NNCF's transformer type means it: a Softmax whose result is multiplied."""
    graph = onnx.load(task.path).graph
    weights = {name for node in graph.node if node.op_type == "Softmax" for name in node.output}
    return any(node.op_type == "MatMul" and weights & set(node.input) for node in graph.node)


def columns_of(task: Task, columns: list[str]) -> Iterator[str]:
    """The columns that say something about a model."""
    yield from (column for column in columns if column != TRANSFORMER or attends(task))
