"""What onnxruntime runs in place of a model: the graph after its rewrites, and the time each kernel takes."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from surgeon.errors import UnsupportedModelError
from surgeon.graph import sessions
from surgeon.stats.chunks import Array

_MARK = re.compile(r"#(\d+)#")
_BLOCKED = "_nchwc"  # onnxruntime calls a blocked convolution by its result and this
_ENDING = "_kernel_time"


@dataclass(frozen=True)
class Kernel:
    """One kernel of a profiled run.

    Attributes:
        node: Name of the model's node it computes, empty for what onnxruntime added.
        operator: What runs: ``QLinearConv``, ``ReorderInput``, …
        microseconds: Lower quartile of its time over the runs.
        elements: Elements of its first output.
    """

    node: str
    operator: str
    microseconds: float
    elements: int


def optimized(model: onnx.ModelProto, *, threads: int = 1) -> onnx.ModelProto:
    """Returns the graph that onnxruntime runs on this machine, after all its rewrites.

    Raises:
        UnsupportedModelError: onnxruntime cannot load the model.
    """
    with tempfile.TemporaryDirectory(prefix="surgeon-kernels-") as folder:
        target = Path(folder) / "optimized.onnx"
        options = sessions.session_options(threads)
        options.optimized_model_filepath = str(target)
        _open(model, options)
        return onnx.load(str(target))


def profile(
    model: onnx.ModelProto, feeds: Mapping[str, Array], *, seconds: float, most: int = 50
) -> list[Kernel]:
    """Times every kernel of a model, with one thread.

    A fused kernel is counted for one of the nodes it computes. The lower quartile leaves out runs that other
    programs interrupted.

    Args:
        model: A model whose nodes have unique names.
        feeds: Its inputs.
        seconds: How long to run, roughly; three runs at least.
        most: Runs at most.

    Raises:
        UnsupportedModelError: onnxruntime cannot load or run the model.
        DataError: The feeds do not fit.
    """
    names = [node.name for node in model.graph.node]
    results = {output: node.name for node in model.graph.node for output in node.output}
    marked = onnx.ModelProto()
    marked.CopyFrom(model)
    for index, node in enumerate(marked.graph.node):
        node.name = f"#{index}#"
    times: dict[str, list[float]] = {}
    facts: dict[str, tuple[str, int]] = {}
    for event in _events(marked, feeds, seconds, most):
        name = event["name"].removesuffix(_ENDING)
        times.setdefault(name, []).append(float(event["dur"]))
        facts[name] = event["args"]["op_name"], _elements(event["args"].get("output_type_shape") or [])
    return [
        Kernel(_node(name, names, results), *facts[name][:1], float(np.percentile(each, 25)), facts[name][1])
        for name, each in times.items()
    ]


def _events(
    model: onnx.ModelProto, feeds: Mapping[str, Array], seconds: float, most: int
) -> list[dict[str, Any]]:
    """Runs a model with onnxruntime's profiler and returns what it says of kernels."""
    import time

    with tempfile.TemporaryDirectory(prefix="surgeon-profile-") as folder:
        options = sessions.session_options(1)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        runner = _open(model, options)
        end = time.perf_counter() + seconds
        for turn in range(most):
            sessions.run(runner, feeds)
            if turn >= 3 and time.perf_counter() > end:
                break
        events = json.loads(Path(runner.end_profiling()).read_text(encoding="utf-8"))
    return [event for event in events if event.get("cat") == "Node" and str(event["name"]).endswith(_ENDING)]


def _node(name: str, names: list[str], results: Mapping[str, str]) -> str:
    found = _MARK.search(name)
    if found:
        return names[int(found[1])]
    return results.get(name.removesuffix(_BLOCKED), "") if name.endswith(_BLOCKED) else ""


def _elements(outputs: list[dict[str, list[int]]]) -> int:
    return prod(next(iter(outputs[0].values()))) if outputs and outputs[0] else 0


def _open(model: onnx.ModelProto, options: ort.SessionOptions) -> ort.InferenceSession:
    try:
        return sessions.open_with(model, options, timed=True)
    except sessions.RUNTIME_ERRORS as error:
        raise UnsupportedModelError(
            f"onnxruntime cannot load the model: {sessions.first_line(error)}",
            hint="the model has to load in onnxruntime before and after surgery",
        ) from error
