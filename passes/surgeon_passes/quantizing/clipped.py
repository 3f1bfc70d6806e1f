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

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PRODUCTS = ("Gemm", "MatMul")


def keep_integer(model: onnx.ModelProto) -> list[str]:
    """Writes Relus and Clips as Max and Min where onnxruntime would compute the product before them in floats.

    Args:
        model: A model with QuantizeLinear and DequantizeLinear, changed in place.

    Returns:
        The names of the Relus and Clips.
    """
    graph = model.graph
    weights = {entry.name: entry for entry in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {output.name: [] for output in graph.output}
    outputs = set(readers)
    taken = {*weights, *makers}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def only_reader(name: str) -> onnx.NodeProto | None:
        return readers[name][0] if name not in outputs and len(readers.get(name, ())) == 1 else None

    found: dict[int, list[onnx.NodeProto]] = {}
    for node in graph.node:
        clip = (
            only_reader(node.output[0]) if node.op_type in _PRODUCTS and _is_rounded(node, makers) else None
        )
        if clip is None or clip.op_type not in ("Relu", "Clip"):
            continue
        after = only_reader(clip.output[0])
        if after is not None and not _says_no_more(clip, after, weights):
            scale = weights.get(makers[node.input[0]].input[1])
            element = onnx.TensorProto.FLOAT if scale is None else scale.data_type
            found[id(clip)] = list(_in_pieces(clip, graph, element, taken))
    if not any(found.values()):
        return []
    names = [node.name for node in graph.node if found.get(id(node))]
    nodes = [piece for node in graph.node for piece in found.get(id(node)) or [node]]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]  # which the messages lived in
    graph.node.extend(copies)
    return names


def _is_rounded(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether both factors of a product are."""
    return all(name in makers and makers[name].op_type == "DequantizeLinear" for name in node.input[:2])


def _says_no_more(
    clip: onnx.NodeProto, after: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]
) -> bool:
    """Whether what comes after clips at least as much, so that onnxruntime drops the Relu or Clip."""
    if (
        after.op_type != "QuantizeLinear"
        or len(after.input) < 3
        or not weights.keys() >= set(after.input[1:3])
    ):
        return False
    scale, zero = (float(numpy_helper.to_array(weights[name])) for name in after.input[1:3])
    kind = np.iinfo(helper.tensor_dtype_to_np_dtype(weights[after.input[2]].data_type))
    bounds = [0.0, np.inf] if clip.op_type == "Relu" else [-np.inf, np.inf]
    for place, name in enumerate(clip.input[1:3]):
        if name:
            if name not in weights:
                return False
            bounds[place] = float(numpy_helper.to_array(weights[name]).reshape(-1)[0])
    if bounds[0] <= (kind.min - zero) * scale and bounds[1] >= (kind.max - zero) * scale:
        return True
    low, high = np.rint(
        np.array(bounds) / scale
    )  # in steps it compares int32, where a larger one becomes the lowest
    return bool(low + zero <= kind.min and kind.max <= high + zero < 2**31)


def _in_pieces(
    clip: onnx.NodeProto, graph: onnx.GraphProto, element: int, taken: set[str]
) -> Iterator[onnx.NodeProto]:
    """The same as a Max, a Min, or both."""
    bounds = list(clip.input[1:3])
    if clip.op_type == "Relu":
        bounds = [_free(f"{clip.output[0]}/zero", taken)]
        graph.initializer.append(helper.make_tensor(bounds[0], element, [], [0.0]))
    steps = [(op, name) for op, name in zip(("Max", "Min"), bounds, strict=False) if name]
    source = clip.input[0]
    for op, name in steps[:-1]:
        target = _free(f"{clip.output[0]}/above", taken)
        yield helper.make_node(op, [source, name], [target], name=f"{clip.name}/above")
        source = target
    for op, name in steps[-1:]:
        yield helper.make_node(op, [source, name], clip.output, name=clip.name)


def _free(name: str, taken: set[str]) -> str:
    """A name that nothing has, which is taken from now on."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name
