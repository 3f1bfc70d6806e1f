"""Convolutions: channels of the input are contracted with the weight, its output channels are new."""

from __future__ import annotations

from surgeon.axes import Atom, Axis, product
from surgeon.ops.op import Axes, Op
from surgeon.ops.registry import rule


@rule("Conv")
def conv(op: Op, x: Axes, w: Axes, b: Axes | None = None) -> list[Axes]:
    """``C_in = G x I``, ``C_out = G x O``, weight ``[G x O, I, kernel]``; depthwise is ``I = 1``."""
    return convolve(op, x, w, b)


def convolve(
    op: Op,
    x: Axes,
    w: Axes,
    b: Axes | None,
    places: tuple[int, int, int] = (0, 1, 2),
    *,
    channels_last: bool = False,
) -> list[Axes]:
    """A convolution of any layout of inputs; ``places`` are the inputs data, weight and bias.

    ``x`` and what is returned have their channels behind the batch, also where the tensors have them last.
    """
    channels, out = grouped(op, w[1].size, w[0].size)
    op.unify(x[1], product(*channels))
    op.unify(w[1], channels[1])
    op.unify(w[0], product(*out))
    return slide(op, x, w, b, product(*out), w[1:], places, channels_last=channels_last)


@rule("ConvTranspose")
def conv_transpose(op: Op, x: Axes, w: Axes, b: Axes | None = None) -> list[Axes]:
    """``C_in = G x I``, ``C_out = G x O``, weight ``[G x I, O, kernel]``."""
    group = op.attribute("group", 1)
    channels, out = grouped(op, w[0].size // group, w[1].size * group)
    op.unify(x[1], product(*channels))
    op.unify(w[0], product(*channels))
    op.unify(w[1], out[1])
    return slide(op, x, w, b, product(*out), contracted=[product(*channels), *w[2:]])


def grouped(op: Op, inner: int, outputs: int) -> tuple[Axes, Axes]:
    """Channels of the input and of the output: ``[G, I]`` and ``[G, O]``, with the attribute ``group`` = G."""
    group = op.attribute("group", 1)
    groups, each, out = Atom(group), Atom(inner), Atom(outputs // group)
    if group > 1:
        op.resize_attribute("group", groups)
    return [groups, each], [groups, out]


def slide(
    op: Op,
    x: Axes,
    w: Axes,
    b: Axes | None,
    out: Axis,
    contracted: Axes,
    places: tuple[int, int, int] = (0, 1, 2),
    *,
    channels_last: bool = False,
) -> list[Axes]:
    """The weight slides over what is behind batch and channels; ``places`` are the inputs data, weight and bias."""
    data, weight, bias = places
    op.pin(w[2:], "kernel taps")
    sizes = op.out_dims()[1:-1] if channels_last else op.out_dims()[2:]
    extents: Axes = []
    for axis, size, alone in zip(x[2:], sizes, _positions_apart(op, w), strict=True):
        if alone and axis.size == size:
            extents.append(axis)
        else:
            op.pin(axis, "spatial extent")
            extents.append(op.fixed(size, "spatial extent"))
    if b is not None:
        op.unify(b[0], out)
    op.contract(weight, *contracted)
    transposed = op.node.op == "ConvTranspose"
    op.multiply(op.refs(data) if transposed else op.out_refs(), op.refs(weight, range(1, len(w))))
    op.zeros(factors=[data, weight], terms=[bias])
    return [[x[0], out, *extents]]


def _positions_apart(op: Op, w: Axes) -> list[bool]:
    """Along which spatial axes every position is computed from its own alone, as in a product of matrices."""
    count = len(w) - 2
    strides, pads = op.attribute("strides") or [1] * count, op.attribute("pads") or [0] * 2 * count
    added = op.attribute("output_padding") or [0] * count
    fixed = op.attribute("output_shape") is not None
    return [
        w[2 + k].size == strides[k] == 1 and not (fixed or pads[k] or pads[k + count] or added[k])
        for k in range(count)
    ]
