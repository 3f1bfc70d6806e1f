"""Operators of two and more operands that work element by element."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from surgeon.grad.registry import derivative

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surgeon.grad.step import Step
    from surgeon.grad.tape import Value

    Gradients: TypeAlias = Sequence[Value | None]


@derivative("Add", "Sum", broadcasts=True)
def add(op: Step, *terms: Value) -> Gradients:
    """d(a + b + …) = da + db + …."""
    return [op.dy()] * len(terms)


@derivative("Mean", broadcasts=True)
def mean(op: Step, *terms: Value) -> Gradients:
    """The same share for every term."""
    return [op.dy() / len(terms)] * len(terms)


@derivative("Sub", broadcasts=True)
def sub(op: Step, a: Value, b: Value) -> Gradients:
    """d(a − b) = da − db."""
    return op.dy(), -op.dy()


@derivative("Mul", broadcasts=True)
def mul(op: Step, a: Value, b: Value) -> Gradients:
    """d(ab) = b da + a db."""
    return op.dy() * b, op.dy() * a


@derivative("Div", broadcasts=True)
def div(op: Step, a: Value, b: Value) -> Gradients:
    """d(a / b) = da / b − (a / b) db / b."""
    share = op.dy() / b
    return share, -share * op.y()


@derivative("Pow", broadcasts=True)
def power(op: Step, x: Value, y: Value) -> Gradients:
    """d(xʸ) = y xʸ⁻¹ dx + ln(x) xʸ dy; the first only where y is not zero, the second where x is positive."""
    exponent = y.cast(x.dtype) if y.dtype != x.dtype else y
    positive = x > 0
    logarithm = op.tape.op("Log", op.tape.where(positive, x, 1.0))
    by_exponent = op.dy() * op.y() * logarithm
    lower = op.tape.where(exponent.equals(0.0), 1.0, exponent - 1)
    return op.dy() * exponent * x**lower, by_exponent if y.dtype == x.dtype else None


@derivative("PRelu", broadcasts=True, parameters=(1,))
def prelu(op: Step, x: Value, slope: Value) -> Gradients:
    """Of x where it is positive, else slope · x."""
    negative = x < 0
    return op.tape.where(negative, op.dy() * slope, op.dy()), op.tape.only(negative, op.dy() * x)


@derivative("Max", "Min", broadcasts=True)
def extreme(op: Step, *operands: Value) -> Gradients:
    """The gradient goes to the operand that was chosen, in equal shares to several."""
    chosen = [each.equals(op.y()).cast(op.y().dtype) for each in operands]
    share = op.dy() / op.tape.total(chosen) if len(chosen) > 1 else op.dy()
    return [share * each for each in chosen]


@derivative("Where", broadcasts=True)
def where(op: Step, condition: Value, x: Value, y: Value) -> Gradients:
    """Each place belongs to one of the operands."""
    return None, op.tape.where(condition, op.dy(), 0.0), op.tape.where(condition, 0.0, op.dy())
