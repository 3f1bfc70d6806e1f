"""What is known of channels from data: their largest, smallest and mean square values, one number each in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from surgeon.graph import sessions
from surgeon.graph.save import to_model
from surgeon.stats.data import runnable

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from surgeon.stats.data import Dataset

    Array = NDArray[Any]

_AXES_ARE_AN_INPUT = 18  # the opset since which they are
_KINDS = ("ReduceMax", "ReduceMin", "ReduceMean")


@dataclass(frozen=True)
class Range:
    """Statistics of one tensor, with as many axes as it has, those without channels of size 1."""

    high: Array
    low: Array
    square: Array

    @property
    def finite(self) -> bool:
        """Whether all numbers are."""
        return bool(
            np.isfinite(self.high).all() and np.isfinite(self.low).all() and np.isfinite(self.square).all()
        )


def find_ranges(
    graph: gs.Graph, channels: Mapping[str, tuple[int, ...]], data: Dataset, *, threads: int
) -> dict[str, Range]:
    """Run a graph over data; one batch is in memory at a time, and of what is computed inside only the statistics.

    Args:
        graph: The graph.
        channels: For each tensor to look at its shape, with 1 for axes that are reduced.
        data: The samples.
        threads: Threads for onnxruntime.
    """
    names = list(channels)
    runner = sessions.session(_with_statistics(to_model(graph), channels), threads=threads)
    ends = len(graph.outputs)
    found: dict[str, Range] = {}
    total = 0
    for feeds, _ in runnable(data, runner):
        samples = len(next(iter(feeds.values()))) if feeds else 1
        values = [array.astype(np.float64) for array in sessions.run(runner, feeds)[ends:]]
        total += samples
        for k, name in enumerate(names):
            high, low, square = values[3 * k : 3 * k + 3]
            if name in found:
                before = found[name]
                high, low = np.maximum(high, before.high), np.minimum(low, before.low)
                square = before.square + (square - before.square) * (samples / total)
            found[name] = Range(high, low, square)
    return found


def _with_statistics(model: onnx.ModelProto, channels: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    version = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    graph = tapped.graph
    for k, (name, shape) in enumerate(channels.items()):
        axes = [axis for axis, size in enumerate(shape) if size == 1]
        stem = f"surgeon/ranges/{k}"
        graph.node.append(onnx.helper.make_node("Mul", [name, name], [f"{stem}/squared"]))
        if version >= _AXES_ARE_AN_INPUT:
            graph.initializer.append(onnx.numpy_helper.from_array(np.array(axes, np.int64), f"{stem}/axes"))
        for kind in _KINDS:
            output = f"{stem}/{kind}"
            source = f"{stem}/squared" if kind == "ReduceMean" else name
            if not axes:  # which would mean all of them
                graph.node.append(onnx.helper.make_node("Identity", [source], [output]))
                graph.output.add(name=output)
                continue
            node = onnx.helper.make_node(kind, [source], [output], keepdims=1)
            if version >= _AXES_ARE_AN_INPUT:
                node.input.append(f"{stem}/axes")
            else:
                node.attribute.append(onnx.helper.make_attribute("axes", axes))
            graph.node.append(node)
            graph.output.add(name=output)
    return tapped
