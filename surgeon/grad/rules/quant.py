"""Quantization: rounding is passed straight through, what falls outside of the range is not.

See Bengio, Léonard and Courville, arXiv 1308.3432; with respect to scales it follows as by Esser et al., arXiv 1902.08153.
The gradient with respect to an integer tensor is one of the real numbers it stands for, in steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from onnx import TensorProto

from surgeon.grad.registry import derivative

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surgeon.grad.step import Step
    from surgeon.grad.tape import Value

    Gradients: TypeAlias = Sequence[Value | None]

RANGES: dict[int | None, tuple[int, int]] = {
    TensorProto.INT4: (-8, 7),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT8: (0, 255),
    TensorProto.INT16: (-32768, 32767),
    TensorProto.UINT16: (0, 65535),
}


@derivative("QuantizeLinear", rounds=True)
def quantize_linear(op: Step, x: Value, scale: Value, zero_point: Value | None = None) -> Gradients:
    """Of x / scale + zero point, rounded and cut off at the ends of the range."""
    kind = op.shapes.dtypes.get(op.node.outputs[0].name)
    if kind not in RANGES:
        op.stop("the range of its result is not known")
    least, most = RANGES[kind]
    share = x / _along(op, scale)
    steps = share if zero_point is None else share + _along(op, zero_point.cast(x.dtype))
    arriving = op.tape.where(
        steps < least - 0.5, 0.0, op.tape.where(steps > most + 0.5, 0.0, op.dy().cast(x.dtype))
    )
    gradient = arriving / _along(op, scale)
    return gradient, _for_scale(op, -gradient * share)


@derivative("DequantizeLinear")
def dequantize_linear(op: Step, x: Value, scale: Value, zero_point: Value | None = None) -> Gradients:
    """Of (x − zero point) scale."""
    steps = x.cast(scale.dtype)
    if zero_point is not None:
        steps -= _along(op, zero_point.cast(scale.dtype))
    return op.dy() * _along(op, scale), _for_scale(op, op.dy() * steps)


def _others(op: Step) -> list[int]:
    rank = len(op.dims(0))
    axis = int(op.attribute("axis", 1)) % rank
    return [k for k in range(rank) if k != axis]


def _along(op: Step, value: Value) -> Value:
    """A scale or zero point along the axis it is for."""
    if op.attribute("block_size") or len(op.dims(1)) > 1:
        op.stop("it quantizes in blocks")
    return value.unsqueeze(*_others(op)) if op.dims(1) and len(op.dims(0)) > 1 else value


def _for_scale(op: Step, gradient: Value) -> Value:
    if not op.dims(1):
        return gradient.sum()
    summed = gradient.sum(_others(op))
    return summed.sum([0], keepdims=True) if op.dims(1) == (1,) else summed
