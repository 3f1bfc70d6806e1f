"""Derivatives of operators that work element by element, with broadcasting."""

from __future__ import annotations

import numpy as np
import pytest
from grad.oracle import check


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean"])
@pytest.mark.parametrize("shape", [(1,), (3,), (4, 1), (2, 1, 1), (2, 4, 3)])
def test_two_operands_broadcast(op, shape):
    random = np.random.default_rng(0)
    values = {"x": random.uniform(0.5, 2, (2, 4, 3))}, {"b": random.uniform(0.5, 2, shape)}
    reference = op not in ("Sum", "Mean")  # onnx's evaluator does not broadcast them
    check("T[2,4,3] x", "T[2,4,3] y", f"y = {op} (x, b)", *values, reference=reference)
    check("T[2,4,3] x", "T[2,4,3] y", f"y = {op} (b, x)", *values, reference=reference)


@pytest.mark.parametrize("op", ["Sum", "Mean", "Max", "Min"])
def test_many_operands(op):
    reference = op not in ("Sum", "Mean")
    feeds = {"a": (2, 3), "b": (3,), "c": (2, 1)}
    check("T[2,3] a, T[3] b, T[2,1] c", "T[2,3] y", f"y = {op} (a, b, c)", feeds, reference=reference)


def test_operand_twice():
    check("T[2,3] x", "T[2,3] y", "y = Mul (x, x)", {"x": (2, 3)})


def test_power():
    positive = np.random.default_rng(0).uniform(0.5, 2, (2, 3))
    check("T[2,3] x, T[3] e", "T[2,3] y", "y = Pow (x, e)", {"x": positive, "e": (3,)})
    check("T[2,3] x", "T[2,3] y", "two = Constant <value = int64 {2}> ()\ny = Pow (x, two)", {"x": (2, 3)})


def test_powers_of_zero():
    x, e = np.array([0.0, 0.0, -1.5, 2.0]), np.array([0.0, 2.0, 0.0, 0.0])
    check("T[4] x", "T[4] y", "y = Pow (x, e)", {"x": x}, {"e": e}, wrt=["x"])


def test_prelu():
    check("T[N,3,4] x", "T[N,3,4] y", "y = PRelu (x, s)", {"x": (2, 3, 4)}, {"s": (3, 1)})


def test_where():
    condition = np.array([[True], [False]])
    check(
        "bool[2,1] c, T[2,3] a, T[3] b",
        "T[2,3] y",
        "y = Where (c, a, b)",
        {"c": condition, "a": (2, 3), "b": (3,)},
    )
