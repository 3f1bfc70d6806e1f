"""The weights of a model as numbers to rank by: narrow and quantized types become floats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.graph.weights import peek

if TYPE_CHECKING:
    from numpy.typing import NDArray

NARROW = ("int8", "uint8", "int4", "uint4", "int2", "uint2", "int16", "uint16")


def is_parameter(constant: gs.Constant) -> bool:
    """Whether the constant is a scale or zero point of quantization: it says nothing about what matters."""
    users = list(constant.outputs)
    return bool(users) and all(
        node.op in ("DequantizeLinear", "QuantizeLinear") and node.inputs[0] is not constant for node in users
    )


def as_numbers(constant: gs.Constant) -> NDArray[np.floating] | None:
    """The values as floats, dequantized where a DequantizeLinear reads them; None for what is no weight."""
    values = peek(constant)
    if values.dtype.kind == "f":
        return values
    name = values.dtype.name
    if name in NARROW:
        return _dequantized(constant, values)
    if name == "bfloat16" or name.startswith("float"):  # types numpy does not count as floats
        return values.astype(np.float32)
    return None


def _dequantized(constant: gs.Constant, values: NDArray[Any]) -> NDArray[np.floating]:
    numbers = values.astype(np.float32)
    node = next((n for n in constant.outputs if n.op == "DequantizeLinear" and n.inputs[0] is constant), None)
    if node is None or not all(isinstance(tensor, gs.Constant) for tensor in node.inputs[1:]):
        return numbers
    axis = int(node.attrs.get("axis", 1))
    if len(node.inputs) > 2:
        numbers = numbers - _spread(peek(node.inputs[2]), values.shape, axis)
    scaled: NDArray[np.floating] = numbers * _spread(peek(node.inputs[1]), values.shape, axis)
    return scaled


def _spread(parameter: NDArray[Any], shape: tuple[int, ...], axis: int) -> NDArray[np.floating]:
    """A scale or zero point per tensor, per position of ``axis`` or per block of it, shaped to multiply the weight."""
    parameter = parameter.astype(np.float32)
    if parameter.size == 1:
        return parameter.reshape(())
    if parameter.ndim == 1:
        return parameter.reshape([-1 if k == axis % len(shape) else 1 for k in range(len(shape))])
    blocks = parameter.shape[axis]
    width = -(-shape[axis] // blocks)
    spread: NDArray[np.floating] = np.repeat(parameter, width, axis=axis)
    return np.take(spread, range(shape[axis]), axis=axis)
