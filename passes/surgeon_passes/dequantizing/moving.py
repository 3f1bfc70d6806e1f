"""Operators that move quantized values without computing: they move the numbers instead, once these are known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.graph.weights import peek
from surgeon.quantized import MOVING
from surgeon_passes.dequantizing.numbers import as_one, is_small
from surgeon_passes.dequantizing.registry import dequantizes

if TYPE_CHECKING:
    from surgeon_passes.dequantizing.writer import Given, Writer

# besides those that only move values: the largest stays the largest, and means keep their place
_ALIKE = {
    **MOVING,
    **dict.fromkeys(
        ["MaxPool", "Resize", "DepthToSpace", "SpaceToDepth", "ReduceMax", "ReduceMin"], slice(1)
    ),
}


@dequantizes(*_ALIKE)
def move(writer: Writer, given: Given) -> bool:
    """The node waits until somebody says what its integers mean."""
    held = [tensor for tensor in given.inputs[_ALIKE[given.operator]] if tensor.name]
    if not any(_quantized(writer, tensor) for tensor in held):
        return False
    for output in given.outputs:
        writer.moved[output.name] = given
    return True


def _quantized(writer: Writer, tensor: gs.Tensor) -> bool:
    if isinstance(tensor, gs.Constant):
        return is_small(tensor.dtype) and int(np.prod(tensor.shape)) > 1
    return writer.find("steps", tensor.name) is not None or writer.find("moved", tensor.name) is not None


def moved_numbers(
    writer: Writer, given: Given, tensor: gs.Tensor, scale: gs.Tensor, zero: gs.Tensor | None
) -> gs.Tensor:
    """The numbers of an output of ``given``, whose integers have this scale and zero point.

    Raises:
        UnsupportedModelError: There are different ones for each channel: where its axis was before is not known.
    """
    key = ("moved", given.outputs[0].name, scale.name, "" if zero is None else zero.name)
    scale, zero = _for_all(writer, scale), None if zero is None else _for_all(writer, zero)
    if isinstance(scale, gs.Constant) and peek(scale).size > 1:
        raise given.unsupported("its integers have scales of their own for each channel")

    def write() -> list[gs.Tensor]:
        places = range(len(given.inputs))[_ALIKE[given.operator]]
        inputs: list[gs.Tensor | None] = [each if each.name else None for each in given.inputs]
        for place in places:
            if inputs[place] is not None:
                inputs[place] = writer.number(given[place], scale, zero)
        if given.operator == "Pad" and given.attributes.get("mode", "constant") == "constant":
            while len(inputs) < 3:
                inputs.append(None)
            inputs[2] = _padding(writer, given.optional(2), scale, zero)
        outputs = [gs.Variable(writer.fresh(f"{each.name}_float")) for each in given.outputs]
        attributes: dict[str, Any] = given.attributes
        writer.put(given.operator, tuple(inputs), outputs, given.node.domain, **attributes)
        return outputs

    outputs = writer.once(key, write)
    found: gs.Tensor = outputs[[each.name for each in given.outputs].index(tensor.name)]
    return found


def _for_all(writer: Writer, parameter: gs.Tensor) -> gs.Tensor:
    """A scale or zero point as one, where all channels have the same."""
    if not isinstance(parameter, gs.Constant) or peek(parameter).size == 1:
        return parameter
    return writer.constant(as_one(peek(parameter)))


def _padding(writer: Writer, value: gs.Tensor | None, scale: gs.Tensor, zero: gs.Tensor | None) -> gs.Tensor:
    """What is padded with, as a number; nothing given means the integer zero."""
    if value is None:
        kind = np.uint8 if zero is None else zero.dtype
        value = writer.constant(np.zeros((), kind))
    return writer.number(value, scale, zero)
