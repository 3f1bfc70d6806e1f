"""Operators that put tensors together and take them apart along an axis, and what they cut or pad."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from surgeon.grad.registry import derivative
from surgeon.grad.scatter import back_to_axis

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surgeon.grad.step import Step
    from surgeon.grad.tape import Size, Value

    Gradients: TypeAlias = Sequence[Value | None]

TO_THE_END = 2**31 - 1  # an end of slices, more than any axis has


@derivative("Concat")
def concat(op: Step, *inputs: Value) -> Gradients:
    """Each gets its part."""
    axis = int(op.attribute("axis", 1)) % len(op.out_dims())
    starts: list[Size] = [0]
    for index in range(len(inputs)):
        size, last = op.size(index, axis), starts[-1]
        starts.append(size + last if isinstance(last, int) else last + size)
    bounds = pairwise(starts)
    return [op.dy().slice([axis], [start], [end]) for start, end in bounds]


@derivative("Split")
def split(op: Step, x: Value, sizes: Value | None = None) -> Gradients:
    """The parts put together; those the loss does not depend on are zeros."""
    axis = int(op.attribute("axis", 0)) % len(op.dims(0))
    parts = [op.dy(index) for index in range(len(op.node.outputs))]
    return (op.tape.op("Concat", *parts, axis=axis),)


@derivative("Slice")
def cut(op: Step, data: Value, *bounds: Value | None) -> Gradients:
    """https://onnx.ai/onnx/operators/onnx__Slice.html: zeros around, and between where there are steps."""
    rank = len(op.dims(0))
    starts, ends = _numbers(op, "starts", 1), _numbers(op, "ends", 2)
    count = len(op.attribute("starts", ())) or op.dims(1)[0]
    axes, steps = op.axes(range(count), 3), _numbers(op, "steps", 4) or [1] * count
    dy = op.dy()
    before: list[Size] = [0] * rank
    after: list[Size] = [0] * rank
    sizes: list[Size] = [op.out_size(k) for k in range(rank)]
    for k, axis in enumerate(axes):
        step, size = steps[k], op.size(0, axis)
        if starts is not None and ends is not None and isinstance(size, int):
            taken = range(size)[starts[k] : ends[k] : step]
            if not taken:
                return (data.zeros(),)
            low, high = min(taken[0], taken[-1]), size - 1 - max(taken[0], taken[-1])
            before[axis], after[axis] = low, high
        else:
            before[axis], after[axis] = _around(op, k, axis, step)
        dy = _apart(dy, sizes, axis, step)
        sizes[axis] = (sizes[axis] - 1) * abs(step) + 1
    return (dy.pad(before, after),)


def _numbers(op: Step, name: str, index: int) -> list[int] | None:
    """Bounds from an attribute or an input; None where they are not there, or depend on data or sizes."""
    given = op.attribute(name)
    if given is None and op.has(index):
        given = op.value(index)
        if given is None and name == "steps":
            op.stop("its steps are not constant")
    return None if given is None else [int(each) for each in given]


def _around(op: Step, k: int, axis: int, step: int) -> tuple[Value, Value]:
    """How much is left out in front and behind, asked of the same slice of all places."""
    tape, size = op.tape, op.size(0, axis)
    places = tape.range(size)
    bounds = [
        op.x(index).gather(tape.integers([k])) if op.has(index) else tape.integers([op.attribute(name)[k]])
        for index, name in ((1, "starts"), (2, "ends"))
    ]
    taken = places.slice([0], bounds[:1], bounds[1:], [step])
    first, last = (taken.gather(tape.integers([at])) for at in ((0, -1) if step > 0 else (-1, 0)))
    return first, (size - 1) - last


def _apart(dy: Value, sizes: Sequence[Size], axis: int, step: int) -> Value:
    """In the order of the data, with zeros between."""
    gap, rank = abs(step), len(sizes)
    if step < 0:
        dy = dy.slice([axis], [-1], [-TO_THE_END], [-1])
    if gap == 1:
        return dy
    between = [gap - 1 if k == axis + 1 else 0 for k in range(rank + 1)]
    wide = dy.unsqueeze(axis + 1).pad([0] * (rank + 1), between)
    wider = [size * gap if k == axis else size for k, size in enumerate(sizes)]
    return wide.reshape(wider).slice([axis], [0], [1 - gap])


@derivative("Pad")
def pad(op: Step, data: Value, *others: Value | None) -> Gradients:
    """https://onnx.ai/onnx/operators/onnx__Pad.html: padding is cut off, or added to where it was read."""
    rank = len(op.dims(0))
    axes = op.axes(index=3)
    given = op.attribute("pads") or op.attribute("paddings")
    known = op.value(1) if given is None else np.asarray(given)
    mode, dy = op.attribute("mode"), op.dy()
    if mode != "constant":
        if known is None:
            op.stop(f"its padding ({mode}) depends on data")
        for axis, low, high in zip(axes, *known.reshape(2, -1).tolist(), strict=True):
            if low or high:
                dy = _unpadded(op, dy, axis, int(low), int(high))
        return (dy,)
    if known is None:
        starts = [op.x(1).gather(op.tape.integers([k])) for k in range(len(axes))]
        return (
            dy.slice(
                axes, starts, [start + op.size(0, axis) for start, axis in zip(starts, axes, strict=True)]
            ),
        )
    before, after = [0] * rank, [0] * rank
    for axis, low, high in zip(axes, *known.reshape(2, -1).tolist(), strict=True):
        before[axis], after[axis] = int(low), int(high)
    ends = [-each if each > 0 else TO_THE_END for each in after]
    if any(each > 0 for each in [*before, *after]):
        dy = dy.slice(range(rank), [max(each, 0) for each in before], ends)
    return (dy.pad([max(-each, 0) for each in before], [max(-each, 0) for each in after]),)


def _unpadded(op: Step, dy: Value, axis: int, low: int, high: int) -> Value:
    """The gradient of one axis padded by repeating what is there."""
    rank, size, mode = len(op.dims(0)), op.size(0, axis), op.attribute("mode")
    if isinstance(size, int):
        places = np.arange(max(-low, 0), size - max(-high, 0))
        places = np.pad(places, (max(low, 0), max(high, 0)), mode)
        return back_to_axis(dy, axis, rank, places, size)
    padded = op.tape.op("Pad", op.tape.range(size), op.tape.integers([low, high]), mode=mode)
    return back_to_axis(dy, axis, rank, padded, size)
