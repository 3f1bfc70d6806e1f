"""Branches may use the same names; loaded graphs do not."""

from __future__ import annotations

import numpy as np
import onnx

from surgeon.graph.load import from_model
from surgeon.graph.order import every_node
from surgeon.graph.save import to_model


def test_siblings_with_the_same_names(parse, run) -> None:
    model = parse(
        "net (bool c, float[N,4] x) => (float[N,4] y) {"
        " y = If (c) <then_branch = t () => (float[N,4] r) { h = MatMul (x, w)  r = Relu (h) },"
        " else_branch = e () => (float[N,4] r) { h = MatMul (x, w)  r = Neg (h) }> }"
    )
    rng = np.random.default_rng(0)
    for attribute in model.graph.node[0].attribute:
        attribute.g.initializer.append(
            onnx.numpy_helper.from_array(rng.standard_normal((4, 4)).astype(np.float32), "w")
        )
    graph = from_model(model)
    made = [tensor.name for node in every_node(graph) for tensor in node.outputs]
    assert sorted(made) == ["h", "h__2", "r", "r__2", "y"]
    weights = {node.inputs[1].name for node in every_node(graph) if node.op == "MatMul"}
    assert weights == {"w", "w__2"}
    again = to_model(graph)
    onnx.checker.check_model(again, full_check=True)
    for condition in (True, False):
        feeds = {"c": np.array(condition), "x": rng.standard_normal((3, 4)).astype(np.float32)}
        np.testing.assert_array_equal(run(again, **feeds)[0], run(model, **feeds)[0])
