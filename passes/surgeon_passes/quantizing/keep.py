"""Keeping operators in float that are to be float.

Between a DequantizeLinear and a QuantizeLinear onnxruntime quantizes the float weights of a Conv, ConvTranspose or Gemm itself while it
loads the model (its optimizer WeightBiasQuantization), with one scale for the whole tensor: less accurate than what it was kept from.
It does so only where the DequantizeLinear has one scale. The same scale repeated for every channel means the same and is left alone.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from surgeon_passes.quantizing.nodes import free_name, set_nodes

_MEANT = ("Conv", "ConvTranspose", "Gemm")


def keep_float(model: onnx.ModelProto) -> list[str]:
    """Makes sure that float weights stay float when onnxruntime loads a model.

    Args:
        model: A model with QuantizeLinear and DequantizeLinear, changed in place.

    Returns:
        The names of the nodes it was done for.
    """
    graph = model.graph
    weights = {entry.name: entry for entry in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    taken = {*weights, *makers}
    found: list[str] = []
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        rounded = makers.get(node.input[0]) if node.op_type in _MEANT else None
        weight = weights.get(node.input[1]) if rounded is not None else None
        if rounded is not None and weight is not None and rounded.op_type == "DequantizeLinear":
            nodes.append(_own(node, rounded, _channels(node, weight), graph, weights, taken))
            found.append(node.name)
        nodes.append(node)
    if found:
        used = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
        live = [node for node in nodes if node.op_type != "DequantizeLinear" or node.output[0] in used]
        set_nodes(graph, live)
    return found


def _own(
    node: onnx.NodeProto,
    rounded: onnx.NodeProto,
    channels: int,
    graph: onnx.GraphProto,
    weights: dict[str, onnx.TensorProto],
    taken: set[str],
) -> onnx.NodeProto:
    """Returns a node to put before ``node``, which reads it: its own DequantizeLinear, with a scale for every channel."""
    output = free_name(f"{node.input[0]}_of_{node.name}", taken)
    if channels == 1:  # one scale is all there can be; a Clip that clips nothing parts the two as well
        made = onnx.helper.make_node("Clip", [node.input[0]], [output], name=output)
    else:
        inputs = [rounded.input[0]]
        for name in rounded.input[1:]:
            value = numpy_helper.to_array(weights[name])
            repeated = np.broadcast_to(value.reshape(-1), (channels,)).copy()
            inputs.append(free_name(f"{name}_of_{node.name}", taken))
            graph.initializer.append(numpy_helper.from_array(repeated, inputs[-1]))
        made = onnx.helper.make_node("DequantizeLinear", inputs, [output], name=output, axis=1)
    node.input[0] = output
    return made


def _channels(node: onnx.NodeProto, weight: onnx.TensorProto) -> int:
    """The size of the second axis of what a node reads."""
    attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    if node.op_type == "Gemm":
        return int(weight.dims[1 if attributes.get("transB", 0) else 0])
    if node.op_type == "ConvTranspose":
        return int(weight.dims[0])
    return int(weight.dims[1] * attributes.get("group", 1))
