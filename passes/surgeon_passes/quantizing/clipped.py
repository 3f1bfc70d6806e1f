"""Keeping products in integers where a Relu or Clip follows whose result is not rounded.

Where a Relu or Clip alone reads a Gemm or MatMul and has one reader itself, onnxruntime looks for the QuantizeLinear of the product behind
it, and where there is none, or one that rounds more than what the Relu lets through, computes the product in floats, with weights
that are converted at every run. A Max with zero means the same and is not looked through, nor is a Min.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

from surgeon_passes.quantizing.choose import read_by
from surgeon_passes.quantizing.nodes import free_name, set_nodes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Weights = Mapping[str, onnx.TensorProto]

_PRODUCTS = ("Gemm", "MatMul")


def keep_integer(model: onnx.ModelProto) -> None:
    """Writes Relus and Clips as Max and Min, in place, where onnxruntime would compute the product before them in floats.

    Args:
        model: A model with QuantizeLinear and DequantizeLinear.
    """
    graph = model.graph
    weights = {entry.name: entry for entry in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    taken = {*weights, *makers, *(entry.name for entry in graph.input)}
    named = {node.name for node in graph.node}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        inside = set(read_by(node)) - set(node.input)
        for name in (*node.input, *inside):
            readers.setdefault(name, []).append(node)
    outputs = {output.name for output in graph.output}

    def only_reader(name: str) -> onnx.NodeProto | None:
        found = readers.get(name, [])
        return found[0] if len(found) == 1 and name not in outputs else None

    pieces: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        kind = _type_of(node, makers, weights) if node.op_type in _PRODUCTS else None
        clip = only_reader(node.output[0]) if kind is not None else None
        if kind is None or clip is None or clip.op_type not in ("Relu", "Clip"):
            continue
        after = only_reader(clip.output[0])
        if after is None or _is_dropped(clip, after, weights):
            continue
        bounds = list(clip.input[1:3])
        if clip.op_type == "Relu":
            bounds = [free_name(f"{clip.output[0]}/zero", taken)]
            graph.initializer.append(helper.make_tensor(bounds[0], kind, [], [0.0]))
        pieces[clip.output[0]] = list(_in_pieces(clip, bounds, taken, named))
    if pieces:
        set_nodes(graph, [each for node in graph.node for each in pieces.get(node.output[0], [node])])


def _type_of(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], weights: Weights) -> int | None:
    """The type of a product of two rounded factors, which is that of their scales; None if one is not rounded."""
    kinds = []
    for name in node.input[:2]:
        maker = makers.get(name)
        if maker is None or maker.op_type != "DequantizeLinear" or maker.input[1] not in weights:
            return None
        kinds.append(weights[maker.input[1]].data_type)
    return kinds[0]


def _is_dropped(clip: onnx.NodeProto, after: onnx.NodeProto, weights: Weights) -> bool:
    """Whether what comes after clips at least as much, so that onnxruntime leaves the Relu or Clip away."""
    if after.op_type != "QuantizeLinear" or len(after.input) < 3:
        return False
    scale, zero = (_number(name, weights) for name in after.input[1:3])
    bounds = _bounds(clip, weights)
    if scale is None or zero is None or bounds is None:
        return False
    kind = helper.tensor_dtype_to_np_dtype(weights[after.input[2]].data_type)
    if kind.kind not in "iu":
        return False
    low, high = bounds
    steps = np.iinfo(kind)
    if low <= (steps.min - zero) * scale and high >= (steps.max - zero) * scale:
        return True
    # onnxruntime compares steps as well, as int32: a number beyond becomes the lowest one
    with np.errstate(over="ignore"):  # a Clip that is open above may end at the largest float
        first, last = (float(np.rint(np.float32(bound) / np.float32(scale))) + zero for bound in (low, high))
    return first <= steps.min and steps.max <= last < 2**31


def _bounds(clip: onnx.NodeProto, weights: Weights) -> tuple[float, float] | None:
    """What a Relu or Clip lets through; None where that is computed."""
    if clip.op_type == "Relu":
        return 0.0, np.inf
    found = [-np.inf, np.inf]
    for place, name in enumerate(clip.input[1:3]):
        value = _number(name, weights) if name else found[place]
        if value is None:
            return None
        found[place] = value
    return found[0], found[1]


def _number(name: str, weights: Weights) -> float | None:
    """The value of a constant with one element."""
    array = numpy_helper.to_array(weights[name]) if name in weights else None
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def _in_pieces(
    clip: onnx.NodeProto, bounds: list[str], taken: set[str], named: set[str]
) -> Iterator[onnx.NodeProto]:
    """The same as a Max, a Min, or both; an Identity where nothing bounds."""
    steps = [(op, bound) for op, bound in zip(("Max", "Min"), bounds, strict=False) if bound]
    source = clip.input[0]
    for op, bound in steps[:-1]:
        target = free_name(f"{clip.output[0]}/above", taken)
        yield helper.make_node(op, [source, bound], [target], name=free_name(f"{clip.name}/above", named))
        source = target
    op, inputs = (steps[-1][0], [source, steps[-1][1]]) if steps else ("Identity", [source])
    yield helper.make_node(op, inputs, clip.output, name=clip.name)
