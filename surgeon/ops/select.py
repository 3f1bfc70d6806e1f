"""Operators that join and pick positions along an axis: Concat, Split, Slice, Gather, TopK and their kin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surgeon.axes import Axis, Concat, cut_at, select
from surgeon.ops.emit import Emitter
from surgeon.ops.op import Axes, Op
from surgeon.ops.operator import Barrier
from surgeon.ops.registry import rule


@rule("Concat")
def concat(op: Op, *inputs: Axes) -> list[Axes]:
    """Sizes add along ``axis``; all other axes are one."""
    axis = op.attribute("axis", 1) % len(inputs[0])
    result: Axes = list(inputs[0])
    for other in inputs[1:]:
        for k, (a, b) in enumerate(zip(result, other, strict=True)):
            if k != axis:
                op.unify(a, b)
    result[axis] = Concat([axes[axis] for axes in inputs])
    op.zeros(parts=True)
    for k in range(len(inputs)):
        op.carry(k, 0)
    return [result]


@rule("Split")
def split(op: Op, x: Axes, split: Axes | None = None) -> list[Axes]:
    """The inverse of Concat."""
    if split is not None:
        op.pin(split, "sizes")
    axis = op.attribute("axis", 0) % len(x)
    rest, parts = x[axis], []
    for k in range(len(op.node.outputs)):
        size = op.out_dims(k)[axis]
        part, rest = cut_at(rest, size, op.name)
        parts.append(part)
    if rest.size:
        raise Barrier("the parts do not add up to the axis")
    op.emit(lambda emitter: _emit_split(emitter, parts))
    op.zeros(factors=[0])
    return [[*x[:axis], part, *x[axis + 1 :]] for part in parts]


def _emit_split(emitter: Emitter, parts: Axes) -> None:
    if not any(map(emitter.changed, parts)):
        return
    if emitter.op.opset < 13:
        emitter.set_attribute("split", parts)
    else:
        emitter.node.attrs.pop("num_outputs", None)
        emitter.set_input(1, np.array([emitter.size(part) for part in parts], dtype=np.int64))


@dataclass(frozen=True)
class _Cut:
    """One sliced axis: which entry of the bounds it is, what lies before it, and the positions it keeps."""

    entry: int
    before: Axis | None
    picked: NDArray[np.int64]


@rule("Slice")
def slice_(op: Op, data: Axes, *_bounds: Axes | None) -> list[Axes]:
    """A constant range of an axis is a part of it; another step picks positions."""
    result: Axes = list(data)
    cuts: dict[int, _Cut] = {}
    for entry, (axis, picked, step) in enumerate(_slices(op, [a.size for a in data])):
        if picked is not None and np.array_equal(picked, np.arange(data[axis].size)):
            continue
        if picked is None or op.is_whole(data[axis]) or not len(picked):
            op.pin(
                data[axis],
                "sliced" if picked is not None else "sliced at positions computed while the model runs",
            )
            result[axis] = op.fixed(op.out_dims()[axis], "sliced")
            continue
        before = cut_at(data[axis], int(picked[0]), op.name)[0] if step == 1 else None
        result[axis] = select(data[axis], picked, op.name)
        cuts[axis] = _Cut(entry, before, picked)
    if len(cuts) > 1 and any(cut.before is None for cut in cuts.values()):
        raise Barrier("strided along one axis and sliced along another")
    op.emit(lambda emitter: _emit_slice(emitter, data, result, cuts))
    op.zeros(factors=[0])
    return [result]


def _slices(op: Op, sizes: list[int]) -> list[tuple[int, NDArray[np.int64] | None, int]]:
    """For each sliced axis the positions it keeps (None where they are not constant) and the step."""
    if op.opset < 10:
        starts, ends = op.attribute("starts"), op.attribute("ends")
        axes = op.attribute("axes") or range(len(starts))
        bounds = [(list(values), [False] * len(starts)) for values in (starts, ends, [1] * len(starts))]
    else:
        listed = op.value(3) if op.has(3) else None
        if op.has(3) and listed is None:
            raise Barrier("the sliced axes are computed while the model runs")
        count = op.dims(1)[0]
        axes = range(count) if listed is None else [int(k) for k in listed]
        bounds = [_bound(op, k, count) for k in (1, 2)]
        bounds.append(_bound(op, 4, count) if op.has(4) else ([1] * count, [False] * count))
    result: list[tuple[int, NDArray[np.int64] | None, int]] = []
    for k, axis in enumerate(axes):
        start, end, step = (int(values[k]) for values, _ in bounds)
        known = not any(dynamic[k] for _, dynamic in bounds)
        picked = _positions(sizes[axis % len(sizes)], start, end, step) if known else None
        result.append((axis % len(sizes), picked, step))
    return result


def _bound(op: Op, index: int, count: int) -> tuple[list[int], list[bool]]:
    known = op.partial(index)
    if known is None:
        return [1] * count, [True] * count
    return list(known[0]), list(known[1])


def _positions(size: int, start: int, end: int, step: int) -> NDArray[np.int64]:
    """What ONNX Slice keeps of ``size`` positions (ends beyond either side are clamped)."""
    if step < 0 and end < -size:
        return np.arange(size)[start if start < 0 else min(start, size - 1) :: step]
    return np.arange(size)[slice(start, end, step)]


def _emit_slice(emitter: Emitter, data: Axes, out: Axes, cuts: dict[int, _Cut]) -> None:
    if not any(emitter.changed(data[axis]) for axis in cuts):
        return
    for axis, cut in cuts.items():
        if cut.before is None:
            kept = emitter.mask(data[axis])
            positions = (np.cumsum(kept) - 1)[cut.picked[kept[cut.picked]]]
            emitter.replace("Gather", [positions], axis=axis)
        else:
            start = emitter.size(cut.before)
            emitter.set_range(cut.entry, start, start + emitter.size(out[axis]))


@rule("Gather")
def gather(op: Op, data: Axes, indices: Axes) -> list[Axes]:
    """Constant indices select positions; indices given while the model runs need the whole axis."""
    axis = op.attribute("axis", 0) % len(data)
    chosen = op.value(1) if len(indices) == 1 and not op.is_whole(data[axis]) else None
    op.zeros(factors=[0])
    if chosen is None:
        op.pin(data[axis], "looked up by index")
        return [[*data[:axis], *indices, *data[axis + 1 :]]]
    op.pin(indices, "indices")
    wrapped = np.where(chosen < 0, chosen + data[axis].size, chosen)
    op.emit(lambda emitter: emitter.set_indices(1, data[axis]))
    return [[*data[:axis], select(data[axis], wrapped, op.name), *data[axis + 1 :]]]


@rule("ArgMax", "ArgMin")
def arg_max(op: Op, data: Axes) -> list[Axes]:
    """Positions along an axis have a meaning; it stays whole."""
    axis = op.attribute("axis", 0) % len(data)
    op.pin(data[axis], "position of the extreme")
    middle = [op.fixed(1, "")] if op.attribute("keepdims", 1) else []
    return [[*data[:axis], *middle, *data[axis + 1 :]]]


@rule("TopK")
def top_k(op: Op, x: Axes, k: Axes | None = None) -> list[Axes]:
    """The largest of an axis, with their positions; it stays whole."""
    del k
    axis = op.attribute("axis", -1) % len(x)
    op.pin(x[axis], "sorted")
    found = [*x[:axis], op.fixed_output("number of largest")[axis], *x[axis + 1 :]]
    return [found, list(found)]


@rule("CumSum", "CumProd")
def cumulative(op: Op, x: Axes, axis: Axes) -> list[Axes]:
    """Positions of the running axis have a meaning; it stays whole."""
    del axis
    along = op.value(1)
    op.pin(x if along is None else x[int(along.item())], "cumulative")
    op.zeros(factors=[0])
    return [x]


@rule("Trilu")
def trilu(op: Op, x: Axes, k: Axes | None = None) -> list[Axes]:
    """A triangle of the last two axes."""
    del k
    op.pin(x[-2:], "triangle")
    op.zeros(factors=[0])
    return [x]
