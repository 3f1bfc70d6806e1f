"""Gemms with constant factors and constant biases of any shape as plain ones: ``A B + C`` with a vector C.

8-bit kernels know no others: onnxruntime fuses a Gemm with factors only as long as it has no bias, and its quantizer reads a
bias channel by channel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from surgeon_passes.quantizing.choose import read_by


def make_plain(model: onnx.ModelProto, excluded: Callable[[str], bool]) -> None:
    """Multiplies factors into constants, and repeats a bias for every channel that has less of it.

    Args:
        model: A model; it is changed in place, and what it computes is not.
        excluded: Whether a node or tensor name is to be left alone.
    """
    constants = _Constants.of(model)
    for node in model.graph.node:
        if node.op_type != "Gemm" or node.domain not in ("", "ai.onnx"):
            continue
        if not any(excluded(name) for name in (node.name, *node.input, *node.output) if name):
            _make_plain(node, constants)


def _make_plain(node: onnx.NodeProto, constants: _Constants) -> None:
    given = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    weight = constants.floats(node.input[1])
    if weight is None:
        return
    biased = len(node.input) > 2 and node.input[2] != ""
    bias = constants.floats(node.input[2]) if biased else None
    done = {"alpha"} if biased and bias is None else {"alpha", "beta"}
    if given.get("alpha", 1.0) != 1:
        constants.replace(node, 1, weight * np.float32(given["alpha"]))
    if bias is not None:
        channels = weight.shape[0 if given.get("transB", 0) else 1]
        values = bias * np.float32(given.get("beta", 1.0))
        if values.shape[-1:] in ((), (1,), (channels,)) and max(values.shape[:-1], default=1) == 1:
            values = np.broadcast_to(values.reshape(-1), (channels,))
        if values.shape != bias.shape or given.get("beta", 1.0) != 1:
            constants.replace(node, 2, values)
    kept = [each for each in node.attribute if each.name not in done]
    del node.attribute[:]
    node.attribute.extend(kept)


@dataclass
class _Constants:
    """The constants of a graph.

    Attributes:
        graph: The graph.
        entries: Its constants by name.
        users: How often each tensor is read.
    """

    graph: onnx.GraphProto
    entries: dict[str, TensorProto] = field(default_factory=dict)
    users: Counter[str] = field(default_factory=Counter)

    @staticmethod
    def of(model: onnx.ModelProto) -> _Constants:
        graph = model.graph
        overridable = {entry.name for entry in graph.input}
        entries = {entry.name: entry for entry in graph.initializer if entry.name not in overridable}
        return _Constants(graph, entries, Counter(_read(graph)))

    def floats(self, name: str) -> NDArray[np.float32] | None:
        """The values of a constant; None for what is none, or of another type."""
        entry = self.entries.get(name)
        if entry is None or entry.data_type != TensorProto.FLOAT:
            return None
        return numpy_helper.to_array(entry)

    def replace(self, node: onnx.NodeProto, index: int, values: NDArray[np.float32]) -> None:
        """Gives a node another constant, under the old name where nobody else reads it."""
        name = node.input[index]
        made = numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name)
        if self.users[name] == 1:
            self.entries[name].CopyFrom(made)
            return
        self.users[name] -= 1
        made.name = f"{name}_of_{node.name}"
        while made.name in self.users or made.name in self.entries:
            made.name += "_"
        self.graph.initializer.append(made)
        self.entries[made.name] = self.graph.initializer[-1]
        self.users[made.name] = 1
        node.input[index] = made.name


def _read(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from read_by(node)
    yield from (output.name for output in graph.output)
