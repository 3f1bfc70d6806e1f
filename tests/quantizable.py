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


def crafted(width: int = 8) -> onnx.ModelProto:
    """Three convolutions; what the second reads has one channel a thousand times as large, which only the first sum needs."""
    random = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        values = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        if name == "w2":
            values[:, 0] *= 2e3  # within each output channel: no scale fits both
            values[:, 0, :, :] -= values[:, 0, :, :].mean(axis=(1, 2), keepdims=True)
        return nh.from_array(values.astype("f"), name)

    nodes = [
        oh.make_node("Conv", ["x", "w1"], ["c1"], name="first", pads=[1] * 4),
        oh.make_node("Relu", ["c1"], ["r1"]),
        oh.make_node("Conv", ["r1", "w2"], ["c2"], name="second", pads=[1] * 4),
        oh.make_node("Relu", ["c2"], ["r2"]),
        oh.make_node("Conv", ["r2", "w3"], ["c3"], name="third", pads=[1] * 4),
        oh.make_node("GlobalAveragePool", ["c3"], ["p"]),
        oh.make_node("Flatten", ["p"], ["f"]),
        oh.make_node("Gemm", ["f", "w4"], ["y"], name="head", transB=1),
    ]
    weights = [
        weight("w1", width, 3, 3, 3),
        weight("w2", width, width, 3, 3),
        weight("w3", 16, width, 3, 3),
        weight("w4", 10, 16),
    ]
    nothing = nh.to_array(weights[0]).copy()
    nothing[0] = 0  # the channel is always 0 and its huge weights never matter
    weights[0].CopyFrom(nh.from_array(nothing, "w1"))
    x, y = oh.make_tensor_value_info("x", 1, ["N", 3, 8, 8]), oh.make_tensor_value_info("y", 1, ["N", 10])
    graph = oh.make_graph(nodes, "g", [x], [y], weights)
    return oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])


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
