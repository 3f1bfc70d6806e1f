"""Operators that take elements by index: their gradients are added up where the elements came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from surgeon.grad.registry import derivative
from surgeon.grad.scatter import ADDS, add_along, back_to_axis, back_to_positions, positions_of, put

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surgeon.grad.step import Step
    from surgeon.grad.tape import Size, Value

    Gradients: TypeAlias = Sequence[Value | None]


@derivative("Gather", parameters=(0,))
def gather(op: Step, data: Value, indices: Value) -> Gradients:
    """Rows of a table get the sum over all places that read them."""
    rank, wide = len(op.dims(0)), len(op.dims(1))
    axis = int(op.attribute("axis")) % rank
    sizes: list[Size] = [op.size(0, k) if k != axis else -1 for k in range(rank)]
    known = op.value(1)
    dy = op.dy() if wide == 1 else op.dy().reshape(sizes)
    places = indices.reshape([-1]) if known is None else known.ravel()
    return (back_to_axis(dy, axis, rank, places, op.size(0, axis)),)


@derivative("GatherElements")
def gather_elements(op: Step, data: Value, indices: Value) -> Gradients:
    """The same, element by element."""
    rank = len(op.dims(0))
    axis = int(op.attribute("axis")) % rank
    others = [k for k in range(rank) if k != axis]
    if op.opset < ADDS and any(op.dims(0)[k] != op.dims(1)[k] for k in others):
        op.stop(f"it leaves places out, which needs opset {ADDS}")
    return (add_along(data, indices, op.dy(), axis, rank, op.size(0, axis)),)


@derivative("GatherND")
def gather_nd(op: Step, data: Value, indices: Value) -> Gradients:
    """What positions are gathered is asked of the operator itself."""
    batch = op.attribute("batch_dims")
    attributes = {} if batch is None else {"batch_dims": batch}
    places = op.tape.op("GatherND", positions_of(data), indices, **attributes)
    return (back_to_positions(data, places, op.dy()),)


@derivative("Compress")
def compress(op: Step, x: Value, condition: Value) -> Gradients:
    """The same as of a gather."""
    axis = op.attribute("axis")
    places = op.tape.op("Compress", positions_of(x), condition, **({} if axis is None else {"axis": axis}))
    flat = put(x.zeros().reshape([-1]), places.reshape([-1]), op.dy().reshape([-1]), 0)
    return (flat.reshape(x.shape()),)


@derivative("TopK")
def top_k(op: Step, x: Value, k: Value | None = None) -> Gradients:
    """The largest are elements of the data; their indices are the second output."""
    return (put(x.zeros(), op.y(1), op.dy(), int(op.attribute("axis"))),)


@derivative("ScatterElements", since=11)
def scatter_elements(op: Step, data: Value, indices: Value, updates: Value) -> Gradients:
    """Data that are overwritten have no gradient; updates have that of the place they are put."""
    axis, kind = int(op.attribute("axis")), op.attribute("reduction", "none")
    taken = op.tape.op("GatherElements", op.dy(), indices, axis=axis)
    if kind == "none":
        return put(op.dy(), indices, updates.zeros(), axis), None, taken
    if kind != "add":
        op.stop(f"it reduces by {kind}")
    return op.dy(), None, taken


@derivative("ScatterND", since=11)
def scatter_nd(op: Step, data: Value, indices: Value, updates: Value) -> Gradients:
    """The same with positions over several axes."""
    kind = op.attribute("reduction", "none")
    taken = op.tape.op("GatherND", op.dy(), indices)
    if kind == "none":
        return op.tape.op("ScatterND", op.dy(), indices, updates.zeros()), None, taken
    if kind != "add":
        op.stop(f"it reduces by {kind}")
    return op.dy(), None, taken
