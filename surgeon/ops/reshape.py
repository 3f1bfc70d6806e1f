"""Operators that rearrange axes without touching values: Reshape and its kin, Transpose, Expand, pixel shuffles."""

from __future__ import annotations

from math import prod

import numpy as np

from surgeon.axes import ONE, Atom, Axis, is_fixed, product
from surgeon.ops.emit import Emitter
from surgeon.ops.op import Axes, Op
from surgeon.ops.operator import Barrier
from surgeon.ops.registry import rule


@rule("Reshape")
def reshape(op: Op, data: Axes, shape: Axes) -> list[Axes]:
    """Solved in blocks, between common cumulative sizes of input and output."""
    op.pin(shape, "a shape")
    out = regroup(op, data, op.out_dims())
    op.emit(lambda emitter: emitter.set_reshape(1, data, out))
    op.zeros(factors=[0])
    return [out]


def regroup(op: Op, axes: Axes, sizes: tuple[int, ...]) -> Axes:
    """The axes of ``axes`` reshaped to ``sizes``."""
    if 0 in sizes or any(axis.size == 0 for axis in axes):
        raise Barrier("a tensor without elements is reshaped")
    if prod(axis.size for axis in axes) != prod(sizes):
        raise Barrier(f"{[axis.size for axis in axes]} cannot be reshaped to {list(sizes)}")
    result: Axes = [ONE] * len(sizes)
    sources = [axis for axis in axes if axis.size != 1]
    targets = [k for k, size in enumerate(sizes) if size != 1]
    while sources and targets:
        block, wanted = [sources.pop(0)], [targets.pop(0)]
        have, need = block[0].size, sizes[wanted[0]]
        while have != need:
            if have < need:
                block.append(sources.pop(0))
                have *= block[-1].size
            else:
                wanted.append(targets.pop(0))
                need *= sizes[wanted[-1]]
        for k, axis in zip(wanted, _split_block(op, block, [sizes[k] for k in wanted]), strict=True):
            result[k] = axis
    return result


def _split_block(op: Op, block: Axes, sizes: list[int]) -> Axes:
    if len(sizes) == 1:
        return [product(*block)]
    if all(is_fixed(axis) for axis in block):
        return [op.fixed(size, "part of an axis that must keep its size") for size in sizes]
    parts: list[Axis] = [Atom(size) for size in sizes]
    op.unify(product(*block), product(*parts))
    return parts


@rule("Flatten")
def flatten(op: Op, x: Axes) -> list[Axes]:
    """All axes before ``axis`` become one, the rest another."""
    k = op.attribute("axis", 1)
    k = k + len(x) if k < 0 else k
    op.zeros(factors=[0])
    return [[product(*x[:k]), product(*x[k:])]]


@rule("Squeeze")
def squeeze(op: Op, data: Axes, axes: Axes | None = None) -> list[Axes]:
    """Drops axes of size 1."""
    del axes
    listed = _listed_axes(op)
    op.zeros(factors=[0])
    if listed is None:
        op.emit(lambda emitter: _emit_squeeze(emitter, data))
        return [[axis for axis in data if axis.size != 1]]
    dropped = {k % len(data) for k in listed}
    return [[axis for k, axis in enumerate(data) if k not in dropped]]


def _emit_squeeze(emitter: Emitter, data: Axes) -> None:
    """An axis that is cut down to size 1 must not be dropped along with those that were 1 before."""
    if not any(axis.size != 1 and emitter.size(axis) == 1 for axis in data):
        return
    dropped = [k for k, axis in enumerate(data) if axis.size == 1]
    if emitter.op.opset < 13:
        emitter.node.attrs["axes"] = dropped
    else:
        emitter.set_input(1, np.array(dropped, dtype=np.int64))


@rule("Unsqueeze")
def unsqueeze(op: Op, data: Axes, axes: Axes | None = None) -> list[Axes]:
    """Inserts axes of size 1."""
    del axes
    listed = _listed_axes(op)
    if listed is None:
        raise Barrier("the inserted axes are not known")
    rank = len(data) + len(listed)
    inserted = {k % rank for k in listed}
    rest = iter(data)
    op.zeros(factors=[0])
    return [[ONE if k in inserted else next(rest) for k in range(rank)]]


def _listed_axes(op: Op) -> list[int] | None:
    if op.has(1):
        value = op.value(1)
        if value is None:
            raise Barrier("the axes are computed while the model runs")
        return [int(k) for k in value.ravel()]
    listed: list[int] | None = op.attribute("axes")
    return listed


@rule("Transpose")
def transpose(op: Op, data: Axes) -> list[Axes]:
    """Axes in another order."""
    order = op.attribute("perm") or range(len(data))[::-1]
    op.zeros(factors=[0])
    return [[data[k] for k in order]]


@rule("Expand")
def expand(op: Op, data: Axes, shape: Axes) -> list[Axes]:
    """Broadcast to a shape; repeats of an axis of size 1 are new positions."""
    op.pin(shape, "a shape")
    sizes = op.out_dims()
    aligned: Axes = [ONE] * (len(sizes) - len(data)) + data
    out = [
        _repeat(op, size, dynamic) if axis.size == 1 and size != 1 else axis
        for axis, size, dynamic in zip(aligned, sizes, op.out_dynamic(), strict=True)
    ]
    offset = len(sizes) - shape[0].size
    op.resize_input(1, out[offset:])
    op.zeros(factors=[0])
    return [out]


def _repeat(op: Op, size: int, dynamic: bool) -> Axis:
    return op.fixed(size, "repeated a dynamic number of times") if dynamic else op.free(size)


@rule("Tile")
def tile(op: Op, data: Axes, repeats: Axes) -> list[Axes]:
    """Each axis is repeated as a whole: ``repeats x axis``."""
    op.pin(repeats, "a number of repeats")
    counts = [
        _repeat(op, size // axis.size, dynamic and is_fixed(axis))
        for axis, size, dynamic in zip(data, op.out_dims(), op.out_dynamic(), strict=True)
    ]
    op.resize_input(1, counts)
    op.zeros(factors=[0])
    return [[product(*_factors(count, axis)) for count, axis in zip(counts, data, strict=True)]]


def _factors(*axes: Axis) -> Axes:
    return [axis for axis in axes if axis.size != 1] or [ONE]


@rule("DepthToSpace")
def depth_to_space(op: Op, data: Axes) -> list[Axes]:
    """Blocks of channels move to space: ``C = b x b x c`` (DCR) or ``c x b x b`` (CRD)."""
    block = op.attribute("blocksize")
    rows, columns = (op.fixed(block, "pixel block") for _ in range(2))
    channels = Atom(data[1].size // block**2)
    first = op.attribute("mode", "DCR") == "DCR"
    op.unify(data[1], product(rows, columns, channels) if first else product(channels, rows, columns))
    op.pin(data[2:], "spatial extent")
    op.zeros(factors=[0])
    return [[data[0], channels, *op.fixed_output("spatial extent")[2:]]]


@rule("SpaceToDepth")
def space_to_depth(op: Op, data: Axes) -> list[Axes]:
    """Blocks of space become channels ``b x b x c``."""
    block = op.attribute("blocksize")
    rows, columns = (op.fixed(block, "pixel block") for _ in range(2))
    op.pin(data[2:], "spatial extent")
    op.zeros(factors=[0])
    return [[data[0], product(rows, columns, data[1]), *op.fixed_output("spatial extent")[2:]]]
