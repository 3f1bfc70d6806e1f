"""Derivatives of trigonometric and hyperbolic functions."""

from __future__ import annotations

import numpy as np
import pytest
from grad.oracle import check


@pytest.mark.parametrize(
    "op", ["Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Atanh"]
)
def test_around_zero(op):
    x = np.random.default_rng(0).uniform(-0.8, 0.8, (5, 3))
    check("T[N,3] x", "T[N,3] y", f"y = {op} (x)", {"x": x})


def test_acosh():
    x = np.random.default_rng(0).uniform(1.2, 3, (5, 3))
    check("T[N,3] x", "T[N,3] y", "y = Acosh (x)", {"x": x})
