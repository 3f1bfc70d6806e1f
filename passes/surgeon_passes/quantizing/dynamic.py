"""Dynamic quantization: 8-bit weights, activation scales computed at run time; needs no data."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization import quantize_dynamic as onnxruntime_dynamic

from surgeon_passes.quantizing.choose import Choice
from surgeon_passes.quantizing.promised import repeated, with_one_scale


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
    single = _single(model, choice, per_channel=per_channel)
    if single:
        model = copy.deepcopy(model)
        _turn(model, single)
    source, target = folder / "before_dynamic.onnx", folder / "dynamic.onnx"
    onnx.save(model, str(source))
    # onnxruntime splits a Gemm into a MatMul and an Add before it looks at names
    names = [*choice.nodes, *(f"{name}_MatMul" for name in choice.nodes)]
    weights = {entry.name: entry for entry in model.graph.initializer}
    overrides = {
        name: repeated(numpy_helper.to_array(weights[name]), axis, reduce_range=reduce_range)
        for name, axis in single.items()
    }
    onnxruntime_dynamic(
        str(source),
        str(target),
        op_types_to_quantize=["Gather", "LSTM", "MatMul"],
        nodes_to_quantize=names,
        per_channel=per_channel,
        reduce_range=reduce_range,
        weight_type=QuantType.QInt8,
        extra_options={"TensorQuantOverrides": overrides} if overrides else {},
    )
    return onnx.load(str(target))


def _single(model: onnx.ModelProto, choice: Choice, *, per_channel: bool) -> dict[str, int]:
    """Weights with the same scale for all channels, for few values are all that they have, and the axis of these."""
    found = {}
    for name, (node, *_) in with_one_scale(model, set(choice.nodes)).items():
        recurrent = node.op_type == "LSTM"  # whose directions have scales of their own in any case
        if per_channel or recurrent:
            found[name] = 0 if recurrent else 1
    return found


def _turn(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Lets the axis of a Gemm's output channels be the last one, as that of a MatMul."""
    weights = {entry.name: entry for entry in model.graph.initializer}
    for node in model.graph.node:
        turned = [each for each in node.attribute if each.name == "transB" and each.i]
        if node.op_type == "Gemm" and node.input[1] in names and turned:
            weight = weights[node.input[1]]
            values = np.ascontiguousarray(numpy_helper.to_array(weight).T)
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
            turned[0].i = 0


def _untie(model: onnx.ModelProto) -> None:
    """Gives every Gemm its own weights: onnxruntime transposes them in place, whoever else uses them."""
    weights = {entry.name: entry for entry in model.graph.initializer}
    users = Counter(name for node in model.graph.node for name in node.input)
    for node in model.graph.node:
        if node.op_type == "Gemm" and node.input[1] in weights and users[node.input[1]] > 1:
            own = model.graph.initializer.add()
            own.CopyFrom(weights[node.input[1]])
            users[node.input[1]] -= 1
            own.name = f"{node.input[1]}_of_{node.name}"
            node.input[1] = own.name
