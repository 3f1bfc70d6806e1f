"""Weights whose few values stay few: what shares a value has to share a scale as well.

See `surgeon.stats.promises`. Zeros need no care: every grid here has one.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper

from surgeon.stats.matrices import WEIGHTED, Weight
from surgeon.stats.promises import Promise, promise_of
from surgeon_passes.quantizing.blocks import in_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_LARGEST, _REDUCED = 127, 64  # what onnxruntime makes of the largest weight in 8 bits, and in 7
_LAYOUT = ("group", "transA", "transB")  # attributes that say which axis of a weight is which


def weight_of(node: onnx.NodeProto, index: int, values: Array) -> Weight | None:
    """The weight of an operator; None where that input is none."""
    if node.domain not in ("", "ai.onnx") or index not in WEIGHTED.get(node.op_type, ()) or values.ndim < 2:
        return None
    given = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    attributes = {name: given[name] for name in _LAYOUT if name in given}
    inputs = [*(gs.Variable.empty() for _ in range(index)), gs.Constant("weight", values)]
    return Weight(gs.Node(node.op_type, attrs=attributes, inputs=inputs), index)


def few_values(node: onnx.NodeProto, index: int, values: Array) -> Promise | None:
    """What a weight promises, if its different values are few; None for no or other weights."""
    weight = weight_of(node, index, values)
    promise = None if weight is None else promise_of(weight.matrices())
    return promise if promise is not None and promise.sharing else None


def with_one_scale(model: onnx.ModelProto, nodes: Collection[str]) -> dict[str, list[onnx.NodeProto]]:
    """The weights that are to have one scale, for few values are all that they have; each with its operators.

    Args:
        model: A model with named nodes.
        nodes: Those that get kernels for few bits.
    """
    weights = {entry.name: entry for entry in model.graph.initializer}
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for index in WEIGHTED.get(node.op_type, ()) if node.name in nodes else ():
            name = node.input[index] if index < len(node.input) else ""
            if name in weights and weights[name].data_type == onnx.TensorProto.FLOAT:
                promise = few_values(node, index, numpy_helper.to_array(weights[name]))
                if promise is not None and promise.sharing == "tensor":
                    found.setdefault(name, []).append(node)
    return found


def repeated(values: Array, axis: int, *, reduce_range: bool) -> list[dict[str, Any]]:
    """What onnxruntime's quantizer is told to give every channel along an axis the scale of the whole weight."""
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    scale = np.array(largest / (_REDUCED if reduce_range else _LARGEST), np.float32)
    return [{"axis": axis, "scale": scale, "zero_point": np.array(0, np.int8)}]


def eight_bits(node: onnx.NodeProto, index: int, values: Array, promise: Promise) -> tuple[Array, Array]:
    """Integers around zero, and scales that broadcast, one for what shares its values."""
    weight = weight_of(node, index, values)
    if weight is None:
        raise ValueError(f"input {index} of {node.op_type} is no weight")
    matrices = weight.matrices().astype(np.float32)
    groups, outputs = matrices.shape[0], matrices.shape[3]
    rows = matrices.reshape(1, -1)
    if promise.sharing == "channel":
        rows = np.moveaxis(matrices, 3, 1).reshape(groups * outputs, -1)
    rounded = in_blocks(np.ascontiguousarray(rows), rows.shape[1], 8, symmetric=True)
    integers = (rounded.steps[:, 0].astype(np.int16) - 128).astype(np.int8)
    if promise.sharing == "tensor":
        inside = weight.outer(integers.reshape(matrices.shape), values.shape)
        return inside, rounded.scales.reshape([1] * values.ndim)
    inside = integers.reshape(groups, outputs, *matrices.shape[1:3]).transpose(0, 2, 3, 1)
    scales = np.broadcast_to(rounded.scales.reshape(groups, 1, 1, outputs), matrices.shape)
    return weight.outer(inside, values.shape), _narrowed(weight.outer(scales, values.shape))


def _narrowed(array: Array) -> Array:
    """Without what an axis repeats."""
    for axis in range(array.ndim):
        first = array.take([0], axis)
        if (array == first).all():
            array = first
    return np.ascontiguousarray(array)
