"""Derivatives of reductions."""

from __future__ import annotations

import numpy as np
import pytest
from grad.oracle import check
from ops.oracle import ints

POSITIVE = np.random.default_rng(0).uniform(0.5, 2, (2, 3, 4))
ALL = (
    *("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"),
    *("ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd"),
)


@pytest.mark.parametrize("op", ALL)
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("opset", [8, 13, 18, 21])
def test_reductions(op, keepdims, opset):
    since = 13 if op == "ReduceSum" else 18
    y = "N,1,1" if keepdims else "N"
    for axes, out in (
        ([1, 2], y),
        ([-2], "N,1,4" if keepdims else "N,4"),
        (None, "1,1,1" if keepdims else ""),
    ):
        if axes and axes[0] < 0 and opset < 11:
            continue
        given = axes is not None and opset >= since
        listed = f"axes=[{','.join(map(str, axes))}], " if axes and not given else ""
        body = f"y = {op} <{listed}keepdims={keepdims}> (x{', a' if given else ''})"
        weights = {"a": ints(*axes)} if given else {}
        check("T[N,3,4] x", f"T[{out}] y", body, {"x": POSITIVE}, weights, opset=opset)


@pytest.mark.parametrize("op", ALL)
def test_reduction_of_no_axes(op):
    if op in ("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"):
        return  # onnx and onnxruntime do not agree on whether anything is done
    body = f"y = {op} <noop_with_empty_axes=1> (x)"
    check("T[N,3,4] x", "T[N,3,4] y", body, {"x": POSITIVE}, opset=18)


@pytest.mark.parametrize("op", ["ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp", "ReduceProd"])
def test_reductions_of_any_numbers(op):
    check("T[N,3,4] x", "T[N,4] y", f"y = {op} <keepdims=0> (x, a)", {"x": (2, 3, 4)}, {"a": ints(1)})


def test_products_with_zeros():
    x = np.random.default_rng(0).uniform(0.5, 2, (3, 4))
    x[0, 1] = x[1, 0] = x[1, 2] = 0.0
    check("T[N,4] x", "T[N,1] y", "y = ReduceProd (x, a)", {"x": x}, {"a": ints(1)})


def test_norm_of_nothing():
    x = np.random.default_rng(0).standard_normal((3, 4))
    body = "z = Mul (x, o)\ny = ReduceL2 (z, a)"
    check(
        "T[3,4] x",
        "T[3,1] y",
        body,
        {"x": x},
        {"a": ints(1), "o": np.array([[0.0]] + [[1.0]] * 2)},
        wrt=["x"],
    )
