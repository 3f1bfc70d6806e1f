"""Looking up and writing at positions: GatherElements, GatherND, ScatterElements, ScatterND, OneHot, NonZero."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from surgeon.axes import Axis, select
from surgeon.ops.emit import Emitter
from surgeon.ops.op import Axes, Op
from surgeon.ops.registry import rule


@rule("GatherElements")
def gather_elements(op: Op, data: Axes, indices: Axes) -> list[Axes]:
    """One lookup per element along ``axis``; along the others the indices may cover only a part."""
    axis = op.attribute("axis", 0) % len(data)
    op.pin(data[axis], "looked up by index")
    op.zeros(factors=[0])
    return [_lookups(op, data, indices, axis)]


@rule("GatherND")
def gather_nd(op: Op, data: Axes, indices: Axes) -> list[Axes]:
    """Leading axes of the data are looked up by the last axis of the indices; trailing ones pass."""
    shared, depth = op.attribute("batch_dims", 0), indices[-1].size
    for whole, index in zip(data[:shared], indices[:shared], strict=True):
        op.unify(whole, index)
    op.pin(data[shared : shared + depth], "looked up by index")
    op.pin(indices[-1], "coordinates")
    op.zeros(factors=[0])
    return [[*indices[:-1], *data[shared + depth :]]]


@rule("ScatterND")
def scatter_nd(op: Op, data: Axes, indices: Axes, updates: Axes) -> list[Axes]:
    """Slices of the data are replaced; trailing axes pass. Constant positions of one axis are a part of it."""
    depth = indices[-1].size
    table = op.value(1) if depth == 1 and len(indices) == 2 and not op.is_whole(data[0]) else None
    if table is not None:
        positions = np.where(table < 0, table + data[0].size, table).ravel()
        op.unify(updates[0], select(data[0], positions, op.name))
        op.emit(lambda emitter: _emit_positions(emitter, data[0], positions))
    op.pin([*indices, *(data[:depth] if table is None else ())], "written by index")
    for axis, update in zip([*indices[:-1], *data[depth:]], updates, strict=True):
        if axis is not indices[0] or table is None:
            op.unify(axis, update)
    op.zeros(terms=[0, 2])
    return [data]


def _emit_positions(emitter: Emitter, axis: Axis, positions: NDArray[np.int64]) -> None:
    kept = emitter.mask(axis)
    if not kept.all():
        emitter.set_input(1, (np.cumsum(kept) - 1)[positions[kept[positions]]].reshape(-1, 1))


@rule("ScatterElements", "Scatter")
def scatter_elements(op: Op, data: Axes, indices: Axes, updates: Axes) -> list[Axes]:
    """One write per element along ``axis``."""
    axis = op.attribute("axis", 0) % len(data)
    op.pin(data[axis], "written by index")
    for whole, update in zip(_lookups(op, data, indices, axis), updates, strict=True):
        op.unify(whole, update)
    op.zeros(terms=[0, 2])
    return [data]


def _lookups(op: Op, data: Axes, indices: Axes, axis: int) -> Axes:
    result: list[Axis] = []
    for k, (whole, index) in enumerate(zip(data, indices, strict=True)):
        if k != axis and whole.size == index.size:
            op.unify(whole, index)
        elif k != axis:
            op.pin((whole, index), "looked up in part")
        result.append(index)
    return result


@rule("OneHot")
def one_hot(op: Op, indices: Axes, depth: Axes, values: Axes) -> list[Axes]:
    """A new axis with one position per class."""
    del depth
    op.pin(values, "values")
    axis = op.attribute("axis", -1) % (len(indices) + 1)
    return [[*indices[:axis], op.fixed_output("classes")[axis], *indices[axis:]]]


@rule("NonZero")
def non_zero(op: Op, x: Axes) -> list[Axes]:
    """Positions of what is not zero, in every axis."""
    op.pin(x, "positions of what is not zero")
    return [op.fixed_output("positions of what is not zero")]
