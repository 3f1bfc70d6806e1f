"""Kernels: the graph onnxruntime runs, and whose node each kernel of a profile computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import numpy_helper as nh

from surgeon.errors import UnsupportedModelError
from surgeon.stats.kernels import optimized, profile


def network() -> onnx.ModelProto:
    random = np.random.default_rng(0)
    nodes = [
        oh.make_node("Conv", ["x", "w"], ["c"], name="convolution"),
        oh.make_node("Relu", ["c"], ["r"], name="activation"),
        oh.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        oh.make_node("Flatten", ["p"], ["f"], name="flatten"),
        oh.make_node("MatMul", ["f", "v"], ["y"], name="product"),
    ]
    weights = [
        nh.from_array(random.standard_normal((16, 16, 3, 3)).astype("f"), "w"),
        nh.from_array(random.standard_normal((16, 10)).astype("f"), "v"),
    ]
    x, y = oh.make_tensor_value_info("x", 1, [1, 16, 8, 8]), oh.make_tensor_value_info("y", 1, [1, 10])
    graph = oh.make_graph(nodes, "g", [x], [y], weights)
    return oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])


def test_the_optimized_graph_is_fused() -> None:
    operators = [node.op_type for node in optimized(network()).graph.node]
    assert "Relu" not in operators
    assert sum("Conv" in operator for operator in operators) == 1


def test_every_kernel_with_weights_is_attributed() -> None:
    kernels = profile(network(), {"x": np.ones((1, 16, 8, 8), "f")}, seconds=0.01, most=5)
    by_node = {kernel.node: kernel for kernel in kernels if kernel.node}
    fused = by_node.keys() & {"convolution", "activation"}  # one kernel, counted for one of the two
    assert len(fused) == 1
    assert by_node["product"].elements == 10
    assert by_node[fused.pop()].elements == 16 * 6 * 6
    assert all(kernel.microseconds >= 0 for kernel in kernels)


def test_a_model_that_does_not_load() -> None:
    model = network()
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(UnsupportedModelError, match="cannot load"):
        optimized(model)
