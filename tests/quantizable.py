"""A small model with one of everything that quantization treats differently, and the pass run over it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
from onnx import numpy_helper as nh

from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.passes import Context
from surgeon.stats.data import graph_inputs
from surgeon.stats.synthetic import synthetic_dataset
from surgeon_passes.quantize import Quantize


def weight(name: str, *shape: int) -> onnx.TensorProto:
    random = np.random.default_rng(len(name))
    return nh.from_array((random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype("f"), name)


def network(opset: int = 17) -> onnx.ModelProto:
    """Convolutions with a residual sum, a pooled head, a softmax: one of everything that is treated differently."""
    nodes = [
        oh.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="first", pads=[1] * 4),
        oh.make_node("Relu", ["c1"], ["r1"]),
        oh.make_node("Conv", ["r1", "w2"], ["c2"], name="second", pads=[1] * 4),
        oh.make_node("Add", ["c2", "r1"], ["s"], name="sum"),
        oh.make_node("GlobalAveragePool", ["s"], ["p"]),
        oh.make_node("Flatten", ["p"], ["f"]),
        oh.make_node("Gemm", ["f", "w3", "b3"], ["g"], name="head", transB=1),
        oh.make_node("Softmax", ["g"], ["y"], name="softmax", axis=1),
    ]
    weights = [
        weight("w1", 32, 3, 3, 3),
        weight("b1", 32),
        weight("w2", 32, 32, 3, 3),
        weight("w3", 10, 32),
        weight("b3", 10),
    ]
    x = oh.make_tensor_value_info("x", 1, ["N", 3, 8, 8])
    y = oh.make_tensor_value_info("y", 1, ["N", 10])
    graph = oh.make_graph(nodes, "g", [x], [y], weights)
    return oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", opset)])


def context_for(model: onnx.ModelProto, *, data: bool = True, **fields: object) -> Context:
    inputs = graph_inputs(from_model(model))
    context = Context(Path("m.onnx"), inputs=tuple(inputs), **fields)  # type: ignore[arg-type]  # plain fields
    if data:
        context.data = synthetic_dataset(inputs, seed=1, samples=64)
    return context


def quantized(model: onnx.ModelProto, context: Context, **options: object) -> onnx.ModelProto:
    chosen = {"guard": False, **options}  # what is fast differs from machine to machine
    return to_model(Quantize(**chosen).run(from_model(model), context))  # type: ignore[arg-type]  # options vary


def fed_by_eight_bits(model: onnx.ModelProto, operator: str) -> list[bool]:
    """For each node of a type: whether its weights come from a DequantizeLinear."""
    producers = {output: node.op_type for node in model.graph.node for output in node.output}
    return [
        producers.get(node.input[1]) == "DequantizeLinear"
        for node in model.graph.node
        if node.op_type == operator
    ]
