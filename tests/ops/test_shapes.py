"""Shape arithmetic: reading a size does not pin it, constants that repeat it are rewritten."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build, check, check_cut, drop, features, ints, only, reasons, solved


def test_shape_and_size_do_not_pin_what_they_read():
    body = """
    s = Shape (a)
    n = Size (a)
    m = ReduceProd <keepdims=0> (s)
    e = Equal (n, m)
    f = Cast <to=1> (e)
    b = Mul (a, f)
    """
    check(features(body, 12), [12])


def test_shape_with_a_range():
    body = "s = Shape <start=0, end=2> (a)\nt = Concat <axis=0> (s, h, d)\nr = Reshape (a, t)\nb = Reshape (r, join)"
    check(features(body, 12, {"h": ints(3), "d": ints(4), "join": ints(0, 0, -1)}), [3, 4])


def test_a_scale_computed_from_a_size_keeps_its_value():
    """``1 / sqrt(head_dim)``: the cut must not change it."""
    body = """
    s = Shape (a)
    d = Gather (s, two)
    f = Cast <to=1> (d)
    q = Sqrt (f)
    b = Div (a, q)
    """
    found = check(features(body, 12, {"two": np.int64(2)}), [12])
    smaller = check_cut(found, {found.groups[0].id: drop(12, 0)})
    assert only(smaller, "Div").inputs[1].values == np.sqrt(np.float32(12))


def test_a_scale_computed_from_a_size_beside_dynamic_ones_keeps_its_value():
    body = """
    s = Shape (a)
    f = Cast <to=1> (s)
    d = Gather (f, two)
    b = Div (a, d)
    """
    check(features(body, 12, {"two": np.int64(2)}), [12])


def test_constant_of_shape_takes_the_axes_of_its_use():
    body = """
    s = Shape (a)
    n = Slice (s, zero, two)
    t = Concat <axis=0> (n, c)
    o = ConstantOfShape <value = float[1] {0.5}> (t)
    b = Add (a, o)
    """
    found = check(features(body, 12, {"zero": ints(0), "two": ints(2), "c": ints(12)}), [12])
    assert only(found.analysis.graph, "ConstantOfShape")


def test_constant_of_a_constant_shape():
    body = "o = ConstantOfShape <value = float[1] {0.5}> (t)\np = Mul (o, a)\nb = Add (p, a)"
    check(features(body, 12, {"t": ints(7, 12)}), [12])


def test_range_is_a_fixed_axis():
    model = build(
        "float[N,T,5] x",
        "float[N,T,3] y",
        """
        a = MatMul (x, w_in)
        s = Shape (x)
        t = Gather (s, i1)
        positions = Range (i0, t, i1)
        p = Gather (table, positions)
        b = Add (a, p)
        y = MatMul (b, w_out)
        """,
        {"w_in": (5, 12), "i0": np.int64(0), "i1": np.int64(1), "table": (400, 12), "w_out": (12, 3)},
    )
    found = check(model, [12])
    assert "consecutive numbers" in reasons(found)


def test_shapes_as_graph_outputs_are_barriers_to_nothing_else():
    model = build(
        "float[N,5] x",
        "float[N,3] y, int64[2] s",
        "a = MatMul (x, w_in)\ns = Shape (x)\ny = MatMul (a, w_out)",
        {"w_in": (5, 12), "w_out": (12, 3)},
    )
    assert [group.size for group in solved(model).groups] == [12]
    check(model, [12])


@pytest.mark.parametrize(
    "body", ["l = ConstantOfShape (s)", "l = Expand (c, s)", "l = Pad (a, p)"], ids=["fill", "expand", "pad"]
)
def test_axes_too_long_for_memory_are_no_channels(body):
    """A few bytes may claim any size; analysing them takes no memory for it."""
    weights = {"s": ints(2**30, 2**30), "c": np.float32([[1]]), "p": ints(0, 0, 0, 0, 0, 2**30)}
    found = solved(features(f"{body}\nm = ReduceSum <keepdims=0> (l)\nb = Add (a, m)", 12, weights))
    assert [group.size for group in found.groups] == [12]
    assert "too long for channels" in reasons(found)
