"""Resizing: it is linear, one axis after the other, and the matrix of an axis is what an identity matrix is resized to."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from surgeon.grad.registry import derivative

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surgeon.grad.step import Step
    from surgeon.grad.tape import Size, Value

    Gradients: TypeAlias = Sequence[Value | None]

_HANDLED = frozenset({"axes", "keep_aspect_ratio_policy", "extrapolation_value", "scales"})


@derivative("Resize", "Upsample")
def resize(op: Step, x: Value, *others: Value | None) -> Gradients:
    """https://onnx.ai/onnx/operators/onnx__Resize.html; where blocks of copies are made, they are summed up."""
    dy, rank = op.dy(), len(op.dims(0))
    for axis in range(rank):
        if _stays(op, axis):
            continue
        copies = _copies(op, axis)
        if copies is not None:
            sizes: list[Size] = [op.size(0, k) for k in range(axis + 1)]
            sizes += [copies, *(op.out_size(k) for k in range(axis + 1, rank))]
            dy = dy.reshape(sizes).sum([axis + 1])
        else:
            dy = _times(dy, _matrix(op, axis), axis, rank)
    return (dy,)


def _scale_input(op: Step) -> int | None:
    """The number of the input with the scales, which come before the sizes."""
    index = 1 if op.node.op == "Upsample" or op.opset < 11 else 2
    return index if op.has(index) and op.dims(index) != (0,) else None


def _place(op: Step, axis: int) -> int | None:
    """Where the numbers of an axis are in scales, sizes and half of roi; None for an axis that is not resized."""
    axes = op.attribute("axes")
    if axes is None:
        return axis
    rank = len(op.dims(0))
    found = [each % rank for each in axes]
    return found.index(axis) if axis in found else None


def _scale(op: Step, axis: int) -> float | None:
    """The scale of an axis, where it is given and constant."""
    place, index = _place(op, axis), _scale_input(op)
    scales = op.attribute("scales") if index is None else op.value(index)
    return None if scales is None or place is None else float(scales[place])


def _crops(op: Step) -> bool:
    return bool(op.attribute("coordinate_transformation_mode") == "tf_crop_and_resize")


def _stays(op: Step, axis: int) -> bool:
    """Whether an axis stays as it is."""
    if _place(op, axis) is None:
        return True
    if _crops(op):
        return False
    scale = _scale(op, axis)
    if scale is not None or _scale_input(op) is not None:
        return scale == 1
    return not op.out_dynamic()[axis] and op.dims(0)[axis] == op.out_dims()[axis]


def _copies(op: Step, axis: int) -> int | None:
    """How often every place of an axis is repeated, if that is all."""
    size, out = op.size(0, axis), op.out_size(axis)
    scale = _scale(op, axis)
    if scale is None and isinstance(size, int) and isinstance(out, int) and _scale_input(op) is None:
        scale = out / size
    if scale is None or not scale.is_integer() or op.attribute("mode") != "nearest":
        return None
    centred = op.attribute("coordinate_transformation_mode", "asymmetric")
    nearest = op.attribute("nearest_mode", "floor")
    halves = centred in ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel") and "round" in nearest
    return int(scale) if halves or (centred, nearest) == ("asymmetric", "floor") else None


def _matrix(op: Step, axis: int) -> Value:
    """How an axis is resized: ``[before, after]``, as the operator itself does it to a picture of an identity matrix."""
    tape, size, out = op.tape, op.size(0, axis), op.out_size(axis)
    if isinstance(size, int):
        eye = tape.constant(np.eye(size, dtype=op.x().dtype))
    else:
        eye = tape.one_hot(tape.range(size), size, op.x().dtype)
    place = _place(op, axis) or 0
    attributes = {name: value for name, value in op.node.attrs.items() if name not in _HANDLED}
    picture = eye.reshape([1, 1, size, size])
    index = _scale_input(op)
    fixed = op.attribute("scales")
    if fixed is not None:
        found = tape.op(op.node.op, picture, scales=[1.0, 1.0, 1.0, float(fixed[place])], **attributes)
        return found.reshape([size, out])
    if index is None and op.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        return _in_proportion(op, picture, attributes).reshape([size, out])
    if index is not None:
        one = tape.constant(np.ones(3, np.float32))
        scale = op.x(index).slice([0], [place], [place + 1])
        scales = tape.op("Concat", one, scale, axis=0)
        given = [scales] if index == 1 else [_roi(op, place), scales]
        return tape.op(op.node.op, picture, *given, **attributes).reshape([size, out])
    sizes = tape.sizes([1, 1, size, out])
    return tape.op("Resize", picture, _roi(op, place), _none(op), sizes, **attributes).reshape([size, out])


def _in_proportion(op: Step, picture: Value, attributes: dict[str, Any]) -> Value:
    """The scale is the same for all axes that are resized: the smallest, or the largest."""
    sizes = op.value(3)
    axes = [axis for axis in range(len(op.dims(0))) if _place(op, axis) is not None]
    if sizes is None or any(op.shapes.dynamic[op.node.inputs[0].name][axis] for axis in axes):
        op.stop("its proportions change with the size of its input")
    chosen = min if op.attribute("keep_aspect_ratio_policy") == "not_larger" else max
    scale = chosen(float(size) / op.dims(0)[axis] for size, axis in zip(sizes, axes, strict=True))
    if any(op.out_dims()[axis] != math.floor(np.float32(scale) * op.dims(0)[axis]) for axis in axes):
        op.stop("its proportions do not give a whole number of places, which no scale rounds up")
    scales = op.tape.constant(np.asarray([1, 1, 1, scale], np.float32))
    return op.tape.op("Resize", picture, None, scales, **attributes)


def _roi(op: Step, place: int) -> Value | None:
    """The part of an axis that is resized, for the last of four."""
    if not _crops(op):
        return _none(op)
    count = op.dims(1)[0] // 2
    low, high = (op.x(1).slice([0], [at], [at + 1]) for at in (place, count + place))
    zeros, ones = (op.tape.constant(np.full(3, each, low.dtype)) for each in (0, 1))
    return op.tape.op("Concat", zeros, low, ones, high, axis=0)


def _none(op: Step) -> Value | None:
    """An input that is left out; before opset 13 an empty one."""
    return None if op.opset >= 13 else op.tape.constant(np.zeros(0, np.float32))


def _times(dy: Value, matrix: Value, axis: int, rank: int) -> Value:
    """The axis multiplied with a matrix ``[before, after]`` from behind."""
    if axis == rank - 2:
        return matrix @ dy
    if axis == rank - 1:
        return dy @ matrix.transpose(1, 0)
    order = [k for k in range(rank) if k != axis] + [axis]
    turned = dy.transpose(*order) @ matrix.transpose(1, 0)
    return turned.transpose(*np.argsort(order).tolist())
