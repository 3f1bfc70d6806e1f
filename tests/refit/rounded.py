"""Quantized networks, made without onnxruntime's quantizer, and what they compute according to numpy."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as oh
from onnx import numpy_helper as nh

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def rounded(
    model: onnx.ModelProto, *, bits: int = 4, block: int = 0, kind: str = "int8", activations: bool = True
) -> onnx.ModelProto:
    """The model with weights as integers behind DequantizeLinear, and rounded inputs of its weighted operators.

    Args:
        model: Every weighted operator has one initializer as weight; biases stay floats.
        bits: How many the integers use of their type.
        block: Rows of the last but one axis that share a scale; 0: one scale for the whole weight.
        kind: The type of the integers, ``int8``, ``uint8``, ``int4`` or ``uint4``.
        activations: Whether inputs are rounded to 8 bits, at a scale of 0.05.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph, nodes = result.graph, []
    weights = {entry.name: nh.to_array(entry) for entry in graph.initializer}
    added: dict[str, onnx.TensorProto] = {}
    done: set[str] = set()
    for node in graph.node:
        if node.op_type in WEIGHTED:
            for k in range(2):
                name = node.input[k]
                if name in weights:
                    if name not in done:
                        done.add(name)
                        nodes += _weight(name, weights[name], bits, block, kind, added)
                    node.input[k] = f"{name}/dq"
                elif activations:
                    if f"{name}/scale" not in added:
                        nodes += _activation(name, added)
                    node.input[k] = f"{name}/dq"
        nodes.append(node)
    kept = [entry for entry in graph.initializer if entry.name not in done]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(copies)
    graph.initializer.extend([*kept, *added.values()])
    return result


def _weight(
    name: str, values: np.ndarray, bits: int, block: int, kind: str, added: dict[str, onnx.TensorProto]
) -> list[onnx.NodeProto]:
    most = 2 ** (bits - 1) - 1
    zero = 2 ** (bits - 1) if kind.startswith("u") else 0
    attributes = {}
    if block:
        axis = values.ndim - 2
        attributes = {"axis": axis, "block_size": block}
        padded = np.pad(
            values, [(0, -values.shape[k] % block if k == axis else 0) for k in range(values.ndim)]
        )
        shape = (*padded.shape[:axis], -1, block, *padded.shape[axis + 1 :])
        scale = np.abs(padded.reshape(shape)).max(axis=axis + 1) / most
        spread = np.repeat(scale, block, axis)[(slice(None),) * axis + (slice(values.shape[axis]),)]
    else:
        scale = spread = np.abs(values).max() / most
    integers = np.clip(np.rint(values / spread), -most, most) + zero
    data = getattr(onnx.TensorProto, kind.upper())
    added[f"{name}/q"] = oh.make_tensor(f"{name}/q", data, values.shape, integers.astype(int).ravel())
    added[f"{name}/scale"] = nh.from_array(np.asarray(scale, np.float32), f"{name}/scale")
    shape = np.shape(scale)
    added[f"{name}/zero"] = oh.make_tensor(f"{name}/zero", data, shape, [zero] * max(int(np.prod(shape)), 1))
    inputs = [f"{name}/q", f"{name}/scale", f"{name}/zero"]
    return [oh.make_node("DequantizeLinear", inputs, [f"{name}/dq"], **attributes)]


def _activation(name: str, added: dict[str, onnx.TensorProto]) -> list[onnx.NodeProto]:
    added[f"{name}/scale"] = nh.from_array(np.float32(0.05), f"{name}/scale")
    added[f"{name}/zero"] = nh.from_array(np.int8(0), f"{name}/zero")
    parameters = [f"{name}/scale", f"{name}/zero"]
    return [
        oh.make_node("QuantizeLinear", [name, *parameters], [f"{name}/r"]),
        oh.make_node("DequantizeLinear", [f"{name}/r", *parameters], [f"{name}/dq"]),
    ]


def stored(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The integers of all weights."""
    return {
        entry.name: nh.to_array(entry).astype(int)
        for entry in model.graph.initializer
        if entry.name.endswith("/q")
    }
