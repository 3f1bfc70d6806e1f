"""Derivatives of Scan: recurrences written out."""

from __future__ import annotations

import numpy as np
import pytest
from grad.oracle import build, check

from surgeon.grad import gradient
from surgeon.graph.load import from_model

BODY = """
y, ys = Scan <num_scan_inputs=1{attributes}, body=b (T[2,3] h, T[2,3] x) => (T[2,3] g, T[2,3] z) {{
    m = MatMul (h, w)
    a = Add (m, x)
    g = Tanh (a)
    z = Mul (g, x)
}}> (h0, xs)
"""


def scan(xs, attributes="", *, ys="S,2,3", names="S,2,3", opset=21):
    body = BODY.format(attributes=attributes)
    return check(
        f"T[2,3] h0, T[{names}] xs",
        f"T[2,3] y, T[{ys}] ys",
        body,
        {"h0": (2, 3), "xs": xs},
        {"w": (3, 3)},
        opset=opset,
        reference=False,  # which walks forwards only
    )


@pytest.mark.parametrize("opset", [9, 11, 16, 21])
def test_scan(opset):
    scan((4, 2, 3), opset=opset)


def test_scan_the_other_way():
    scan((4, 2, 3), ", scan_input_directions=[1]")
    scan((4, 2, 3), ", scan_output_directions=[1]")
    scan((4, 2, 3), ", scan_input_directions=[1], scan_output_directions=[1]")


def test_scan_along_other_axes():
    scan((2, 4, 3), ", scan_input_axes=[1]", names="2,S,3")
    scan((2, 3, 4), ", scan_input_axes=[2], scan_output_axes=[1]", names="2,3,S", ys="2,S,3")


def test_a_state_that_counts():
    body = """
    one = Constant <value = int64 {1}> ()
    n, y, ys = Scan <num_scan_inputs=1, body=b (int64 i, T[2] h, T[2] x) => (int64 j, T[2] g, T[2] z) {
        j = Add (i, one)
        f = Cast <to=T> (i)
        a = Mul (h, x)
        g = Add (a, f)
        z = Identity (h)
    }> (i0, h0, xs)
    """
    feeds = {"i0": np.int64(0), "h0": (2,), "xs": (3, 2)}
    check("int64 i0, T[2] h0, T[S,2] xs", "int64 n, T[2] y, T[S,2] ys", body, feeds, reference=False)


def test_what_stops_in_a_body_is_told():
    body = """
    y, ys = Scan <num_scan_inputs=1, body=b (float[2] h, float[2] x) => (float[2] g, float[2] z) {
        r = Hardmax (h)
        g = Add (r, x)
        z = Identity (x)
    }> (h0, xs)
    l = ReduceSum (y)
    """
    graph = from_model(build("float[2] h0, float[S,2] xs", "float[1] l", body))
    found = gradient(graph, "l", ["h0"])
    assert "Hardmax" in found.stopped["h0"]
