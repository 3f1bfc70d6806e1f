"""Derivatives of pools."""

from __future__ import annotations

import numpy as np
import pytest
from grad.oracle import check
from hypothesis import given, settings
from hypothesis import strategies as some

WINDOWS = (
    "kernel_shape=[2,2], strides=[2,2]",
    "kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]",
    "kernel_shape=[3,2], strides=[1,2], pads=[1,0,2,1]",
    "kernel_shape=[5,5], pads=[2,2,2,2]",
    "kernel_shape=[2,2], strides=[3,3]",
    "kernel_shape=[3,3], strides=[2,2], ceil_mode=1",
    "kernel_shape=[2,2], strides=[2,2], pads=[1,1,0,0], ceil_mode=1",
    "kernel_shape=[2,3], strides=[2,4], pads=[1,1,1,1], ceil_mode=1",
    "kernel_shape=[2,2], strides=[4,4], ceil_mode=1",
    'kernel_shape=[3,2], strides=[2,2], auto_pad="SAME_UPPER"',
    'kernel_shape=[2,2], strides=[1,1], auto_pad="SAME_LOWER"',
    'kernel_shape=[3,2], strides=[2,2], auto_pad="VALID"',
)


def pool(op, x, attributes, *, dynamic=False, opset=21, **options):
    """Different numbers everywhere, far from ties; onnx's evaluator has mistakes in pools."""
    names = ",".join("NCHWD"[k] if dynamic and k != 1 else str(size) for k, size in enumerate(x))
    random = np.random.default_rng(0)
    values = random.permutation(np.linspace(-2, 2, int(np.prod(x)))).reshape(x)
    out = ",".join(["N", str(x[1]), *"PQR"[: len(x) - 2]])
    body = f"y = {op} <{attributes}> (x)" if attributes else f"y = {op} (x)"
    return check(f"T[{names}] x", f"T[{out}] y", body, {"x": values}, opset=opset, reference=False, **options)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("opset", [9, 12, 18, 21])
@pytest.mark.parametrize("attributes", WINDOWS)
def test_pools(op, opset, attributes):
    since = {"MaxPool": 10, "AveragePool": 10, "LpPool": 18}[op]
    if "ceil_mode" not in attributes or opset >= since:
        pool(op, (2, 3, 7, 6), attributes, opset=opset)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("opset", [12, 21])
@pytest.mark.parametrize("attributes", [w for w in WINDOWS if "SAME_UPPER" not in w])
def test_pools_of_open_sizes(op, opset, attributes):
    if "ceil_mode" not in attributes or op != "LpPool" or opset >= 18:
        pool(op, (2, 3, 7, 6), attributes, opset=opset, dynamic=True)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("attributes", [w for w in WINDOWS if "pads" in w])
def test_padding_counts(attributes, dynamic):
    pool("AveragePool", (2, 3, 7, 6), attributes + ", count_include_pad=1", dynamic=dynamic)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
def test_dilated_pools(op, dynamic):
    attributes = "kernel_shape=[2,3], dilations=[2,1], pads=[1,1,0,1], strides=[1,2]"
    pool(op, (2, 3, 7, 6), attributes, dynamic=dynamic)
    if op == "MaxPool":
        pool(op, (2, 3, 7, 6), attributes, dynamic=dynamic, opset=12)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
def test_pools_of_other_ranks(op):
    pool(op, (2, 3, 9), "kernel_shape=[3], strides=[2], pads=[1,1]")
    pool(op, (2, 3, 8), "kernel_shape=[2], strides=[2]", opset=11)
    pool(op, (2, 3, 5, 4, 6), "kernel_shape=[3,2,2], strides=[2,1,2], pads=[1,0,1,0,1,0]")


@pytest.mark.parametrize("p", [1, 2, 3])
def test_norms(p):
    pool("LpPool", (2, 3, 6, 6), f"p={p}, kernel_shape=[2,2], strides=[2,2]")
    pool("GlobalLpPool", (2, 3, 6, 5), f"p={p}")


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_global_pools(op, dynamic):
    pool(op, (2, 3, 6, 5), "", dynamic=dynamic)
    pool(op, (2, 3, 6), "", dynamic=dynamic, opset=8)


def test_max_pool_of_two_outputs():
    body = "y, i = MaxPool <kernel_shape=[2,2]> (x)"
    x = np.random.default_rng(0).permutation(np.linspace(-2, 2, 60)).reshape(1, 2, 6, 5)
    check("T[1,2,6,5] x", "T[1,2,5,4] y, int64[1,2,5,4] i", body, {"x": x}, reference=False)


@given(some.data())
@settings(max_examples=25, deadline=None)
def test_any_pool(data):
    rank = data.draw(some.integers(1, 3))
    draw = lambda low, high: [data.draw(some.integers(low, high)) for _ in range(rank)]  # noqa: E731
    kernel, strides = draw(1, 3), draw(1, 3)
    before, after = ([min(p, k - 1) for p, k in zip(draw(0, 2), kernel, strict=True)] for _ in range(2))
    op = data.draw(some.sampled_from(["MaxPool", "AveragePool"]))
    attributes = {"kernel_shape": kernel, "strides": strides, "pads": [*before, *after]}
    text = ", ".join(f"{name}=[{','.join(map(str, each))}]" for name, each in attributes.items())
    opset, dynamic = data.draw(some.sampled_from([11, 17, 21])), data.draw(some.booleans())
    pool(op, (2, 2, *draw(4, 7)), text, opset=opset, dynamic=dynamic)
