"""Sums, means, extremes and norms over axes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

from surgeon.grad.registry import derivative

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surgeon.grad.step import Step
    from surgeon.grad.tape import Value

    Gradients: TypeAlias = Sequence[Value | None]


def _axes(op: Step) -> list[int]:
    return op.axes([] if op.attribute("noop_with_empty_axes") else None)


def _kept(op: Step, value: Value) -> Value:
    """A value of the output's shape with the axes that were reduced, of size 1."""
    if op.attribute("keepdims") or not _axes(op):
        return value
    return value.unsqueeze(*_axes(op))


@derivative("ReduceSum")
def reduce_sum(op: Step, data: Value, axes: Value | None = None) -> Gradients:
    """Every element gets the gradient of its sum."""
    return (_kept(op, op.dy()).expand_as(data),)


@derivative("ReduceMean")
def reduce_mean(op: Step, data: Value, axes: Value | None = None) -> Gradients:
    """Every element gets its share."""
    share = _kept(op, op.dy())
    sizes = [op.size(0, axis) for axis in _axes(op)]
    share = share / math.prod(size for size in sizes if isinstance(size, int))
    for size in sizes:
        if not isinstance(size, int):
            share = share / size.cast(data.dtype)
    return (share.expand_as(data),)


@derivative("ReduceMax", "ReduceMin")
def reduce_extreme(op: Step, data: Value, axes: Value | None = None) -> Gradients:
    """The gradient goes to the element that was chosen, in equal shares to several."""
    chosen = data.equals(_kept(op, op.y())).cast(data.dtype)
    count = chosen.sum(_axes(op), keepdims=True)
    return (chosen * (_kept(op, op.dy()) / count),)


@derivative("ReduceL1")
def reduce_l1(op: Step, data: Value, axes: Value | None = None) -> Gradients:
    """The sign."""
    return (data.sign() * _kept(op, op.dy()),)


@derivative("ReduceL2")
def reduce_l2(op: Step, data: Value, axes: Value | None = None) -> Gradients:
    """Of each element x / y; nothing where the norm is zero."""
    norm = _kept(op, op.y())
    share = _kept(op, op.dy()) / op.tape.where(norm > 0, norm, 1.0)
    return (data * share,)


@derivative("ReduceSumSquare")
def reduce_sum_square(op: Step, data: Value, axes: Value | None = None) -> Gradients:
    """2x."""
    return (data * (_kept(op, op.dy()) * 2.0),)


@derivative("ReduceLogSum")
def reduce_log_sum(op: Step, data: Value, axes: Value | None = None) -> Gradients:
    """1 / Σx for every element."""
    return (_kept(op, op.dy() / op.tape.op("Exp", op.y())).expand_as(data),)


@derivative("ReduceLogSumExp")
def reduce_log_sum_exp(op: Step, data: Value, axes: Value | None = None) -> Gradients:
    """The softmax, exp(x − y)."""
    return (op.tape.op("Exp", data - _kept(op, op.y())) * _kept(op, op.dy()),)


@derivative("ReduceProd")
def reduce_prod(op: Step, data: Value, axes: Value | None = None) -> Gradients:
    """The product of the others: y / x, except where there are zeros; of a single one the others are the product."""
    zero = data.equals(0.0)
    others = op.tape.where(zero, 1.0, data)
    zeros = zero.cast(data.dtype)
    more = zeros.sum(_axes(op), keepdims=True) - zeros  # zeros among the others
    share = others.product(_axes(op)) / others
    return (op.tape.where(more > 0.5, 0.0, share) * _kept(op, op.dy()),)
