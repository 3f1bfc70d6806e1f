"""What became of a quantized model in onnxruntime: its integer kernels, and where it still converts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import onnx

from surgeon.stats.kernels import optimized

# onnxruntime's kernels that compute with integers, besides QLinear…
_INTEGER = {
    *("QGemm", "MatMulInteger", "MatMulInteger16", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"),
    *("DynamicQuantizeLSTM", "ConvInteger", "QAttention", "QEmbedLayerNormalization", "QOrderedMatMul"),
    *("MatMulNBits", "MatMulBnb4", "GatherBlockQuantized", "QMoE"),
}
_WEIGHTED = {
    **dict.fromkeys(("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"), 1),
    **dict.fromkeys(("LSTM", "GRU", "RNN", "Attention"), 1),
}
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


def count(model: onnx.ModelProto) -> dict[str, Any]:
    """Counts what onnxruntime runs on this machine.

    Returns:
        ``kernels``: integer kernels by type; ``leftover``: QuantizeLinear and DequantizeLinear nodes that are still
        there, of which a model needs one for each input and output that integers meet; ``float_kernels``: operators
        with constant weights that compute in float.

    Raises:
        UnsupportedModelError: onnxruntime cannot load the model.
    """
    graph = optimized(model).graph
    kernels: Counter[str] = Counter()
    leftover: Counter[str] = Counter(dict.fromkeys(_CONVERSIONS, 0))
    floats: Counter[str] = Counter()
    for node, constants in _nodes(graph, frozenset()):
        if node.op_type.startswith("QLinear") or node.op_type in _INTEGER:
            kernels[node.op_type] += 1
        elif node.op_type in _CONVERSIONS:
            leftover[node.op_type] += 1
        elif node.op_type in _WEIGHTED and any(name in constants for name in node.input[1:2]):
            floats[node.op_type] += 1
    return {
        "kernels": dict(sorted(kernels.items())),
        "leftover": dict(sorted(leftover.items())),
        "float_kernels": dict(sorted(floats.items())),
    }


def _nodes(graph: onnx.GraphProto, outer: frozenset[str]) -> Iterator[tuple[onnx.NodeProto, frozenset[str]]]:
    """Yields every node, those of nested graphs too, with the names of the constants it may read."""
    dequantized = {
        node.output[0]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in {entry.name for entry in graph.initializer}
    }
    constants = outer | {entry.name for entry in graph.initializer} | dequantized
    for node in graph.node:
        yield node, constants
        for attribute in node.attribute:
            for body in [attribute.g, *attribute.graphs]:
                yield from _nodes(body, constants)
