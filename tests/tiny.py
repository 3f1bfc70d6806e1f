"""Tiny models, written as ONNX text with seeded weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

CONVNET = """
<ir_version: 8, opset_import: ["" : 17]>
convnet (float["N",3,8,8] x) => (float["N",10] y)
{
  c1 = Conv <kernel_shape = [3,3], pads = [1,1,1,1]> (x, w1, b1)
  r1 = Relu (c1)
  c2 = Conv <kernel_shape = [3,3], pads = [1,1,1,1]> (r1, w2, b2)
  r2 = Relu (c2)
  p = GlobalAveragePool (r2)
  f = Flatten (p)
  y = Gemm <transB = 1> (f, w3, b3)
}
"""
SHAPES = {"w1": (16, 3, 3, 3), "b1": (16,), "w2": (24, 16, 3, 3), "b2": (24,), "w3": (10, 24), "b3": (10,)}


def convnet(path: Path, seed: int = 0) -> Path:
    """Writes two convolutions and a classifier."""
    random = np.random.default_rng(seed)
    model = parser.parse_model(CONVNET)
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
    for name, shape in SHAPES.items():
        scale = 0.05 if len(shape) == 1 else np.prod(shape[1:]) ** -0.5
        values = (random.standard_normal(shape) * scale).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.save(model, str(path))
    return path


def samples(path: Path, count: int = 20, *, labels: bool = True) -> Path:
    """Writes seeded samples for `convnet` as .npz."""
    random = np.random.default_rng(1)
    arrays = {"x": random.standard_normal((count, 3, 8, 8)).astype(np.float32)}
    if labels:
        arrays["labels"] = random.integers(0, 10, count)
    np.savez(path, **arrays)
    return path


def quantized(path: Path) -> Path:
    """Writes a model that holds QuantizeLinear already."""
    value = helper.make_tensor_value_info("x", 1, [1, 4])
    out = helper.make_tensor_value_info("y", 1, [1, 4])
    scale, zero = numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.int8(0), "z")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [value], [out], [scale, zero])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path
