"""Softmax and its logarithm."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from surgeon.grad.registry import derivative

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surgeon.grad.step import Step
    from surgeon.grad.tape import Value

    Gradients: TypeAlias = Sequence[Value | None]

PER_AXIS = 13  # the opset from which one axis is normalised, and not all from ``axis`` on together


def _axes(op: Step) -> list[int]:
    rank = len(op.dims(0))
    axis = int(op.attribute("axis")) % max(rank, 1)
    return [axis] if op.opset >= PER_AXIS else list(range(axis, rank))


@derivative("Softmax")
def softmax(op: Step, x: Value) -> Gradients:
    """The gradient is dx = y (dy − Σ y dy)."""
    weighted = op.y() * op.dy()
    return (weighted - op.y() * weighted.sum(_axes(op), keepdims=True),)


@derivative("LogSoftmax")
def log_softmax(op: Step, x: Value) -> Gradients:
    """The gradient is dx = dy − eʸ Σ dy."""
    return (op.dy() - op.tape.op("Exp", op.y()) * op.dy().sum(_axes(op), keepdims=True),)
