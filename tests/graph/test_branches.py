"""An If that always goes one way becomes that branch, and one that only seems to does not."""

from __future__ import annotations

import numpy as np
import pytest

from surgeon.graph.branches import inline_branches
from surgeon.graph.canonical import canonicalize, without_decided
from surgeon.graph.load import from_model
from surgeon.graph.order import every_node
from surgeon.graph.save import to_model
from surgeon.graph.shapes import infer

SQUEEZE = (
    "net (float[N,1,6] x) => (float[N,6] y) { s = Shape (x)  n = Gather <axis = 0> (s, AXIS)  c = Equal (n, one)"
    " z = If (c) <then_branch = t () => (p) { p = Squeeze (x, one) },"
    " else_branch = e () => (q) { q = Reshape (x, flat) }>  y = Relu (z) }"
)
WEIGHTS = {"zero": np.array([0]), "one": np.array([1]), "flat": np.array([-1, 6])}


@pytest.mark.parametrize(("axis", "left"), [("one", ["Squeeze", "Relu"]), ("zero", None)])
def test_a_size_that_never_changes_decides(parse, run, axis, left) -> None:
    model = parse(SQUEEZE.replace("AXIS", axis), **WEIGHTS)
    graph = from_model(model)
    canonicalize(graph, infer(graph))
    operators = [node.op for node in graph.nodes]
    assert operators == left if left else "If" in operators
    for batch in (1, 3):
        feeds = {"x": np.random.default_rng(0).standard_normal((batch, 1, 6)).astype(np.float32)}
        np.testing.assert_array_equal(run(to_model(graph), **feeds)[0], run(model, **feeds)[0])


def test_nested_branches_keep_the_names_of_outputs(parse, run) -> None:
    model = parse(
        "net (float[N,4] x) => (float[N,4] y, float[N,4] z) {"
        " y, z = If (yes) <then_branch = t () => (p, r) {"
        "  p = If (no) <then_branch = t2 () => (a) { a = Neg (x) }, else_branch = e2 () => (b) { b = Relu (x) }>"
        "  r = Add (p, one) },"
        " else_branch = e () => (q, q2) { q = Abs (x)  q2 = Identity (x) }> }",
        yes=np.array(True),
        no=np.array(False),
        one=np.ones(4, np.float32),
    )
    graph = from_model(model)
    assert inline_branches(graph, infer(graph)) == 2
    assert [node.op for node in every_node(graph)] == ["Relu", "Add"]
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)}
    for mine, theirs in zip(run(to_model(graph), **feeds), run(model, **feeds), strict=True):
        np.testing.assert_array_equal(mine, theirs)


TWO = (
    "net (float[N,4] x) => (float[N,4] y) {"
    " [one] z = If (yes) <then_branch = t () => (p) { [n] m = Mul (x, two) [m] p = Add (m, m) },"
    " else_branch = e () => (q) { [n] q = Neg (x) }>"
    " [two] y = If (yes) <then_branch = t2 () => (p2) { [n] k = Mul (z, two) [m] p2 = Add (k, z) },"
    " else_branch = e2 () => (q2) { [n] q2 = Abs (z) }> }"
)


@pytest.mark.parametrize("decide", [inline_branches, canonicalize])
def test_nodes_of_two_branches_may_have_equal_names(parse, run, decide) -> None:
    model = parse(TWO, yes=np.array(True), two=np.full(4, 2.0, np.float32))
    graph = from_model(model)
    decide(graph, infer(graph))
    assert [node.name for node in graph.nodes] == ["n", "m", "n__2", "m__2"]
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)}
    np.testing.assert_array_equal(run(to_model(graph), **feeds)[0], run(model, **feeds)[0])


def test_a_graph_without_decided_branches_is_itself_and_another_stays_as_it_was(parse, run) -> None:
    open_one, closed = (
        from_model(parse(SQUEEZE.replace("AXIS", axis), **WEIGHTS)) for axis in ("zero", "one")
    )
    assert without_decided(open_one, lambda name: False) is open_one
    found = without_decided(closed, lambda name: False)
    assert "If" in [node.op for node in closed.nodes]
    assert "If" not in [node.op for node in found.nodes]
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 1, 6)).astype(np.float32)}
    np.testing.assert_array_equal(run(to_model(found), **feeds)[0], run(to_model(closed), **feeds)[0])


