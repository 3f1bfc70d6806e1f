"""Pools."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from surgeon.grad.registry import derivative
from surgeon.grad.scatter import ADDS, add, put
from surgeon.grad.windows import spread, window_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from surgeon.grad.step import Step
    from surgeon.grad.tape import Size, Value
    from surgeon.grad.windows import Window

    Gradients: TypeAlias = Sequence[Value | None]


@derivative("MaxPool", since=8)
def max_pool(op: Step, x: Value) -> Gradients:
    """The first of the largest in a window gets its gradient, as in other frameworks: the operator tells where that is.

    Windows that overlap may name a place twice. Before opset 16 nothing adds these up, so every so many windows that do
    not overlap are put back together.
    """
    window = _window(op)
    _, places = op.tape.ops("MaxPool", x, outputs=2, **{**op.node.attrs, "storage_order": 0})
    places.dtype = np.dtype(np.int64)
    zeros, dy = x.zeros().reshape([-1]), op.dy()
    rounds = [-(-span // stride) for span, stride in zip(window.span, window.strides, strict=True)]
    if op.opset >= ADDS and max(rounds) > 1:
        return (add(zeros, places.reshape([-1]), dy.reshape([-1]), 0).reshape(x.shape()),)
    axes = range(2, len(op.dims(0)))
    found = []
    for starts in product(*map(range, rounds)):
        indices, updates = (
            each.slice(axes, starts, [op.out_size(axis) for axis in axes], rounds)
            if max(rounds) > 1
            else each
            for each in (places, dy)
        )
        found.append(put(zeros, indices.reshape([-1]), updates.reshape([-1]), 0))
    return (op.tape.total(found).reshape(x.shape()),)


@derivative("AveragePool")
def average_pool(op: Step, x: Value) -> Gradients:
    """Every place a window saw gets the same share."""
    window = _window(op)
    return (_spread(op, _over_counts(op, op.dy(), window), window),)


@derivative("LpPool", since=2)
def lp_pool(op: Step, x: Value) -> Gradients:
    """Of (Σ |x|ᵖ)^(1/p): sign(x) |x|ᵖ⁻¹ y¹⁻ᵖ."""
    share = _spread(op, _over_norm(op, op.dy()), _window(op))
    return (share * _powered(op, x),)


@derivative("GlobalAveragePool")
def global_average_pool(op: Step, x: Value) -> Gradients:
    """Every place gets the same share."""
    share = op.dy()
    for axis in range(2, len(op.dims(0))):
        size = op.size(0, axis)
        share = share / (size if isinstance(size, int) else size.cast(x.dtype))
    return (share.expand_as(x),)


@derivative("GlobalMaxPool")
def global_max_pool(op: Step, x: Value) -> Gradients:
    """The gradient goes to the element that was chosen, in equal shares to several."""
    chosen = x.equals(op.y()).cast(x.dtype)
    return (chosen * (op.dy() / chosen.sum(range(2, len(op.dims(0))), keepdims=True)),)


@derivative("GlobalLpPool", since=2)
def global_lp_pool(op: Step, x: Value) -> Gradients:
    """As `lp_pool`."""
    return (_over_norm(op, op.dy()) * _powered(op, x),)


def _window(op: Step) -> Window:
    return window_of(op, op.attribute("kernel_shape"), op.dims(0)[2:], op.out_dims()[2:])


def _spread(op: Step, dy: Value, window: Window) -> Value:
    """Summed over all windows that saw a place: a transposed convolution with ones, channel by channel."""
    count = len(window.kernel)
    if not any([*window.before, *window.after]) and window.kernel == window.strides and _whole(op, window):
        sizes: list[Size] = [0, 0]
        wide = dy.unsqueeze(*(3 + 2 * k for k in range(count)))
        for k, taps in enumerate(window.kernel):
            wide = op.tape.op("Concat", *[wide] * taps, axis=3 + 2 * k)
            sizes.append(op.size(0, 2 + k))
        return wide.reshape(sizes)
    alone = dy.reshape([-1, 1, *(op.out_size(axis) for axis in range(2, count + 2))])
    found = spread(op, alone, op.tape.constant(np.ones((1, 1, *window.kernel), dy.dtype)), window)
    return found.reshape(op.x().shape())


def _whole(op: Step, window: Window) -> bool:
    """Whether windows that do not overlap see every place."""
    return (
        not any(op.out_dynamic()[2:])
        and max(window.dilations) == 1
        and all(
            size == steps * taps
            for size, steps, taps in zip(op.dims(0)[2:], op.out_dims()[2:], window.kernel, strict=True)
        )
    )


def _over_counts(op: Step, dy: Value, window: Window) -> Value:
    """Divided by how many places each window saw."""
    padded = any([*window.before, *window.after])
    counts = bool(op.attribute("count_include_pad")) or not padded
    if counts and not op.attribute("ceil_mode"):
        return dy / float(np.prod(window.kernel))
    for axis, spatial in enumerate(range(2, len(op.dims(0)))):
        if op.out_dynamic()[spatial]:
            number = _counted(op, window, axis, whole=counts)
        else:
            number = op.tape.constant(_count(op, window, axis, whole=counts).astype(dy.dtype))
        dy = dy / number.reshape([-1] + [1] * (len(window.kernel) - 1 - axis))
    return dy


def _count(op: Step, window: Window, axis: int, *, whole: bool) -> NDArray[Any]:
    """How many places each window sees along an axis, those of its padding included or not."""
    low, high = (-window.before[axis], window.after[axis]) if whole else (0, 0)
    starts = np.arange(op.out_dims()[2 + axis]) * window.strides[axis] - window.before[axis]
    places = starts[:, None] + np.arange(window.kernel[axis]) * window.dilations[axis]
    seen: NDArray[Any] = ((places >= low) & (places < op.dims(0)[2 + axis] + high)).sum(1)
    return seen


def _counted(op: Step, window: Window, axis: int, *, whole: bool) -> Value:
    """The same for an axis whose size is open: a convolution of ones with ones."""
    tape, dtype, taps = op.tape, op.x().dtype, window.kernel[axis]
    low, high = window.before[axis], window.after[axis]
    further = window.strides[axis] * taps if op.attribute("ceil_mode") else 0
    size = op.size(0, 2 + axis)
    line = tape.filled(1, [1, 1, size + low + high if whole else size], dtype)
    line = line.pad([0, 0, 0 if whole else low], [0, 0, further + (0 if whole else high)])
    ones = tape.constant(np.ones((1, 1, taps), dtype))
    steps: dict[str, Any] = {"strides": [window.strides[axis]], "dilations": [window.dilations[axis]]}
    return tape.op("Conv", line, ones, **steps).slice([2], [0], [op.out_size(2 + axis)])


def _over_norm(op: Step, dy: Value) -> Value:
    """y¹⁻ᵖ dy; nothing where the norm is zero."""
    p, y = int(op.attribute("p")), op.y()
    return dy if p == 1 else op.tape.where(y > 0, dy * op.tape.where(y > 0, y, 1.0) ** float(1 - p), 0.0)


def _powered(op: Step, x: Value) -> Value:
    p, sign = int(op.attribute("p")), x.sign()
    return sign if p == 1 else x if p == 2 else sign * op.tape.op("Abs", x) ** float(p - 1)
