"""The data-flow view: what is connected to what, in which order, and along which way."""

from __future__ import annotations

import networkx as nx
import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx import parser

from surgeon.graph.load import from_model
from surgeon.graph.views import Operator, Tensor, ancestors, data_flow, descendants, run_order, way

DIAMOND = """
<ir_version: 8, opset_import: ["" : 17]>
diamond (float[2,3] x) => (float[2,3] y, float[2,3] z)
{
  a = Relu (x)
  b = Neg (a)
  c = Mul (a, a)
  y = Add (b, c)
  z = Abs (x)
}
"""


@pytest.fixture
def graph():
    return from_model(parser.parse_model(DIAMOND))


def test_a_tensor_used_twice_has_two_edges(graph):
    flow = data_flow(graph)
    slots = [edge["slot"] for _, _, edge in flow.edges(Tensor("a"), data=True)]
    assert sorted(slots) == [0, 0, 1]
    assert flow.number_of_edges(Tensor("a"), Operator(2)) == 2


def test_every_operator_and_tensor_is_there_with_its_label(graph):
    flow = data_flow(graph)
    assert {v.name for v in flow if isinstance(v, Tensor)} == {"x", "a", "b", "c", "y", "z"}
    assert [flow.nodes[Operator(k)]["label"] for k in range(5)] == [
        "Relu a",
        "Neg b",
        "Mul c",
        "Add y",
        "Abs z",
    ]


def test_order_is_that_of_the_file_where_that_runs(graph):
    assert run_order(data_flow(graph)) == [Operator(k) for k in range(5)]


def test_order_repairs_a_file_in_the_wrong_order():
    x, y, z = (gs.Variable(name, np.float32, [2]) for name in "xyz")
    nodes = [gs.Node("Neg", inputs=[y], outputs=[z]), gs.Node("Relu", inputs=[x], outputs=[y])]
    flow = data_flow(gs.Graph(nodes, [x], [z]))
    assert run_order(flow) == [Operator(1), Operator(0)]


def test_ancestors_and_descendants(graph):
    flow = data_flow(graph)
    assert ancestors(flow, [Tensor("b")]) == {Tensor("x"), Operator(0), Tensor("a"), Operator(1)}
    assert ancestors(flow, [Tensor("x")]) == set()
    assert descendants(flow, [Tensor("c"), Tensor("b")]) == {Operator(3), Tensor("y")}


def test_the_shortest_way_includes_both_ends(graph):
    flow = data_flow(graph)
    assert way(flow, [Tensor("x")], [Tensor("z")]) == [Tensor("x"), Operator(4), Tensor("z")]
    assert way(flow, [Tensor("z")], [Tensor("x")]) is None
    assert way(flow, [], [Tensor("x")]) is None
    assert way(flow, [Tensor("x")], [Tensor("x")]) == [Tensor("x")]


def test_what_a_branch_captures_goes_into_its_node():
    graph = from_model(
        parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        choice (bool[1] which, float[2] x) => (float[2] y)
        {
          a = Relu (x)
          y = If (which) <
            then_branch = left () => (float[2] l) { l = Neg (a) },
            else_branch = right () => (float[2] r) { r = Abs (a) }
          >
        }
        """)
    )
    flow = data_flow(graph)
    labels = {flow.nodes[end]["label"]: edge["slot"] for _, end, edge in flow.edges(Tensor("a"), data=True)}
    assert labels == {"Neg l": 0, "Abs r": 0, "If y": -1}
    assert [Tensor(name) in flow.predecessors(Operator(3)) for name in ("l", "r")] == [True, True]
    assert nx.is_directed_acyclic_graph(flow)