@pytest.mark.parametrize("name", ["one", "two", "n", "p", "p2", "q", "y", "z", "yes"])
def test_branches_stay_where_a_name_a_user_gave_would_be_gone(parse, name) -> None:
    graph = from_model(parse(TWO, yes=np.array(True), two=np.full(4, 2.0, np.float32)))
    assert without_decided(graph, lambda each: each == name) is graph


UNSTEADY = {
    "odd": "m = Mod (n, two)  c = Equal (m, one)",
    "at least two": "m = Min (n, two)  c = Equal (m, two)",
    "a sign": "d = Sub (n, one)  m = Sign (d)  c = Cast <to = 9> (m)",
    "a part": "p = Slice (x, zero, two, zero)  d = Shape (p)  m = Gather <axis = 0> (d, zero)  c = Equal (m, two)",
    "a rest": "p = Slice (x, far, end, zero)  d = Shape (p)  m = Gather <axis = 0> (d, zero)  c = Equal (m, zero)",
}


@pytest.mark.parametrize("condition", UNSTEADY.values(), ids=list(UNSTEADY))
@pytest.mark.parametrize("decide", [inline_branches, canonicalize])
def test_what_two_sizes_decide_alike_by_chance_stays(parse, run, condition, decide) -> None:
    numbers = {"zero": 0, "one": 1, "two": 2, "far": 200, "end": 10000}
    model = parse(
        "net (float[N,6] x) => (float[N,6] y) { s = Shape (x)  n = Gather <axis = 0> (s, zero) "
        + condition
        + " y = If (c) <then_branch = t () => (p1) { p1 = Neg (x) }, else_branch = e () => (q) { q = Abs (x) }> }",
        **{name: np.array([value]) for name, value in numbers.items()},
    )
    graph = from_model(model)
    decide(graph, infer(graph))
    for batch in (1, 2, 3, 4, 300):
        feeds = {"x": np.random.default_rng(0).standard_normal((batch, 6)).astype(np.float32)}
        np.testing.assert_array_equal(run(to_model(graph), **feeds)[0], run(model, **feeds)[0])


@pytest.mark.parametrize(("divisor", "batches"), [(2, (1, 2, 3)), (5000, (4999, 5000))])
def test_sizes_are_tried_one_by_one_and_large_ones_too(parse, run, divisor, batches) -> None:
    """A convolution takes no small images; a batch of one is tried all the same."""
    model = parse(
        "net (float[N,1,H,W] x) => (float[N,1,A,B] y) { k = Conv (x, w)  s = Shape (x)  n = Gather <axis = 0> (s, zero)"
        " d = Div (n, by)  c = Cast <to = 9> (d)"
        " y = If (c) <then_branch = t () => (p) { p = Neg (k) }, else_branch = e () => (q) { q = Abs (k) }> }",
        w=np.ones((1, 1, 7, 7), np.float32),
        zero=np.array([0]),
        by=np.array([divisor]),
    )
    graph = from_model(model)
    canonicalize(graph, infer(graph))
    for batch in batches:
        feeds = {"x": np.random.default_rng(0).standard_normal((batch, 1, 8, 8)).astype(np.float32)}
        np.testing.assert_array_equal(run(to_model(graph), **feeds)[0], run(model, **feeds)[0])


def test_a_name_that_is_there_once_stays_where_it_is(parse) -> None:
    text = TWO.replace("[m] p2", "[n__2] p2")
    graph = from_model(parse(text, yes=np.array(True), two=np.full(4, 2.0, np.float32)))
    inline_branches(graph, infer(graph))
    assert [node.name for node in graph.nodes] == ["n", "m", "n__3", "n__2"]


@pytest.mark.parametrize("name", ["k", "nothing"])
def test_branches_go_where_what_a_user_named_keeps_its_name(parse, name) -> None:
    graph = from_model(parse(TWO, yes=np.array(True), two=np.full(4, 2.0, np.float32)))
    assert without_decided(graph, lambda each: each == name) is not graph
