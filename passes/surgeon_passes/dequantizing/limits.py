"""Activations that are hidden in the range of a quantized tensor.

Quantizers drop a Relu in front of a range that begins at zero, because rounding to that range does the same. The
other end of a range says as much only where it is a known bound; elsewhere it is where calibration ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.graph.weights import peek
from surgeon_passes.dequantizing.numbers import is_small

if TYPE_CHECKING:
    from surgeon_passes.dequantizing.writer import Writer

_RELU6 = 6.0  # Howard et al., MobileNets: the bound made for quantization
_NEVER_NEGATIVE = {"Relu", "Sigmoid", "Softmax", "Abs", "Exp", "Sqrt", "HardSigmoid", "Softplus"}
_KEEPS_SIGN = {
    *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Reshape", "Flatten", "Transpose"),
    *("Squeeze", "Unsqueeze", "Identity", "Slice", "Dropout", "Gather"),
}


def limited(writer: Writer, numbers: gs.Tensor, scale: gs.Tensor, zero: gs.Tensor | None) -> gs.Tensor:
    """The numbers behind the Relu or Clip that quantizing them was."""
    if isinstance(numbers, gs.Constant) or not isinstance(scale, gs.Constant):
        return numbers
    kind = np.dtype(np.uint8 if zero is None else zero.dtype)
    if not is_small(kind) or not (zero is None or isinstance(zero, gs.Constant)):
        return numbers
    bounds = np.iinfo(kind)
    zeros = np.zeros(1, np.int64) if zero is None else peek(zero).astype(np.int64).ravel()
    if (zeros != bounds.min).any():
        return numbers
    steps = peek(scale).astype(np.float64).ravel()
    tops = steps * (bounds.max - bounds.min)
    if (abs(tops - _RELU6) <= steps / 2).all():
        low, high = (writer.constant(np.asarray(bound, peek(scale).dtype)) for bound in (0.0, _RELU6))
        return numbers if _is_relu6(numbers) else writer.add("Clip", numbers, low, high)
    return numbers if _never_negative(numbers) else writer.add("Relu", numbers)


def _is_relu6(tensor: gs.Tensor) -> bool:
    """Whether a Clip to this range made the tensor."""
    return _clips(tensor, 0.0, _RELU6)


def _clips(tensor: gs.Tensor, low: float, high: float) -> bool:
    if not tensor.inputs or tensor.inputs[0].op != "Clip":
        return False
    node = tensor.inputs[0]
    bounds = [node.attrs.get("min"), node.attrs.get("max")]
    for place in (1, 2):
        if len(node.inputs) > place and isinstance(node.inputs[place], gs.Constant):
            bounds[place - 1] = float(peek(node.inputs[place]).ravel()[0])
    return bounds[0] is not None and bounds[0] >= low and bounds[1] is not None and bounds[1] <= high


def _never_negative(tensor: gs.Tensor) -> bool:
    if not tensor.inputs:
        return False
    node = tensor.inputs[0]
    if node.op in _NEVER_NEGATIVE or _clips(tensor, 0.0, np.inf):
        return True
    return node.op in _KEEPS_SIGN and _never_negative(node.inputs[0])
