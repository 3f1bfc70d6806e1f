"""Biases of quantized operators: each gets one of its own, stored so that onnxruntime's integer kernels take it.

These kernels want 32-bit integers in steps of the input's scale times the weight's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.graph.weights import peek
from surgeon.stats.weight import is_rounded, is_shared, weight_chain, weight_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

BIAS = 2
_OUTPUTS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1}  # the axis of the weight with the output channels


def give_biases(graph: gs.Graph) -> list[gs.Node]:
    """Let every Conv, ConvTranspose and Gemm with a rounded weight have a bias that nobody else reads, in place.

    What the graph computes stays the same: biases that were not there are zero.

    Returns:
        The nodes that had none.
    """
    given = []
    for node in list(graph.nodes):
        if node.op not in _OUTPUTS or node.domain or len(node.inputs) < 2 or not is_rounded(node.inputs[1]):
            continue
        bias = node.inputs[BIAS] if len(node.inputs) > BIAS else None
        if bias is None or not bias.name:
            if node.attrs.get("beta", 1.0) != 1.0:
                continue
            while len(node.inputs) <= BIAS:
                node.inputs.append(gs.Variable.empty())
            size = _channels(node)
            scale = _scale(node, size)
            _store(graph, node, np.zeros(size, np.float32 if scale is None else np.int32), scale)
            given.append(node)
        elif is_rounded(bias) and is_shared(bias):
            chain: Any = weight_chain(bias)
            maker = bias.inputs[0]
            if len(chain) == 2:
                _store(graph, node, np.array(peek(chain[0])), peek(maker.inputs[1]))
    return given


def drop_zero_biases(graph: gs.Graph, given: list[gs.Node]) -> None:
    """Take back the biases that are still zero.

    Args:
        graph: The graph, changed in place.
        given: The nodes that `give_biases` named.
    """
    for node in given:
        bias = node.inputs[BIAS]
        chain: Any = weight_chain(bias)
        if chain is not None and not np.any(peek(chain[0])):
            node.inputs.pop()
            for maker in list(bias.inputs):
                maker.outputs.clear()
                graph.nodes.remove(maker)


def _channels(node: gs.Node) -> int:
    shape = weight_shape(node.inputs[1])
    if node.op == "Gemm":
        return shape[0] if node.attrs.get("transB", 0) else shape[1]
    return shape[0] if node.op == "Conv" else shape[1] * int(node.attrs.get("group", 1))


def _scale(node: gs.Node, size: int) -> Array | None:
    """The scale of the input times that of the weight, or None where the operator cannot become an integer one."""
    makers = node.inputs[0].inputs
    weight = node.inputs[1].inputs
    if not makers or makers[0].op != "DequantizeLinear" or weight[0].op != "DequantizeLinear":
        return None
    scales = [each[0].inputs[1] for each in (makers, weight)]
    if not all(isinstance(each, gs.Constant) for each in scales) or weight[0].attrs.get("block_size"):
        return None
    x, w = (peek(each) for each in scales)
    if x.size != 1 or w.size not in (1, size):
        return None
    return np.asarray(x.reshape(()) * w, w.dtype)


def _store(graph: gs.Graph, node: gs.Node, values: Array, scale: Array | None) -> None:
    """Let a node read these values as its bias, behind a DequantizeLinear where there is a scale."""
    name = f"{node.outputs[0].name}/surgeon/bias"
    if scale is None:
        node.inputs[BIAS] = gs.Constant(name, values)
        return
    result = gs.Variable(name, scale.dtype, list(values.shape))
    inputs = [gs.Constant(f"{name}_quantized", values), gs.Constant(f"{name}_scale", scale)]
    maker = gs.Node(
        "DequantizeLinear",
        f"{name}_DequantizeLinear",
        {"axis": 0} if scale.size > 1 else {},
        inputs,
        [result],
    )
    graph.nodes.insert(graph.nodes.index(node), maker)
    node.inputs[BIAS] = result
