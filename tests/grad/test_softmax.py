"""Derivatives of softmax, which normalises everything from an axis on before opset 13, and that axis only since."""

from __future__ import annotations

import pytest
from grad.oracle import check


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("opset", [9, 11, 12, 13, 21])
@pytest.mark.parametrize("attributes", ["", "<axis=1>", "<axis=2>", "<axis=-1>", "<axis=0>"])
def test_softmax(op, opset, attributes):
    if opset < 11 and "-1" in attributes:
        pytest.skip("axes are counted from the front")
    # onnx's evaluator knows the newer meaning only
    check(
        "T[N,3,L] x",
        "T[N,3,L] y",
        f"y = {op} {attributes} (x)",
        {"x": (2, 3, 4)},
        opset=opset,
        reference=opset >= 13,
    )


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax_over_a_small_axis(op):
    check("T[2,1] x", "T[2,1] y", f"y = {op} (x)", {"x": (2, 1)})
