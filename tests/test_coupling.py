"""The coupling graph: which axes an operator relates, and the shortest chains of operators."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
from onnx import numpy_helper, parser

from surgeon.axes import atoms_of
from surgeon.coupling import Relation, Step, TensorAxis, chain, chain_to_reason, coupling
from surgeon.engine import analyse
from surgeon.graph.load import from_model

BLOCK = """
<ir_version: 8, opset_import: ["" : 17]>
block (float[1,3,8,8] x) => (float[1,5,8,8] y)
{
  a = Conv (x, w1)
  b = Relu (a)
  c = Conv (b, w2)
  d = Add (b, c)
  e = Mul (d, d)
  y = Conv (e, w3)
}
"""
SHAPES = {"w1": (6, 3, 1, 1), "w2": (6, 6, 1, 1), "w3": (5, 6, 1, 1)}


def solved(text, shapes):
    model = parser.parse_model(text)
    for node in model.graph.node:
        node.name = f"{node.op_type.lower()}_{node.output[0]}"
    for name, shape in shapes.items():
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    onnx.checker.check_model(model)
    return analyse(from_model(model))


def atom_of(model, tensor):
    return next(group.atom for group in model.groups if (tensor, 0) in group.members)


def test_an_operand_used_twice_has_two_edges():
    graph = coupling(solved(BLOCK, SHAPES).analysis)
    roles = {
        (edge["op"], edge["role"])
        for _, relation, edge in graph.edges(TensorAxis("d", 1), data=True)
        if isinstance(relation, Relation)
    }
    assert {("Mul mul_e", "input 0"), ("Mul mul_e", "input 1"), ("Add add_d", "output 0")} <= roles


def test_the_graph_grows_linearly_with_a_star_per_operator():
    graph = coupling(solved(BLOCK, SHAPES).analysis)
    edges = [edge for edge in graph.edges(data=True) if edge[2]["op"] == "Conv conv_c"]
    shared = [edge for edge in edges if TensorAxis("w2", 0) in edge[:2]]
    assert len(shared) == 1  # to the relation only, not to every other axis


def test_the_shortest_chain_names_each_operator_and_its_two_axes():
    model = solved(BLOCK, SHAPES)
    steps = chain(
        coupling(model.analysis), [TensorAxis("w1", 0)], [TensorAxis("w3", 1)], atom_of(model, "w1")
    )
    assert [step.op for step in steps] == [
        "Conv conv_a",
        "Relu relu_b",
        "Add add_d",
        "Mul mul_e",
        "Conv conv_y",
    ]
    assert steps[0] == Step("Conv conv_a", TensorAxis("w1", 0), TensorAxis("a", 1))
    assert all(one.end == other.start for one, other in itertools.pairwise(steps))


def test_a_chain_from_an_axis_to_itself_is_empty():
    model = solved(BLOCK, SHAPES)
    here = [TensorAxis("w1", 0)]
    assert chain(coupling(model.analysis), here, here, atom_of(model, "w1")) == []


def test_a_chain_does_not_leave_what_is_shared():
    """a and b are parts of one concatenation: they meet in its output, but share no channels."""
    model = solved(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        joined (float[1,3,8,8] x) => (float[1,5,8,8] y)
        {
          a = Conv (x, w1)
          b = Conv (x, w2)
          c = Concat <axis = 1> (a, b)
          y = Conv (c, w3)
        }
        """,
        {"w1": (4, 3, 1, 1), "w2": (6, 3, 1, 1), "w3": (5, 10, 1, 1)},
    )
    graph = coupling(model.analysis)
    assert chain(graph, [TensorAxis("a", 1)], [TensorAxis("b", 1)], atom_of(model, "w1")) is None
    steps = chain(graph, [TensorAxis("a", 1)], [TensorAxis("w3", 1)], atom_of(model, "w1"))
    assert [step.op for step in steps] == ["Concat concat_c", "Conv conv_y"]


def pinned_at(model, tensor, axis):
    return next(iter(atoms_of(model.analysis.axes[tensor][axis])))


def test_the_chain_to_a_reason_ends_at_who_gave_it():
    model = solved(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        scores (float[4,3] x) => (float[4,7] y)
        {
          a = MatMul (x, w1)
          b = Relu (a)
          c = Softmax (b)
          y = MatMul (c, w2)
        }
        """,
        {"w1": (3, 6), "w2": (6, 7)},
    )
    graph = coupling(model.analysis)
    steps = chain_to_reason(graph, [TensorAxis("w1", 1)], pinned_at(model, "w1", 1))
    assert [step.op for step in steps] == ["MatMul matmul_a", "Relu relu_b", "Softmax softmax_c"]
    assert steps[-1].start == steps[-1].end
    to_input = chain_to_reason(graph, [TensorAxis("w1", 0)], pinned_at(model, "w1", 0))
    assert to_input == [Step("MatMul matmul_a", TensorAxis("w1", 0), TensorAxis("x", 1))]
    assert chain_to_reason(graph, [TensorAxis("y", 1)], pinned_at(model, "y", 1)) == []
