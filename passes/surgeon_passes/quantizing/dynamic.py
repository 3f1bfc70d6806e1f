"""Dynamic quantization: 8-bit weights, activation scales computed at run time; needs no data."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization import quantize_dynamic as onnxruntime_dynamic

from surgeon_passes.quantizing.choose import Choice


def quantize_dynamic(
    model: onnx.ModelProto, choice: Choice, folder: Path, *, per_channel: bool, reduce_range: bool = False
) -> onnx.ModelProto:
    """Quantizes MatMul, Gemm, LSTM and embedding weights.

    Args:
        model: A prepared model.
        choice: What to quantize.
        folder: A temporary folder.
        per_channel: One scale per output channel of a weight instead of one for all.
        reduce_range: Whether weights take 7 bits, for processors whose sums would saturate.
    """
    _untie(model)
    source, target = folder / "prepared.onnx", folder / "dynamic.onnx"
    onnx.save(model, str(source))
    # onnxruntime splits a Gemm into a MatMul and an Add before it looks at names
    names = [*choice.nodes, *(f"{name}_MatMul" for name in choice.nodes)]
    onnxruntime_dynamic(
        str(source),
        str(target),
        op_types_to_quantize=["Gather", "LSTM", "MatMul"],
        nodes_to_quantize=names,
        per_channel=per_channel,
        reduce_range=reduce_range,
        weight_type=QuantType.QInt8,
    )
    return onnx.load(str(target))


def _untie(model: onnx.ModelProto) -> None:
    """Gives every Gemm its own weights: onnxruntime transposes them in place, whoever else uses them."""
    weights = {entry.name: entry for entry in model.graph.initializer}
    users = Counter(name for node in model.graph.node for name in node.input)
    for node in model.graph.node:
        if node.op_type == "Gemm" and node.input[1] in weights and users[node.input[1]] > 1:
            copy = model.graph.initializer.add()
            copy.CopyFrom(weights[node.input[1]])
            users[node.input[1]] -= 1
            copy.name = f"{node.input[1]}_of_{node.name}"
            node.input[1] = copy.name
