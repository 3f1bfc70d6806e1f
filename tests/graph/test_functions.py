"""Local functions are inlined: nested ones, in bodies, with attributes, defaults and opsets of their own."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from surgeon.errors import UnsupportedModelError
from surgeon.graph.load import from_model
from surgeon.graph.order import every_node
from surgeon.graph.save import to_model

NESTED = """
<ir_version: 9, opset_import: ["" : 17, "local" : 1]>
g (float[N,5] x, bool flag) => (float[N,3] y) {
  a = local.block <slope = 0.3> (x, w1, b1)
  b = local.twice (a, w2)
  c = If (flag) <
    then_branch = t () => (p) { p = local.act <alpha = 0.1> (b) },
    else_branch = e () => (q) { q = Neg (b) }
  >
  y = MatMul (c, w3)
}
<domain: "local", opset_import: ["" : 17, "local" : 1]>
block <slope> (x, w, b) => (y) { h = Gemm (x, w, b) y = local.act <alpha : float = @slope> (h) }
<domain: "local", opset_import: ["" : OPSET]>
act <alpha> (x) => (y) { y = LeakyRelu <alpha : float = @alpha> (x) }
<domain: "local", opset_import: ["" : 17, "local" : 1]>
twice (x, w) => (y) { h = MatMul (x, w) r = local.act <alpha = 0.2> (h) y = MatMul (r, w) }
"""
SHAPES = {"w1": (5, 8), "b1": (8,), "w2": (8, 8), "w3": (8, 3)}


def nested(opset: int = 17) -> onnx.ModelProto:
    model = parser.parse_model(NESTED.replace("OPSET", str(opset)))
    random = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        weight = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    return model


def slopes(model: onnx.ModelProto) -> list[float]:
    nodes = every_node(from_model(model))
    return [round(node.attrs.get("alpha", 0.01), 4) for node in nodes if node.op == "LeakyRelu"]


@pytest.mark.parametrize("condition", [True, False])
def test_nested_functions_and_functions_in_bodies(run, condition) -> None:
    model = nested()
    graph = from_model(model)
    assert {node.domain for node in every_node(graph)} <= {None, ""}
    assert slopes(model) == [0.3, 0.2, 0.1]
    feeds = {
        "x": np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32),
        "flag": np.array(condition),
    }
    np.testing.assert_allclose(run(to_model(graph), **feeds)[0], run(model, **feeds)[0], rtol=1e-6)


def test_functions_do_not_hide_channels() -> None:
    from surgeon.engine import analyse
    from surgeon.verify import prove

    model = analyse(from_model(nested()))
    (group,) = model.groups
    assert group.size == 8
    smaller, plan = model.cut({group.id: np.arange(8) % 2 == 0})
    assert plan.tensors.keys() == SHAPES.keys()
    assert prove(model.analysis, smaller, plan.tensors).status == "exact"


def test_functions_of_another_opset_in_which_they_mean_the_same() -> None:
    assert slopes(nested(opset=16)) == [0.3, 0.2, 0.1]


def test_functions_of_another_opset_are_converted(run) -> None:
    model = parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 17, "local" : 1]>
        g (float[2,5] x) => (float[2,1] y) { y = local.total (x) }
        <domain: "local", opset_import: ["" : 12]>
        total (x) => (y) { y = ReduceSum <axes = [1]> (x) }
    """)
    graph = from_model(model)
    assert run(to_model(graph), x=np.ones((2, 5), np.float32))[0].tolist() == [[5], [5]]


def test_what_a_call_leaves_out_has_the_default_of_the_function(run) -> None:
    model = parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 17, "local" : 1]>
        g (float[N,5] x) => (float[N,5] y) { a = local.outer (x)  b = local.act (a)  y = local.act <alpha = 0.9> (b) }
        <domain: "local", opset_import: ["" : 17, "local" : 1]>
        outer <slope : float = 0.25> (x) => (y) { a = local.act <alpha : float = @slope> (x)  y = local.act (a) }
        <domain: "local", opset_import: ["" : 17]>
        act <alpha : float = 0.5> (x) => (y) { y = LeakyRelu <alpha : float = @alpha> (x) }
    """)
    assert slopes(model) == [0.25, 0.5, 0.5, 0.9]
    assert not model.graph.node[0].attribute, "the caller's message is left alone"


def test_what_functions_import_is_imported() -> None:
    model = parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 17, "local" : 1]>
        g (float[N,5] x) => (float[N,5] y) { y = local.act (x) }
        <domain: "local", opset_import: ["" : 17, "com.microsoft" : 1]>
        act (x) => (y) { y = com.microsoft.Gelu (x) }
    """)
    graph = from_model(model)
    assert [(node.op, node.domain) for node in graph.nodes] == [("Gelu", "com.microsoft")]
    assert {entry.domain for entry in to_model(graph).opset_import} >= {"", "com.microsoft"}


def test_functions_that_cannot_be_converted_are_refused() -> None:
    model = parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 13, "local" : 1]>
        g (float[N,5] x) => (float[N,5] y) { y = local.act (x) }
        <domain: "local", opset_import: ["" : 20]>
        act (x) => (y) { y = Gelu (x) }
    """)
    with pytest.raises(UnsupportedModelError):
        from_model(model)
