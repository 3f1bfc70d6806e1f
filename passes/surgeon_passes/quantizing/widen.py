"""Models in half precision, which onnxruntime has no 8-bit kernels for on a CPU, in single precision."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from surgeon.graph.halves import TYPES, graphs_of, is_half
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.source import source_of
from surgeon_passes.quantizing.nodes import free_name, set_nodes

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_graphsurgeon as gs


def widened(graph: gs.Graph) -> gs.Graph:
    """Returns a graph that computes in float32 what this one does in float16; the same one where that is nothing.

    Inputs and outputs keep their types; those that are sequences or options of float16 leave the graph as it is.
    """
    model = to_model(graph)
    ends = (*model.graph.input, *model.graph.output)
    if not is_half(model) or any(not _is_tensor(info) and _widen_type(_copy(info.type)) for info in ends):
        return graph
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for each in graphs_of(wide.graph):
        _widen(each)
    _keep_interface(wide.graph, model.graph)
    result = from_model(wide)
    result.surgeon_source = source_of(graph) or source_of(result)
    return result


def _widen(graph: onnx.GraphProto) -> None:
    """Everything in one graph, but not in its bodies, that says float16 says float32."""
    tensors = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            tensors += [attribute.t] if attribute.HasField("t") else []
            if attribute.name in TYPES and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("tp"):
                _widen_type(attribute.tp)
    for tensor in tensors:
        if tensor.data_type == TensorProto.FLOAT16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for info in (*graph.input, *graph.output, *graph.value_info):
        _widen_type(info.type)


def _widen_type(kind: onnx.TypeProto) -> bool:
    """Makes float32 of float16 in a type; whether there was any."""
    if kind.HasField("sequence_type"):
        return _widen_type(kind.sequence_type.elem_type)
    if kind.HasField("optional_type"):
        return _widen_type(kind.optional_type.elem_type)
    half = kind.HasField("tensor_type") and kind.tensor_type.elem_type == TensorProto.FLOAT16
    if half:
        kind.tensor_type.elem_type = TensorProto.FLOAT
    return half


def _copy(kind: onnx.TypeProto) -> onnx.TypeProto:
    result = onnx.TypeProto()
    result.CopyFrom(kind)
    return result


def _is_tensor(info: onnx.ValueInfoProto) -> bool:
    return bool(info.type.HasField("tensor_type"))


def _keep_interface(graph: onnx.GraphProto, original: onnx.GraphProto) -> None:
    """Casts what comes in, and what goes out, where its type has changed."""
    every = list(graphs_of(graph))
    nodes = [node for each in every for node in each.node]
    taken = {name for node in nodes for name in (node.name, *node.input, *node.output)}
    taken |= {entry.name for each in every for entry in chain(each.initializer, each.input, each.output)}
    ins = [info.name for info in original.input if _is_half_tensor(info)]
    outs = [info.name for info in original.output if _is_half_tensor(info) and info.name not in ins]
    wide = {name: free_name(f"{name}_wide", taken) for name in (*ins, *dict.fromkeys(outs))}
    before = [_cast(name, wide[name], TensorProto.FLOAT, taken) for name in ins]
    after = [_cast(wide[name], name, TensorProto.FLOAT16, taken) for name in dict.fromkeys(outs)]
    for each in every:
        _rename(each, wide, inside=each is not graph)
    set_nodes(graph, [*before, *graph.node, *after])
    del graph.input[:], graph.output[:]
    graph.input.extend(original.input)
    graph.output.extend(original.output)


def _is_half_tensor(info: onnx.ValueInfoProto) -> bool:
    return bool(info.type.tensor_type.elem_type == TensorProto.FLOAT16)


def _cast(source: str, target: str, to: int, taken: set[str]) -> onnx.NodeProto:
    return onnx.helper.make_node("Cast", [source], [target], free_name(f"{target}_cast", taken), to=to)


def _rename(graph: onnx.GraphProto, wide: Mapping[str, str], *, inside: bool) -> None:
    for node in graph.node:
        node.input[:] = [wide.get(name, name) for name in node.input]
        node.output[:] = [wide.get(name, name) for name in node.output]
    for info in chain(graph.value_info, graph.initializer, graph.output if inside else ()):
        info.name = wide.get(info.name, info.name)
