"""Trigonometric and hyperbolic functions and their inverses, element by element."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from surgeon.grad.registry import derivative

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surgeon.grad.step import Step
    from surgeon.grad.tape import Value

    Gradients: TypeAlias = Sequence[Value | None]


@derivative("Sin")
def sin(op: Step, x: Value) -> Gradients:
    """The cosine."""
    return (op.dy() * op.tape.op("Cos", x),)


@derivative("Cos")
def cos(op: Step, x: Value) -> Gradients:
    """Minus the sine."""
    return (-op.dy() * op.tape.op("Sin", x),)


@derivative("Tan")
def tan(op: Step, x: Value) -> Gradients:
    """1 + y²."""
    return (op.dy() * (op.y() * op.y() + 1.0),)


@derivative("Asin")
def asin(op: Step, x: Value) -> Gradients:
    """1 / √(1 − x²)."""
    return (op.dy() / op.tape.op("Sqrt", 1.0 - x * x),)


@derivative("Acos")
def acos(op: Step, x: Value) -> Gradients:
    """−1 / √(1 − x²)."""
    return (-op.dy() / op.tape.op("Sqrt", 1.0 - x * x),)


@derivative("Atan")
def atan(op: Step, x: Value) -> Gradients:
    """1 / (1 + x²)."""
    return (op.dy() / (x * x + 1.0),)


@derivative("Sinh")
def sinh(op: Step, x: Value) -> Gradients:
    """The hyperbolic cosine, from exponentials, which every runtime has."""
    return (op.dy() * 0.5 * (op.tape.op("Exp", x) + op.tape.op("Exp", -x)),)


@derivative("Cosh")
def cosh(op: Step, x: Value) -> Gradients:
    """The hyperbolic sine."""
    return (op.dy() * 0.5 * (op.tape.op("Exp", x) - op.tape.op("Exp", -x)),)


@derivative("Asinh")
def asinh(op: Step, x: Value) -> Gradients:
    """1 / √(x² + 1)."""
    return (op.dy() / op.tape.op("Sqrt", x * x + 1.0),)


@derivative("Acosh")
def acosh(op: Step, x: Value) -> Gradients:
    """1 / √(x² − 1)."""
    return (op.dy() / op.tape.op("Sqrt", x * x - 1.0),)


@derivative("Atanh")
def atanh(op: Step, x: Value) -> Gradients:
    """1 / (1 − x²)."""
    return (op.dy() / (1.0 - x * x),)
