"""Half precision: weights and arithmetic in float16, the model's inputs and outputs as they were."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from surgeon.errors import GateError
from surgeon.graph.halves import loads

_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Half:
    """A model in half precision.

    Attributes:
        model: The model.
        left: Nodes that compute in float32 without having been asked for, name to (operator, reason).
    """

    model: onnx.ModelProto
    left: dict[str, tuple[str, str]]


def to_half(model: onnx.ModelProto, kept: Collection[str], folder: Path) -> Half:
    """Returns the model with float16 inside; constants beyond its range become the largest float16, see `beyond_range`.

    onnxruntime's layout optimizer crashes — the process, not an exception — on some float16 convolutions and
    transpositions, so the result is first loaded by a process of its own; where that dies, these stay float32.

    Args:
        model: A float32 model whose nodes have unique names.
        kept: Names of nodes that stay float32.
        folder: A temporary folder.

    Raises:
        GateError: onnxruntime does not load the result any way.
    """
    convolutions, transpositions = ["Conv", "ConvTranspose"], ["Transpose"]
    for blocked in ([], transpositions, convolutions, [*convolutions, *transpositions]):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        half: onnx.ModelProto = convert_float_to_float16(
            copy,
            keep_io_types=True,
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, *blocked],
            node_block_list=sorted(kept),
        )
        del half.graph.value_info[:]
        path = folder / "half.onnx"
        onnx.save(half, str(path))
        if loads(path):
            return Half(half, dict(_left(model, blocked)))
    raise GateError("onnxruntime does not load this model in half precision", where="pass quantize")


def beyond_range(model: onnx.ModelProto, kept: Collection[str]) -> dict[str, float]:
    """Finds the constants with finite numbers that float16 has not, and the largest of them each.

    Args:
        model: A float32 model.
        kept: Names of nodes that stay float32, with what only they read.
    """
    constants = {entry.name: entry for entry in model.graph.initializer}
    for node in model.graph.node:
        constants.update((node.output[0], each.t) for each in node.attribute if each.name == "value")
    read = {name for node in model.graph.node if node.name not in kept for name in node.input}
    found = {}
    for name, tensor in constants.items():
        if name in read and tensor.data_type == onnx.TensorProto.FLOAT:
            values = np.abs(numpy_helper.to_array(tensor))
            largest = float(values.max(initial=0.0, where=np.isfinite(values)))
            if largest > _LARGEST:
                found[name] = largest
    return found


def _left(model: onnx.ModelProto, crashing: Collection[str]) -> Iterator[tuple[str, tuple[str, str]]]:
    for node in model.graph.node:
        if node.op_type in crashing:
            yield node.name, (node.op_type, "onnxruntime crashes on one of its kind in half precision")
        elif node.op_type in DEFAULT_OP_BLOCK_LIST:
            yield node.name, (node.op_type, "onnxruntime has it in float32 alone")
