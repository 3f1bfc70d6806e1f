"""Convolutions: with respect to the data each is the other's transpose, with respect to the weights one product a tap."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from surgeon.grad.registry import derivative

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surgeon.grad.step import Step
    from surgeon.grad.tape import Size, Value

    Gradients: TypeAlias = Sequence[Value | None]


class Window(NamedTuple):
    """How taps slide over the larger side: numbers per spatial axis."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]

    @property
    def span(self) -> list[int]:
        """From the first tap to the last."""
        return [(taps - 1) * gap + 1 for taps, gap in zip(self.kernel, self.dilations, strict=True)]

    @property
    def attributes(self) -> dict[str, Any]:
        """As ONNX has them."""
        return {"strides": self.strides, "dilations": self.dilations, "pads": [*self.before, *self.after]}


def _window(op: Step, large: Sequence[int], small: Sequence[int]) -> Window:
    """The window of a convolution from sizes ``large`` to ``small``, or of a transposed one the other way round."""
    kernel = list(op.dims(1)[2:])
    count = len(kernel)
    strides, dilations = (list(op.attribute(name) or [1] * count) for name in ("strides", "dilations"))
    extra = op.attribute("output_padding") or [0] * count
    mode = op.attribute("auto_pad", "NOTSET")
    window = Window(kernel, strides, dilations, [0] * count, [0] * count)
    if mode in ("SAME_UPPER", "SAME_LOWER") or op.attribute("output_shape"):
        dynamic = (*op.out_dynamic()[2:], *op.shapes.dynamic[op.node.inputs[0].name][2:])
        if any(dynamic) and any(stride != 1 for stride in strides):
            op.stop(f"its padding ({mode}) changes with the size of its input")
        for k, (size, steps, span) in enumerate(zip(large, small, window.span, strict=True)):
            total = max((steps - 1) * strides[k] + span + extra[k] - size, 0)
            window.before[k] = total // 2 if mode == "SAME_UPPER" else total - total // 2
            window.after[k] = total - window.before[k]
    elif mode == "NOTSET":
        pads = list(op.attribute("pads") or [0] * 2 * count)
        window.before[:], window.after[:] = pads[:count], pads[count:]
    return window


@derivative("Conv", parameters=(1, 2))
def conv(op: Step, x: Value, w: Value, b: Value | None = None) -> Gradients:
    """https://onnx.ai/onnx/operators/onnx__Conv.html; see Dumoulin and Visin, arXiv 1603.07285, for the transpose."""
    window = _window(op, op.dims(0)[2:], op.out_dims()[2:])
    groups, outputs, inputs = int(op.attribute("group")), op.dims(1)[0], op.dims(1)[1]
    taps = _taps(op, x, op.dy(), window, groups)  # [taps, groups, inputs, outputs]
    dw = taps.transpose(1, 3, 2, 0).reshape([outputs, inputs, *window.kernel])
    return _spread(op, w, window), dw, None if b is None else _over_places(op)


def _spread(op: Step, w: Value, window: Window) -> Value:
    """The gradient with respect to the data of a convolution, in the data's shape."""
    count, dynamic = len(window.kernel), op.shapes.dynamic[op.node.inputs[0].name][2:]
    group = op.attribute("group")
    if not any(dynamic) or all(stride == 1 for stride in window.strides):
        sizes = zip(op.dims(0)[2:], op.out_dims()[2:], window.strides, window.span, strict=True)
        unseen = [
            size + window.before[k] + window.after[k] - (steps - 1) * stride - span
            for k, (size, steps, stride, span) in enumerate(sizes)
        ]
        return op.tape.op(
            "ConvTranspose", op.dy(), w, group=group, output_padding=unseen, **window.attributes
        )
    whole = window._replace(before=[0] * count, after=[0] * count)
    spread = op.tape.op("ConvTranspose", op.dy(), w, group=group, **whole.attributes)
    spread = spread.pad([0] * (count + 2), [0, 0, *window.strides])  # a stride at most is seen by no tap
    axes = range(2, count + 2)
    ends = [op.size(0, axis) + low for axis, low in zip(axes, window.before, strict=True)]
    return spread.slice(axes, window.before, ends)


@derivative("ConvTranspose", parameters=(1, 2))
def conv_transpose(op: Step, x: Value, w: Value, b: Value | None = None) -> Gradients:
    """https://onnx.ai/onnx/operators/onnx__ConvTranspose.html."""
    window = _window(op, op.out_dims()[2:], op.dims(0)[2:])
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
