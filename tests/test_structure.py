"""What two models differ in, apart from the values of their weights, is found and named."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import tiny
from onnx import helper, numpy_helper, parser

from surgeon.graph.load import from_model, load
from surgeon.structure import first_difference, structure_of

LOOP = """
<ir_version: 8, opset_import: ["" : 17]>
looped (float[4] x, bool going) => (float[4] y)
{
  steps = Constant <value = int64 {3}> ()
  y = Loop (steps, going, x) <body = body (int64 k, bool on, float[4] state) => (bool further, float[4] next) {
    further = Identity (on)
    next = Mul (state, scale)
  }>
}
"""


def looped(factor: str = "Mul") -> onnx.ModelProto:
    model = parser.parse_model(LOOP.replace("Mul", factor))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "scale"))
    return model


def test_other_values_are_no_difference(tmp_path):
    first, second = (structure_of(load(tiny.convnet(tmp_path / "m.onnx", seed))) for seed in (0, 1))
    assert first == second
    assert first_difference(first, second) is None
    assert first["constant"]["w2"] == "float[24,16,3,3]"
    assert first["input"] == {"x": "float[?,3,8,8]"}
    assert first["node"]["y"] == 'Gemm(f, w3, b3) {"transB": 1}'


def reversed_nodes(model):
    """Inference does not need an order, and the loader makes one."""
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))


def test_the_order_of_nodes_is_no_difference(tmp_path):
    model = onnx.load(tiny.convnet(tmp_path / "m.onnx"))
    first = structure_of(from_model(model))
    reversed_nodes(model)
    assert first_difference(structure_of(from_model(model)), first) is None


def attribute(model):
    model.graph.node[0].attribute.append(helper.make_attribute("group", 1))


def opset(model):
    model.opset_import[0].version = 16


def operator(model):
    model.graph.node[1].op_type = "Sigmoid"


def surplus(model):
    model.graph.node.append(helper.make_node("Relu", ["r2"], ["more"]))


def halves(model):
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "M"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            attribute,
            'node c1 is Conv(x, w1, b1) {"group": 1, "kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, in the plan',
        ),
        (opset, "opset ai.onnx is 16, in the plan's graph 17"),
        (operator, "node r1 is Sigmoid(c1), in the plan's graph Relu(c1)"),
        (surplus, "node more, Relu(r2), is not in the plan's graph"),
        (halves, "output y is float[?,?], in the plan's graph float[?,10]"),
    ],
)
def test_differences_are_named(tmp_path, change, said):
    model = onnx.load(tiny.convnet(tmp_path / "m.onnx"))
    expected = structure_of(from_model(model))
    change(model)
    assert said in str(first_difference(structure_of(from_model(model)), expected))


def test_bodies_are_compared_as_well():
    expected = structure_of(from_model(looped()))
    assert first_difference(structure_of(from_model(looped())), expected) is None
    said = first_difference(structure_of(from_model(looped("Add"))), expected)
    assert said == "node next is Add(state, scale), in the plan's graph Mul(state, scale)"


def test_integers_are_structure():
    def model(size):
        graph = parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17]> g (float[4] x) => (float[a,b] y) { y = Reshape (x, shape) }'
        )
        graph.graph.initializer.append(numpy_helper.from_array(np.array(size), "shape"))
        return structure_of(from_model(graph))

    assert first_difference(model([2, 2]), model([4, 1])) == (
        "constant shape is int64[2] = [2, 2], in the plan's graph int64[2] = [4, 1]"
    )


def test_a_long_description_is_cut_short():
    said = first_difference({"node": {"y": "a" * 999}}, {"node": {"y": "b" * 999}})
    assert said is not None
    assert len(said) < 400
