"""Shapes inside the bodies of If, Loop and Scan, at the same sizes as around them."""

from __future__ import annotations

import numpy as np

from surgeon.graph.load import from_model
from surgeon.graph.shapes import infer


def shapes_of(model):
    return infer(from_model(model))


def test_both_branches_are_inferred(parse) -> None:
    shapes = shapes_of(
        parse(
            "net (bool c, float[N,4] x) => (float[N,4] y) {"
            " y = If (c) <then_branch = t () => (float[N,4] p) { p = Relu (x) },"
            " else_branch = e () => (float[N,4] q) { r = Transpose (x)  q = Transpose (r) }> }"
        )
    )
    batch = shapes.probe["N"]
    assert shapes.dims["p"] == shapes.dims["q"] == shapes.dims["y"] == (batch, 4)
    assert shapes.dims["r"] == (4, batch)
    assert shapes.dynamic["r"] == (False, True)


def test_a_branch_that_is_not_taken_may_make_no_sense(parse) -> None:
    text = (
        (
            "net (float[N,4,6] x) => (y) { s = Shape (x)  n = Gather <axis = 0> (s, two)  c = Equal (n, {size})"
            " y = If (c) <then_branch = t () => (p) {{ p = Squeeze (x, two) }},"
            " else_branch = e () => (q) {{ q = Identity (x) }}> }"
        )
        .replace("{{", "{")
        .replace("}}", "}")
    )
    weights = {"two": np.array([2]), "one": np.array([1]), "six": np.array([6])}
    shapes = shapes_of(parse(text.replace("{size}", "one"), **weights))
    assert shapes.dims["y"] == (shapes.probe["N"], 4, 6)
    assert not shapes.failures
    assert "p" in shapes.aside
    shapes = shapes_of(parse(text.replace("{size}", "six"), **weights))
    assert shapes.failures.keys() == {"p"}, "the branch that is taken has to be right"


def test_branches_that_disagree_leave_a_dynamic_axis(parse) -> None:
    shapes = shapes_of(
        parse(
            "net (bool c, float[N,4] x) => (y) {"
            " y = If (c) <then_branch = t () => (p) { p = Identity (x) },"
            " else_branch = e () => (q) { q = Concat <axis = 1> (x, x) }> }"
        )
    )
    assert shapes.dims["y"][0] == shapes.probe["N"]
    assert shapes.dynamic["y"] == (True, True)


LOOP = (
    "net (float[N,4] x) => (y, z) { y, z = Loop (m, , x)"
    " <body = b (int64 i, bool k, h) => (k2, h2, o) { k2 = Identity (k)  HERE }> }"
)


def test_a_loop_keeps_the_shape_of_its_state(parse) -> None:
    shapes = shapes_of(parse(LOOP.replace("HERE", "h2 = Relu (h)  o = Transpose (h)"), m=np.array(5)))
    batch = shapes.probe["N"]
    assert shapes.dims["h"] == shapes.dims["h2"] == shapes.dims["y"] == (batch, 4)
    assert shapes.dims["i"] == shapes.dims["k"] == ()
    assert shapes.dims["z"] == (5, 4, batch)
    assert shapes.dynamic["z"] == (False, False, True)


def test_an_axis_that_grows_from_iteration_to_iteration_is_dynamic(parse) -> None:
    body = "h2 = Concat <axis = 1> (h, h)  o = Relu (h)"
    shapes = shapes_of(parse(LOOP.replace("HERE", body), m=np.array(5)))
    assert shapes.dims["h"][0] == shapes.probe["N"]
    assert shapes.dynamic["h"] == shapes.dynamic["y"] == (True, True)


def test_a_loop_that_may_stop_has_no_known_number_of_iterations(parse) -> None:
    text = LOOP.replace("k2 = Identity (k)", "s = ReduceSum <keepdims = 0> (h)  k2 = Greater (s, zero)")
    text = text.replace("HERE", "h2 = Relu (h)  o = Relu (h)")
    shapes = shapes_of(parse(text, m=np.array(5), zero=np.array(0, np.float32)))
    assert shapes.dynamic["z"][0]
    never = LOOP.replace("HERE", "h2 = Relu (h)  o = Relu (h)").replace("Loop (m, , x)", "Loop ( , t, x)")
    assert shapes_of(parse(never, t=np.array(True))).dynamic["z"][0]


def test_a_scan_runs_along_any_axis(parse) -> None:
    shapes = shapes_of(
        parse(
            "net (float[N,T,4] x, float[N,6] h0) => (h, y) { h, y = Scan <num_scan_inputs = 1,"
            " scan_input_axes = [1], scan_output_axes = [-1],"
            " body = b (s, e) => (s2, o) { s2 = Relu (s)  o = Transpose (e) }> (h0, x) }"
        )
    )
    batch, time = shapes.probe["N"], shapes.probe["T"]
    assert shapes.dims["e"] == (batch, 4)
    assert shapes.dims["h"] == shapes.dims["s2"] == (batch, 6)
    assert shapes.dims["y"] == (4, batch, time)
    assert shapes.dynamic["y"] == (False, True, True)


def test_shapes_of_captured_tensors_reach_nested_bodies(parse) -> None:
    shapes = shapes_of(
        parse(
            "net (float[N,4] x, bool c) => (y) { a = Relu (x)  y = Loop (m, , x)"
            " <body = b (int64 i, bool k, h) => (k2, h2) { k2 = Identity (k)"
            " h2 = If (c) <then_branch = t () => (p) { p = Add (a, h) },"
            " else_branch = e () => (q) { v = Shape (a)  w = Reshape (h, v)  q = Relu (w) }> }> }",
            m=np.array(3),
        )
    )
    assert shapes.dims["p"] == shapes.dims["q"] == shapes.dims["y"] == (shapes.probe["N"], 4)
    assert shapes.values["v"].data.tolist() == [shapes.probe["N"], 4]
    assert shapes.values["v"].dynamic.tolist() == [True, False]
