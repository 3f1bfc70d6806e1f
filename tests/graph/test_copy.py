"""Copies share weights and nothing else."""

from __future__ import annotations

import numpy as np

from surgeon.graph.copy import copy_of
from surgeon.graph.load import from_model
from surgeon.graph.order import captured
from surgeon.graph.save import to_model
from surgeon.graph.source import source_of

IF = (
    "net (bool c, float[N, 4] x) => (float[N, 4] y) { u = Add(x, b)"
    " y = If (c) <then_branch = t () => (float[N, 4] p) { p = Mul(u, b) },"
    " else_branch = e () => (float[N, 4] q) { q = Mul(u, k) }> }"
)


def test_a_copy_is_equal_and_independent(parse) -> None:
    graph = from_model(parse(IF, b=np.ones(4, np.float32), k=np.full(4, 2, np.float32)))
    graph.nodes[0].inputs[1].origin = "somewhere"
    copy = copy_of(graph)
    assert to_model(copy) == to_model(graph)
    assert source_of(copy) is source_of(graph)
    assert copy.nodes[0].inputs[1].origin == "somewhere"
    copy.nodes[0].op = "Sub"
    copy.nodes[1].attrs["then_branch"].nodes[0].op = "Add"
    copy.nodes[0].inputs[1].values = np.zeros(4, np.float32)
    copy.inputs[1].shape[1] = 7
    assert graph.nodes[0].op == "Add"
    assert graph.nodes[1].attrs["then_branch"].nodes[0].op == "Mul"
    assert graph.nodes[0].inputs[1].values.all()
    assert graph.inputs[1].shape == ["N", 4]


def test_bodies_capture_the_copied_constants(parse) -> None:
    copy = copy_of(from_model(parse(IF, b=np.ones(4, np.float32), k=np.ones(4, np.float32))))
    body = copy.nodes[1].attrs["then_branch"]
    assert body.nodes[0].inputs[1] is copy.nodes[0].inputs[1]
    assert {tensor.name for tensor in captured(copy.nodes[1])} == {"u", "b"}


def test_constants_only_a_body_uses_are_written_with_it(parse, run) -> None:
    model = parse(IF, b=np.ones(4, np.float32), k=np.full(4, 2, np.float32))
    saved = to_model(copy_of(from_model(model)))
    assert [tensor.name for tensor in saved.graph.initializer] == ["b"]
    for condition in (True, False):
        feeds = {"c": np.array(condition), "x": np.ones((3, 4), np.float32)}
        np.testing.assert_array_equal(run(saved, **feeds)[0], run(model, **feeds)[0])
