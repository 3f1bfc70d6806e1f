"""Convolutions: with respect to the data each is the other's transpose, with respect to the weights one product a tap."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, TypeAlias

from surgeon.grad.registry import derivative
from surgeon.grad.windows import spread, window_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surgeon.grad.step import Step
    from surgeon.grad.tape import Size, Value
    from surgeon.grad.windows import Window

    Gradients: TypeAlias = Sequence[Value | None]


@derivative("Conv", parameters=(1, 2))
def conv(op: Step, x: Value, w: Value, b: Value | None = None) -> Gradients:
    """https://onnx.ai/onnx/operators/onnx__Conv.html; see Dumoulin and Visin, arXiv 1603.07285, for the transpose."""
    window = window_of(op, op.dims(1)[2:], op.dims(0)[2:], op.out_dims()[2:])
    groups, outputs, inputs = int(op.attribute("group")), op.dims(1)[0], op.dims(1)[1]
    taps = _taps(op, x, op.dy(), window, groups)  # [taps, groups, inputs, outputs]
    dw = taps.transpose(1, 3, 2, 0).reshape([outputs, inputs, *window.kernel])
    return spread(op, op.dy(), w, window, groups), dw, None if b is None else _over_places(op)


@derivative("ConvTranspose", parameters=(1, 2))
def conv_transpose(op: Step, x: Value, w: Value, b: Value | None = None) -> Gradients:
    """https://onnx.ai/onnx/operators/onnx__ConvTranspose.html."""
    window = window_of(op, op.dims(1)[2:], op.out_dims()[2:], op.dims(0)[2:])
    extra = op.attribute("output_padding") or [0] * len(window.kernel)
    if any(more >= stride for more, stride in zip(extra, window.strides, strict=True)):
        op.stop("its output is padded by a whole stride")
    groups, inputs, outputs = int(op.attribute("group")), op.dims(1)[0], op.dims(1)[1]
    taps = _taps(op, op.dy(), x, window, groups)  # [taps, groups, outputs, inputs]
    dw = taps.transpose(1, 3, 2, 0).reshape([inputs, outputs, *window.kernel])
    dx = op.tape.op("Conv", op.dy(), w, group=groups, **window.attributes)
    return dx, dw, None if b is None else _over_places(op)


def _over_places(op: Step) -> Value:
    return op.dy().sum([0, *range(2, len(op.out_dims()))])


def _taps(op: Step, large: Value, small: Value, window: Window, groups: int) -> Value:
    """What each tap multiplies: ``[taps, groups, channels of large, channels of small]``, summed over all places."""
    count = len(window.kernel)
    large = large.pad([0, 0, *window.before], [0, 0, *window.after])
    transposed = op.node.op == "ConvTranspose"
    steps: list[Size] = [op.size(0, k) if transposed else op.out_size(k) for k in range(2, count + 2)]
    channels = [op.dims(0)[1] // groups, op.out_dims()[1] // groups]
    of_large, of_small = channels[::-1] if transposed else channels
    alone = of_large == of_small == 1
    lined = small if alone else small.reshape([0, groups, of_small, -1]).transpose(0, 1, 3, 2)
    found = []
    for tap in product(*map(range, window.kernel)):
        starts = [at * gap for at, gap in zip(tap, window.dilations, strict=True)]
        ends = [
            (size - 1) * stride + (start + 1)
            for size, stride, start in zip(steps, window.strides, starts, strict=True)
        ]
        seen = large.slice(range(2, count + 2), starts, ends, window.strides)
        if alone:
            summed = (seen * lined).sum([0, *range(2, count + 2)]).reshape([1, groups, 1, 1])
        else:
            summed = (seen.reshape([0, groups, of_large, -1]) @ lined).sum([0], keepdims=True)
        found.append(summed)
    return found[0] if len(found) == 1 else op.tape.op("Concat", *found, axis=0)
