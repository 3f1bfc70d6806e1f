"""Elementwise operators: axes pass through, or broadcast against each other."""

from __future__ import annotations

from surgeon.ops.op import Axes, Op
from surgeon.ops.operator import Barrier
from surgeon.ops.registry import rule


@rule(
    *(
        "Relu",
        "LeakyRelu",
        "ThresholdedRelu",
        "Elu",
        "Celu",
        "Selu",
        "Gelu",
        "Mish",
        "Swish",
        "HardSwish",
        "Shrink",
    ),
    *("Tanh", "Softsign", "Erf", "Abs", "Neg", "Sqrt", "Sign", "Floor", "Ceil", "Round", "Identity", "Cast"),
    *("Sin", "Tan", "Asin", "Atan", "Sinh", "Asinh", "Atanh", "CastLike", "BitCast"),
)
def zero_preserving(op: Op, x: Axes, *_target: Axes) -> list[Axes]:
    """One function of each element, zero at zero."""
    op.zeros(factors=[0])
    return [x]


@rule(
    *("Exp", "Log", "Sigmoid", "HardSigmoid", "Softplus", "Reciprocal", "Cos", "Cosh", "Acos", "Acosh"),
    *("Not", "IsNaN", "IsInf", "BitwiseNot"),
)
def unary(op: Op, x: Axes) -> list[Axes]:
    """One function of each element, not zero at zero."""
    del op
    return [x]


@rule("Clip")
def clip(op: Op, x: Axes, *_bounds: Axes | None) -> list[Axes]:
    """Bounded on both sides by scalars."""
    low = op.attribute("min") if "min" in op.node.attrs else (op.value(1) if op.has(1) else None)
    high = op.attribute("max") if "max" in op.node.attrs else (op.value(2) if op.has(2) else None)
    if (low is None or low <= 0) and (high is None or high >= 0):
        op.zeros(factors=[0])
    return [x]


@rule("Dropout")
def dropout(op: Op, x: Axes, *_options: Axes | None) -> list[Axes]:
    """The identity at inference; the mask has the same axes."""
    if op.has(2):
        training = op.value(2)
        if training is None or bool(training):
            raise Barrier("Dropout in training mode")
    op.zeros(factors=[0])
    return [x] * len(op.node.outputs)


@rule("PRelu")
def prelu(op: Op, x: Axes, slope: Axes) -> list[Axes]:
    """The slope broadcasts to x."""
    op.broadcast(x, slope)
    op.zeros(factors=[0])
    return [x]


@rule("Mul", "And", "BitwiseAnd", "SwiGLU")
def multiply(op: Op, *inputs: Axes) -> list[Axes]:
    """Zero where one operand is."""
    op.zeros(factors=range(len(inputs)))
    return [op.broadcast(*inputs)]


@rule("Add", "Sub", "Sum", "Mean", "Max", "Min", "Or", "Xor", "BitwiseOr", "BitwiseXor")
def add(op: Op, *inputs: Axes) -> list[Axes]:
    """Zero where all operands are."""
    op.zeros(terms=range(len(inputs)))
    return [op.broadcast(*inputs)]


@rule("Div", "Mod")
def divide(op: Op, a: Axes, b: Axes) -> list[Axes]:
    """Zero where the numerator is."""
    op.divides_by(1)
    op.zeros(factors=[0])
    return [op.broadcast(a, b)]


@rule("Pow")
def power(op: Op, x: Axes, y: Axes) -> list[Axes]:
    """Zero where the base is, for positive constant exponents."""
    exponent = op.value(1)
    if exponent is not None and exponent.min(initial=1) > 0:
        op.zeros(factors=[0])
    return [op.broadcast(x, y)]


@rule("BitShift", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
def compare(op: Op, a: Axes, b: Axes) -> list[Axes]:
    """Two operands, broadcast; nothing is known about zeros."""
    return [op.broadcast(a, b)]


@rule("Where")
def where(op: Op, condition: Axes, x: Axes, y: Axes) -> list[Axes]:
    """Zero where both alternatives are."""
    op.zeros(terms=[1, 2])
    return [op.broadcast(condition, x, y)]


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(op: Op, x: Axes) -> list[Axes]:
    """A distribution over one axis; before opset 13 over all axes from ``axis`` on."""
    if op.opset < 13:
        op.pin(x[op.attribute("axis", 1) % max(len(x), 1) :], "softmax axis")
    elif x:
        op.pin(x[op.attribute("axis", -1)], "softmax axis")
    return [x]
