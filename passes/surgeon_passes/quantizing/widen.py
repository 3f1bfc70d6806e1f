"""Models in half precision, which onnxruntime has no 8-bit kernels for on a CPU, in single precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.source import source_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx_graphsurgeon as gs

# attributes that name the type of a result
_TYPES = {"to", "dtype", "output_dtype", "output_datatype"}


def widened(graph: gs.Graph) -> gs.Graph:
    """Returns a graph that computes in float32 what this one does in float16; the same one where that is nothing.

    Inputs and outputs keep their types.
    """
    model = to_model(graph)
    if not any(map(_is_half, graphs_of(model.graph))):
        return graph
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for each in graphs_of(wide.graph):
        _widen(each)
    _keep_interface(wide.graph, model.graph)
    result = from_model(wide)
    result.surgeon_source = source_of(graph) or source_of(result)
    return result


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yields a graph and the bodies in it, however deep."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from graphs_of(body)


def _is_half(graph: onnx.GraphProto) -> bool:
    if any(entry.data_type == TensorProto.FLOAT16 for entry in graph.initializer):
        return True
    return any(
        attribute.t.data_type == TensorProto.FLOAT16
        or (attribute.name in _TYPES and attribute.i == TensorProto.FLOAT16)
        for node in graph.node
        for attribute in node.attribute
    )


def _widen(graph: onnx.GraphProto) -> None:
    """Everything in one graph, but not in its bodies, that says float16 says float32."""
    tensors = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            tensors += [attribute.t] if attribute.HasField("t") else []
            if attribute.name in _TYPES and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
    for tensor in tensors:
        if tensor.data_type == TensorProto.FLOAT16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for info in (*graph.input, *graph.output, *graph.value_info):
        _widen_type(info.type)


def _widen_type(kind: onnx.TypeProto) -> None:
    if kind.HasField("tensor_type") and kind.tensor_type.elem_type == TensorProto.FLOAT16:
        kind.tensor_type.elem_type = TensorProto.FLOAT
    elif kind.HasField("sequence_type"):
        _widen_type(kind.sequence_type.elem_type)
    elif kind.HasField("optional_type"):
        _widen_type(kind.optional_type.elem_type)


def _keep_interface(graph: onnx.GraphProto, original: onnx.GraphProto) -> None:
    """Casts what comes in, and what goes out, where its type has changed."""
    taken = {name for each in graphs_of(graph) for node in each.node for name in (*node.input, *node.output)}
    taken |= {entry.name for each in graphs_of(graph) for entry in (*each.initializer, *each.input)}
    before, after = [], []
    renamed: dict[str, str] = {}
    for info in original.input:
        if _is_half_tensor(info):
            renamed[info.name] = _unused(f"{info.name}_wide", taken)
            before.append(_cast(info.name, renamed[info.name], TensorProto.FLOAT))
    for info in original.output:
        if _is_half_tensor(info):
            source = renamed.setdefault(info.name, _unused(f"{info.name}_wide", taken))
            after.append(_cast(source, info.name, TensorProto.FLOAT16))
    for each in graphs_of(graph):
        _rename(each, renamed, inside=each is not graph)
    nodes = list(graph.node)
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend([*before, *nodes, *after])
    graph.input.extend(original.input)
    graph.output.extend(original.output)


def _is_half_tensor(info: onnx.ValueInfoProto) -> bool:
    return bool(info.type.tensor_type.elem_type == TensorProto.FLOAT16)


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return onnx.helper.make_node("Cast", [source], [target], f"cast/{source}", to=to)


def _rename(graph: onnx.GraphProto, renamed: Mapping[str, str], *, inside: bool) -> None:
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for info in (*graph.value_info, *(graph.output if inside else ())):
        info.name = renamed.get(info.name, info.name)


def _unused(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name
