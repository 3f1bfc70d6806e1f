"""Derivatives of operators that reshape, reorder and repeat."""

from __future__ import annotations

import numpy as np
import pytest
from grad.oracle import check
from ops.oracle import ints


def one(op, x, y, weights=None, *, inputs=None, opset=21, attributes="", extra="", **options):
    sizes = ",".join(map(str, inputs or x))
    given = f"<{attributes}>" if attributes else ""
    body = f"y = {op} {given} (x{extra})"
    wrt = ["x"]
    return check(f"T[{sizes}] x", f"T[{y}] y", body, {"x": x}, weights, opset=opset, wrt=wrt, **options)


def test_reshape():
    one("Reshape", (2, 3, 4), "2,12", {"s": ints(0, -1)}, extra=", s")
    one("Reshape", (2, 3, 4), "N,12", {"s": ints(-1, 12)}, extra=", s", inputs=("N", 3, 4), opset=8)
    one("Flatten", (2, 3, 4), "N,12", inputs=("N", 3, 4))
    one("Flatten", (2, 3, 4), "6,L", inputs=(2, 3, "L"), attributes="axis=-1")


@pytest.mark.parametrize("opset", [8, 11, 13, 21])
def test_squeeze_and_unsqueeze(opset):
    axes = {"attributes": "axes=[1]"} if opset < 13 else {"weights": {"a": ints(1)}, "extra": ", a"}
    one("Squeeze", (2, 1, 3), "N,3", inputs=("N", 1, 3), opset=opset, **axes)
    one("Unsqueeze", (2, 3), "N,1,3", inputs=("N", 3), opset=opset, **axes)
    one("Squeeze", (2, 1, 3, 1), "2,3", opset=opset)


def test_transpose():
    one("Transpose", (2, 3, 4), "4,3,2")
    one("Transpose", (2, 3, 4), "4,N,3", inputs=("N", 3, 4), attributes="perm=[2,0,1]")


def test_expand():
    one("Expand", (3, 1), "2,3,4", {"s": ints(2, 1, 4)}, extra=", s")
    one("Expand", (2, 1, 4), "N,5,4", {"s": ints(1, 5, 1)}, inputs=("N", 1, 4), extra=", s")
    body = "s = Shape (z)\ny = Expand (x, s)"
    check("T[1,3] x, T[N,3] z", "T[N,3] y", body, {"x": (1, 3), "z": (5, 3)}, wrt=["x"])


def test_tile():
    one("Tile", (2, 3), "2,9", {"r": ints(1, 3)}, extra=", r")
    one("Tile", (2, 3), "M,9", {"r": ints(2, 3)}, inputs=("N", 3), extra=", r", opset=8)
    one("Tile", (2, 3), "2,3", {"r": ints(1, 1)}, extra=", r")
    body = "r = Shape (z)\ny = Tile (x, r)"
    check("T[2,3] x, T[N,M] z", "T[P,Q] y", body, {"x": (2, 3), "z": (3, 2)}, wrt=["x"])


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
@pytest.mark.parametrize("sizes", [(2, 12, 3, 4), ("N", 12, "H", "W")])
def test_depth_to_space(mode, sizes):
    attributes = f'blocksize=2, mode="{mode}"'
    one("DepthToSpace", (2, 12, 3, 4), "N,3,P,Q", inputs=sizes, attributes=attributes)


@pytest.mark.parametrize("opset", [8, 21])
def test_space_to_depth(opset):
    sizes = ("N", 3, "H", 6)
    one("SpaceToDepth", (2, 3, 4, 6), "N,12,P,3", inputs=sizes, attributes="blocksize=2", opset=opset)


@pytest.mark.parametrize("upper", [0, 1])
def test_trilu(upper):
    one("Trilu", (2, 4, 5), "2,4,5", attributes=f"upper={upper}")
    one(
        "Trilu",
        (4, 4),
        "N,N",
        {"k": np.int64(-1)},
        inputs=("N", "N"),
        attributes=f"upper={upper}",
        extra=", k",
    )


def test_reverse_sequence():
    lengths = {"l": ints(4, 2, 3)}
    one("ReverseSequence", (4, 3, 2), "4,3,2", lengths, extra=", l")
    one("ReverseSequence", (3, 4, 2), "3,4,2", lengths, attributes="batch_axis=0, time_axis=1", extra=", l")


@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("exclusive", [0, 1])
def test_cum_sum(reverse, exclusive):
    attributes = f"reverse={reverse}, exclusive={exclusive}"
    one("CumSum", (3, 4), "N,4", {"a": np.int64(-1)}, inputs=("N", 4), attributes=attributes, extra=", a")
