"""Windows that slide over axes, of convolutions and pools: where they lie, and the way back from what they see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_graphsurgeon as gs

    from surgeon.grad.step import Step
    from surgeon.grad.tape import Value
    from surgeon.graph.shapes import Shapes


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


def window_of(op: Step, kernel: Sequence[int], large: Sequence[int], small: Sequence[int]) -> Window:
    """The window between sizes ``large`` and ``small``; `spread` adds what ``ceil_mode`` adds to its padding.

    Raises:
        Barrier: Its padding is not known.
    """
    count = len(kernel)
    strides, dilations = (list(op.attribute(name) or [1] * count) for name in ("strides", "dilations"))
    extra = op.attribute("output_padding") or [0] * count
    mode = op.attribute("auto_pad", "NOTSET")
    window = Window(list(kernel), strides, dilations, [0] * count, [0] * count)
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


def floored(graph: gs.Graph, shapes: Shapes) -> None:
    """Take ``ceil_mode`` from pools where it adds no window: before opset 22 onnxruntime's inference counts one it never makes."""
    for node in graph.nodes:
        if not node.attrs.get("ceil_mode") or node.attrs.get("auto_pad", "NOTSET") != "NOTSET":
            continue
        read, made = node.inputs[0].name, node.outputs[0].name
        dims, after = shapes.dims.get(read), shapes.dims.get(made)
        if dims is None or after is None or any(shapes.dynamic[read][2:]):
            continue
        count = len(dims) - 2
        pads = node.attrs.get("pads") or [0] * 2 * count
        strides, gaps = (node.attrs.get(name) or [1] * count for name in ("strides", "dilations"))
        spans = [(taps - 1) * gap + 1 for taps, gap in zip(node.attrs["kernel_shape"], gaps, strict=True)]
        padded = [sum(each) for each in zip(dims[2:], pads[:count], pads[count:], strict=True)]
        places = zip(padded, spans, strides, strict=True)
        if after[2:] == tuple((size - span) // stride + 1 for size, span, stride in places):
            del node.attrs["ceil_mode"]


def spread(op: Step, dy: Value, w: Value, window: Window, group: int = 1) -> Value:
    """What the windows of ``op`` saw, put back: the transpose of a convolution with ``w``, in the data's spatial shape."""
    count, dynamic = len(window.kernel), op.shapes.dynamic[op.node.inputs[0].name][2:]
    if not any(dynamic) or all(stride == 1 for stride in window.strides):
        sizes = zip(op.dims(0)[2:], op.out_dims()[2:], window.strides, window.span, strict=True)
        unseen = [
            size + window.before[k] + window.after[k] - (steps - 1) * stride - span
            for k, (size, steps, stride, span) in enumerate(sizes)
        ]
        further = [high + max(-rest, 0) for high, rest in zip(window.after, unseen, strict=True)]  # ceil_mode
        attributes = {
            **window._replace(after=further).attributes,
            "output_padding": [max(k, 0) for k in unseen],
        }
        return op.tape.op("ConvTranspose", dy, w, group=group, **attributes)
    whole = window._replace(before=[0] * count, after=[0] * count)
    found = op.tape.op("ConvTranspose", dy, w, group=group, **whole.attributes)
    found = found.pad([0] * (count + 2), [0, 0, *window.strides])  # a stride at most is seen by no tap
    axes = range(2, count + 2)
    ends = [op.size(0, axis) + low for axis, low in zip(axes, window.before, strict=True)]
    return found.slice(axes, window.before, ends)
