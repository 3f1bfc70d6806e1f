"""Derivatives of functions of one tensor."""

from __future__ import annotations

import numpy as np
import pytest
from grad.oracle import check

ACTIVATIONS = (
    *("Relu", "LeakyRelu <alpha=0.2>", "Elu <alpha=0.7>", "Sigmoid", "HardSigmoid <alpha=0.3, beta=0.4>"),
    *("HardSwish", "Tanh", "Erf", "Gelu", 'Gelu <approximate="tanh">', "Softplus", "Mish"),
    *("Selu", "Selu <alpha=1.2, gamma=0.8>", "Celu <alpha=0.6>", "ThresholdedRelu <alpha=0.3>", "Softsign"),
    *("Shrink <lambd=0.4, bias=0.1>", "Identity", "Neg", "Abs", "Exp", "Reciprocal"),
)


def unary(op, values, **options):
    return check("T[N,3] x", "T[N,3] y", f"y = {op} (x)", {"x": values}, **options)


@pytest.mark.parametrize("op", ACTIVATIONS)
def test_functions_of_one_tensor(op):
    reference = op != "Gelu" and "Celu" not in op  # which onnx has in single precision only
    unary(op, 3 * np.random.default_rng(0).standard_normal((5, 3)), reference=reference)


@pytest.mark.parametrize("op", ["Sqrt", "Log"])
def test_functions_of_positive_numbers(op):
    unary(op, np.random.default_rng(0).uniform(0.5, 2, (5, 3)))


def test_clip():
    check(
        "T[2,9] x",
        "T[2,9] y",
        "y = Clip (x, low, high)",
        {"x": (2, 9)},
        {"low": np.float64(-0.5), "high": np.float64(0.7)},
        wrt=["x"],
    )
    check("T[2,9] x", "T[2,9] y", "y = Clip <min=-0.5, max=0.7> (x)", {"x": (2, 9)}, opset=7, wrt=["x"])
    check("T[2,9] x", "T[2,9] y", "y = Clip (x, , high)", {"x": (2, 9)}, {"high": np.float64(0.7)}, wrt=["x"])


def test_cast_like():
    body = "a = Mul (x, x)\ny = CastLike (a, z)"
    check("T[2,3] x, T[1] z", "T[2,3] y", body, {"x": (2, 3), "z": (1,)}, wrt=["x"])


@pytest.mark.parametrize("opset", [8, 10, 12])
@pytest.mark.parametrize(
    "op", ["Selu", "Elu", "ThresholdedRelu <alpha=0.3>", "Abs", "HardSigmoid", "Softsign"]
)
def test_functions_of_old(op, opset):
    if opset >= 10 or "Thresholded" not in op:
        unary(op, 3 * np.random.default_rng(0).standard_normal((5, 3)), opset=opset)


def test_cast_and_dropout():
    check("T[2,3] x", "T[2,3] y", "d = Dropout (x)\ny = Cast <to=T> (d)", {"x": (2, 3)})
