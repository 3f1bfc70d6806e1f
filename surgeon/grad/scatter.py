"""The way back from a selection: gradients of what was selected are added up where they came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.ops.operator import Barrier

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from surgeon.grad.tape import Size, Value

ADDS = 16  # the opset from which ScatterElements adds
SCATTERS = 9  # from which there are Scatter and OneHot
BY_ELEMENTS = 11  # from which Scatter is ScatterElements
WASTE = 8  # how many times more places than gradients a table may have


def put(zeros: Value, indices: Value, updates: Value, axis: int) -> Value:
    """Updates at their places of an axis, no two of them at the same.

    Raises:
        Barrier: The opset cannot do it.
    """
    tape = zeros.tape
    if tape.opset < SCATTERS:
        raise Barrier(f"putting gradients where they came from needs opset {SCATTERS}")
    name = "Scatter" if tape.opset < BY_ELEMENTS else "ScatterElements"
    return tape.op(name, zeros, indices, updates, axis=axis)


def add(zeros: Value, indices: Value, updates: Value, axis: int) -> Value:
    """Updates added up at their places of an axis; ``indices`` has their shape.

    Raises:
        Barrier: The opset cannot do it.
    """
    if zeros.tape.opset < ADDS:
        raise Barrier(f"adding up gradients at places that depend on data needs opset {ADDS}")
    return zeros.tape.op("ScatterElements", zeros, indices, updates, axis=axis, reduction="add")


def add_along(x: Value, indices: Value, dy: Value, axis: int, rank: int, size: Size) -> Value:
    """The gradient of taking one element of an axis for every place of the others.

    Raises:
        Barrier: The opset cannot do it.
    """
    tape = x.tape
    if tape.opset >= ADDS:
        return add(x.zeros(), indices, dy, axis)
    if tape.opset < SCATTERS:
        raise Barrier(f"gradients of a selection that depends on data need opset {SCATTERS}")
    spread = (tape.one_hot(indices, size, dy.dtype) * dy.unsqueeze(rank)).sum([axis])
    order = [*range(axis), rank - 1, *range(axis, rank - 1)]
    return spread.transpose(*order)


def back_to_positions(x: Value, positions: Value, dy: Value) -> Value:
    """Gradients added up at positions in the data, which are counted over all of its axes."""
    flat = add(x.zeros().reshape([-1]), positions.reshape([-1]), dy.reshape([-1]), 0)
    return flat.reshape(x.shape())


def positions_of(x: Value) -> Value:
    """For every element its position, counted over all axes, int64."""
    return x.tape.range(x.tape.op("Size", x, dtype=np.int64)).reshape(x.shape())


def back_to_axis(dy: Value, axis: int, rank: int, indices: NDArray[Any] | Value, size: Size) -> Value:
    """The gradient of taking ``indices`` (a vector) of an axis that has that size.

    Places that are known become a selection again: for each place of the axis a row of those who read it.

    Raises:
        Barrier: The opset cannot do it.
    """
    if isinstance(indices, np.ndarray) and isinstance(size, int):
        table = _readers(indices, size)
        if table.size <= WASTE * max(indices.size, size):
            return _by_table(dy, axis, rank, table, indices.size)
    places = dy.tape.constant(indices.astype(np.int64)) if isinstance(indices, np.ndarray) else indices
    tape = dy.tape
    if tape.opset >= ADDS:
        sizes: list[Size] = [dy.size(k) if k != axis else size for k in range(rank)]
        zeros = tape.filled(0.0, sizes, dy.dtype)
        line = places.reshape([-1 if k == axis else 1 for k in range(rank)])
        return add(zeros, line.expand_as(dy), dy, axis)
    if tape.opset < SCATTERS:
        raise Barrier(f"gradients of a selection that depends on data need opset {SCATTERS}")
    last = [k for k in range(rank) if k != axis] + [axis]
    product = dy.transpose(*last) @ tape.one_hot(places, size, dy.dtype)
    return product.transpose(*np.argsort(last).tolist())


def _readers(indices: NDArray[Any], size: int) -> NDArray[np.int64]:
    """For each place the numbers of those who read it, filled up with their count: [size, the most there are]."""
    places = np.where(indices < 0, indices + size, indices)
    order = np.argsort(places, kind="stable")
    counts = np.bincount(places, minlength=size)
    table = np.full((size, max(int(counts.max(initial=0)), 1)), indices.size, np.int64)
    nth = np.arange(indices.size) - np.repeat(np.cumsum(counts) - counts, counts)
    table[places[order], nth] = order
    return table


def _by_table(dy: Value, axis: int, rank: int, table: NDArray[np.int64], count: int) -> Value:
    if (table == count).any():
        dy = dy.pad([0] * rank, [int(k == axis) for k in range(rank)])
    if table.shape[1] == 1:
        return dy.gather(dy.tape.constant(table[:, 0]), axis)
    return dy.gather(dy.tape.constant(table), axis).sum([axis + 1])
