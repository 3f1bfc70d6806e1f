"""Functions of one tensor, element by element."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

from surgeon.grad.registry import derivative

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surgeon.grad.step import Step
    from surgeon.grad.tape import Value

    Gradients: TypeAlias = Sequence[Value | None]


@derivative("Identity")
def identity(op: Step, x: Value) -> Gradients:
    """The same."""
    return (op.dy(),)


@derivative("Neg")
def neg(op: Step, x: Value) -> Gradients:
    """−1."""
    return (-op.dy(),)


@derivative("Abs")
def absolute(op: Step, x: Value) -> Gradients:
    """The sign."""
    return (op.dy() * x.sign(),)


@derivative("Sqrt")
def sqrt(op: Step, x: Value) -> Gradients:
    """1 / (2 √x)."""
    return (op.dy() * 0.5 / op.y(),)


@derivative("Reciprocal")
def reciprocal(op: Step, x: Value) -> Gradients:
    """−1 / x²."""
    return (-op.dy() * op.y() * op.y(),)


@derivative("Exp")
def exp(op: Step, x: Value) -> Gradients:
    """eˣ."""
    return (op.dy() * op.y(),)


@derivative("Log")
def log(op: Step, x: Value) -> Gradients:
    """1 / x."""
    return (op.dy() / x,)


@derivative("Relu")
def relu(op: Step, x: Value) -> Gradients:
    """1 where x is positive."""
    return (op.tape.where(op.y() > 0, op.dy(), 0.0),)


@derivative("LeakyRelu")
def leaky_relu(op: Step, x: Value) -> Gradients:
    """The slope alpha where x is negative."""
    return (op.tape.where(x < 0, op.dy() * float(op.attribute("alpha")), op.dy()),)


@derivative("Elu")
def elu(op: Step, x: Value) -> Gradients:
    """Slope y + alpha where x is negative."""
    return (op.tape.where(x < 0, op.dy() * (op.y() + float(op.attribute("alpha"))), op.dy()),)


@derivative("Selu")
def selu(op: Step, x: Value) -> Gradients:
    """Slope gamma where x is positive, else y + alpha gamma."""
    gamma, alpha = float(op.attribute("gamma")), float(op.attribute("alpha"))
    return (op.dy() * op.tape.where(x > 0, gamma, op.y() + alpha * gamma),)


@derivative("Celu")
def celu(op: Step, x: Value) -> Gradients:
    """1 where x is positive, else y / alpha + 1."""
    return (op.dy() * op.tape.where(x > 0, 1.0, op.y() / float(op.attribute("alpha")) + 1.0),)


@derivative("ThresholdedRelu")
def thresholded_relu(op: Step, x: Value) -> Gradients:
    """1 above alpha."""
    return (op.tape.where(x > float(op.attribute("alpha")), op.dy(), 0.0),)


@derivative("Shrink")
def shrink(op: Step, x: Value) -> Gradients:
    """1 where x is farther from zero than lambd."""
    return (op.tape.where(op.tape.op("Abs", x) > float(op.attribute("lambd")), op.dy(), 0.0),)


@derivative("Softsign")
def softsign(op: Step, x: Value) -> Gradients:
    """1 / (1 + |x|)²."""
    away = op.tape.op("Abs", x) + 1.0
    return (op.dy() / (away * away),)


@derivative("Sigmoid")
def sigmoid(op: Step, x: Value) -> Gradients:
    """Slope y (1 − y)."""
    return (op.dy() * op.y() * (1.0 - op.y()),)


@derivative("HardSigmoid")
def hard_sigmoid(op: Step, x: Value) -> Gradients:
    """The slope alpha where y is strictly between 0 and 1."""
    slope, y = op.dy() * float(op.attribute("alpha")), op.y()
    return (op.tape.where(y > 0, op.tape.where(y < 1, slope, 0.0), 0.0),)


@derivative("HardSwish")
def hard_swish(op: Step, x: Value) -> Gradients:
    """(2x + 3) / 6 between −3 and 3; 0 below and 1 above."""
    middle = op.dy() * (x * (1 / 3) + 0.5)
    return (op.tape.where(x < -3, 0.0, op.tape.where(x > 3, op.dy(), middle)),)


@derivative("Tanh")
def tanh(op: Step, x: Value) -> Gradients:
    """1 − y²."""
    return (op.dy() * (1.0 - op.y() * op.y()),)


@derivative("Erf")
def erf(op: Step, x: Value) -> Gradients:
    """2 / √π · exp(−x²)."""
    return (op.dy() * (2 / math.sqrt(math.pi)) * op.tape.op("Exp", -(x * x)),)


@derivative("Gelu")
def gelu(op: Step, x: Value) -> Gradients:
    """Φ(x) + x φ(x), or the derivative of the approximation by tanh."""
    if op.attribute("approximate") == "tanh":
        scale = math.sqrt(2 / math.pi)
        bent = op.tape.op("Tanh", (x + 0.044715 * x * x * x) * scale)
        slope = (1.0 - bent * bent) * (scale + 3 * scale * 0.044715 * x * x)
        return (op.dy() * (0.5 * (bent + 1.0) + 0.5 * x * slope),)
    share = 0.5 * (op.tape.op("Erf", x * math.sqrt(0.5)) + 1.0)
    density = op.tape.op("Exp", x * x * -0.5) * (1 / math.sqrt(2 * math.pi))
    return (op.dy() * (share + x * density),)


@derivative("Softplus")
def softplus(op: Step, x: Value) -> Gradients:
    """The sigmoid."""
    return (op.dy() * op.tape.op("Sigmoid", x),)


@derivative("Mish")
def mish(op: Step, x: Value) -> Gradients:
    """Of x tanh(softplus(x)), by the product rule."""
    bent = op.tape.op("Tanh", op.tape.op("Softplus", x))
    return (op.dy() * (bent + x * (1.0 - bent * bent) * op.tape.op("Sigmoid", x)),)


@derivative("Clip")
def clip(op: Step, x: Value, low: Value | None = None, high: Value | None = None) -> Gradients:
    """1 strictly within the bounds, so that what is exactly zero has no slope, as with Relu."""
    least, most = (op.attribute(name) if b is None else b for name, b in (("min", low), ("max", high)))
    gradient = op.dy()
    if least is not None:
        gradient = op.tape.where(x > least, gradient, 0.0)
    if most is not None:
        gradient = op.tape.where(x < most, gradient, 0.0)
    return (gradient,)


@derivative("Cast", "CastLike")
def cast(op: Step, x: Value, target: Value | None = None) -> Gradients:
    """The gradient is cast back."""
    return (op.dy().cast(x.dtype),)


@derivative("Dropout")
def dropout(op: Step, data: Value, *others: Value) -> Gradients:
    """Nothing is dropped in inference."""
    return (op.dy(),)
