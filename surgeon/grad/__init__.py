"""Differentiation of graphs: gradients are one more graph, run by the same runtime."""

from surgeon.grad import rules
from surgeon.grad.differentiate import Gradient, gradient
from surgeon.grad.registry import DERIVATIVES, DerivativeRule, derivative
from surgeon.grad.step import Step
from surgeon.grad.tape import Tape, Value

__all__ = [
    "DERIVATIVES",
    "DerivativeRule",
    "Gradient",
    "Step",
    "Tape",
    "Value",
    "derivative",
    "gradient",
    "rules",
]
