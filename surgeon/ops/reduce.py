"""Reductions: statistics over axes."""

from __future__ import annotations

from surgeon.axes import ONE, Axis
from surgeon.ops.emit import Emitter
from surgeon.ops.op import Axes, Op
from surgeon.ops.operator import Barrier
from surgeon.ops.registry import rule


@rule("ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2")
def reduce_sum(op: Op, data: Axes, axes: Axes | None = None) -> list[Axes]:
    """Sums; unchanged by removing what is zero."""
    del axes
    return _reduce(op, data, exact=True)


@rule("ReduceMean")
def reduce_mean(op: Op, data: Axes, axes: Axes | None = None) -> list[Axes]:
    """A mean over D of which K stay equals the mean over K times K/D, if the rest is zero."""
    del axes
    reduced = [data[k] for k in _reduced(op, len(data))]
    op.emit(lambda emitter: _rescale(emitter, reduced))
    return _reduce(op, data, exact=True)


@rule("ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp")
def reduce_other(op: Op, data: Axes, axes: Axes | None = None) -> list[Axes]:
    """Statistics that zeros change."""
    del axes
    return _reduce(op, data, exact=False)


def _rescale(emitter: Emitter, reduced: list[Axis]) -> None:
    factor = 1.0
    for axis in reduced:
        factor *= emitter.size(axis) / axis.size if axis.size else 1.0
    if factor != 1.0:
        emitter.scale_output(factor)


def _reduced(op: Op, rank: int) -> list[int]:
    listed = op.attribute("axes")
    if op.has(1):
        value = op.value(1)
        if value is None:
            raise Barrier("the reduced axes are computed while the model runs")
        listed = [int(k) for k in value.ravel()]
    if not listed:
        return [] if op.attribute("noop_with_empty_axes", 0) else list(range(rank))
    return [k % rank for k in listed]


def _reduce(op: Op, data: Axes, *, exact: bool) -> list[Axes]:
    reduced = _reduced(op, len(data))
    for k in reduced:
        op.reduces(0, data[k], op.node.op, exact_on_zeros=exact)
    if op.node.op not in ("ReduceLogSum", "ReduceLogSumExp"):
        op.zeros(factors=[0])
    if op.attribute("keepdims", 1):
        return [[ONE if k in reduced else axis for k, axis in enumerate(data)]]
    return [[axis for k, axis in enumerate(data) if k not in reduced]]
