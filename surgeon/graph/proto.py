"""From graphsurgeon's objects to ONNX messages: nodes, attributes, bodies and constants."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from surgeon.errors import InternalError
from surgeon.graph.order import bodies
from surgeon.graph.schemas import attribute_kinds, label, standard
from surgeon.graph.weights import StoredValues, UnreadValues, data_type, stored_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

_KIND = onnx.AttributeProto
SMALL = 1024  # bytes of a constant that is always written in full


@lru_cache(maxsize=65536)
def tensor_type(kind: int, dims: tuple[int, ...] | None) -> onnx.TypeProto:
    """The type of a tensor; shared, so never to be changed."""
    result = onnx.TypeProto()
    result.tensor_type.elem_type = kind
    if dims is not None:
        shape = result.tensor_type.shape
        shape.SetInParent()
        for size in dims:
            shape.dim.add().dim_value = size
    return result


def node_proto(node: gs.Node, versions: dict[str, int], *, light: bool = False) -> onnx.NodeProto:
    """The message for a node; its bodies are written with the constants only they use.

    With ``light`` the values of large constants are left out: enough for inferring shapes, not for running.
    """
    result = onnx.NodeProto(op_type=node.op)
    if node.name:
        result.name = node.name
    if standard(node.domain):
        result.domain = standard(node.domain)
    result.input.extend(tensor.name for tensor in node.inputs)
    result.output.extend(tensor.name for tensor in node.outputs)
    if node.attrs:
        declared = attribute_kinds(node.op, node.domain, versions.get(result.domain, 1))
        for name, value in node.attrs.items():
            kind = declared.get(name, _KIND.UNDEFINED)
            try:
                result.attribute.append(attribute_proto(name, value, kind, versions, light=light))
            except (TypeError, ValueError) as error:
                raise InternalError(
                    f"attribute '{name}' cannot be written: {error}", where=label(node)
                ) from error
    return result


def attribute_proto(
    name: str, value: Any, kind: int, versions: dict[str, int], *, light: bool = False
) -> onnx.AttributeProto:
    """The message for one attribute.

    Args:
        name: The attribute's name.
        value: A number, text, list, array, constant, body, or an attribute message to pass on as it is.
        kind: The type its operator's schema declares (``AttributeProto.UNDEFINED`` where there is none): it decides
            between integers and floats and gives empty lists their type.
        versions: Opset versions, needed for bodies.
        light: Leave out the values of large constants.

    Raises:
        TypeError: No attribute type holds such a value.
    """
    if isinstance(value, onnx.AttributeProto):
        return value
    result = onnx.AttributeProto(name=name)
    if isinstance(
        value, type | np.dtype
    ):  # graphsurgeon users write numpy types where ONNX wants their number
        value = int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value)))
    if isinstance(value, list | tuple):
        _fill_list(result, list(value), kind)
    elif isinstance(value, str | bytes):
        result.type, result.s = _KIND.STRING, value.encode() if isinstance(value, str) else value
    elif isinstance(value, bool | int | float | np.number | np.bool_):
        if kind == _KIND.FLOAT or isinstance(value, float | np.floating):
            result.type, result.f = _KIND.FLOAT, float(value)
        else:
            result.type, result.i = _KIND.INT, int(value)
    elif isinstance(value, np.ndarray):
        result.type = _KIND.TENSOR
        result.t.CopyFrom(onnx.numpy_helper.from_array(value))
    elif isinstance(value, gs.Constant):
        result.type = _KIND.TENSOR
        result.t.CopyFrom(constant_proto(value, light=light))
    elif isinstance(value, gs.Graph):
        result.type = _KIND.GRAPH
        result.g.CopyFrom(body_proto(value, versions, light=light))
    else:
        raise TypeError(f"no ONNX attribute type for {type(value).__name__}")
    return result


def _fill_list(result: onnx.AttributeProto, values: list[Any], kind: int) -> None:
    if all(isinstance(value, str | bytes) for value in values) and (values or kind == _KIND.STRINGS):
        result.type = _KIND.STRINGS
        result.strings.extend(value.encode() if isinstance(value, str) else value for value in values)
    elif kind == _KIND.FLOATS or any(isinstance(value, float | np.floating) for value in values):
        result.type = _KIND.FLOATS
        result.floats.extend(float(value) for value in values)
    else:
        result.type = _KIND.INTS
        result.ints.extend(int(value) for value in values)


def constant_proto(constant: gs.Constant, *, light: bool = False) -> onnx.TensorProto:
    """The message for a constant, values included; its stored bytes are passed on unread where possible.

    With ``light`` only small values are included.
    """
    if light and stored_bytes(constant) > SMALL:
        return onnx.TensorProto(name=constant.name, data_type=data_type(constant), dims=constant.shape)
    stored = constant._values  # noqa: SLF001  # .values would read and keep it
    if isinstance(stored, StoredValues) and stored.place is None:
        result = onnx.TensorProto()
        result.CopyFrom(stored.message)
    elif isinstance(stored, UnreadValues):
        result = stored.tensor
    elif isinstance(stored, LazyValues):
        array = stored.load()
        result = onnx.numpy_helper.from_array(array)
    else:
        result = onnx.numpy_helper.from_array(np.ascontiguousarray(stored).reshape(stored.shape))
    result.ClearField("name")
    if constant.name:
        result.name = constant.name
    result.ClearField("doc_string")
    return result


def value_info(tensor: gs.Tensor) -> onnx.ValueInfoProto:
    """The declaration of a tensor from what graphsurgeon knows of it; only the name where that is all."""
    if isinstance(tensor, gs.Constant):
        return onnx.helper.make_tensor_value_info(tensor.name, data_type(tensor), list(tensor.shape))
    if tensor.dtype is None:
        return onnx.ValueInfoProto(name=tensor.name)
    number = tensor.dtype if isinstance(tensor.dtype, int) else _data_type_of(tensor.dtype)
    if tensor.type == "sequence_type":
        return onnx.helper.make_tensor_sequence_value_info(tensor.name, number, tensor.shape)
    return onnx.helper.make_tensor_value_info(tensor.name, number, tensor.shape)


def _data_type_of(dtype: Any) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def body_proto(body: gs.Graph, versions: dict[str, int], *, light: bool = False) -> onnx.GraphProto:
    """The message for a body: its nodes, its interface, and the constants that nobody outside uses."""
    result = onnx.GraphProto(name=body.name or "body")
    result.node.extend(node_proto(node, versions, light=light) for node in body.nodes)
    result.input.extend(interface_entry(body, tensor) for tensor in body.inputs)
    result.output.extend(interface_entry(body, tensor) for tensor in body.outputs)
    inside = {id(node) for node in nested_nodes(body)}
    for constant in own_constants(body):
        if all(id(user) in inside for user in constant.outputs):
            result.initializer.append(constant_proto(constant, light=light))
    return result


def own_constants(graph: gs.Graph) -> list[gs.Constant]:
    """The constants to write with a graph, in order of first use.

    Those its own nodes and outputs use, and those that more than one of its bodies use; a constant that
    only one body uses is written with that body.

    A constant that took the place of one that is an output as well gets a name of its own, for the output keeps that.

    Raises:
        InternalError: Two others have one name, and a file would hold but the values of either.
    """
    found = {
        id(tensor): tensor
        for tensors in [*(node.inputs for node in graph.nodes), graph.outputs]
        for tensor in tensors
        if isinstance(tensor, gs.Constant) and tensor.name
    }
    for body in graph.subgraphs():
        nodes = list(nested_nodes(body))
        inside = {id(node) for node in nodes}
        for node in nodes:
            for tensor in node.inputs:
                shared = isinstance(tensor, gs.Constant) and any(
                    id(user) not in inside for user in tensor.outputs
                )
                if shared:
                    found.setdefault(id(tensor), tensor)
    named: dict[str, gs.Constant] = {}
    outputs = {tensor.name: tensor for tensor in graph.outputs if isinstance(tensor, gs.Constant)}
    for tensor in found.values():
        if outputs.get(tensor.name, tensor) is not tensor:
            tensor.name = _unused(f"{tensor.name}__read", graph)
        if named.setdefault(tensor.name, tensor) is not tensor:
            raise InternalError(f"two constants are called {tensor.name!r}")
    return list(found.values())


def _unused(name: str, graph: gs.Graph) -> str:
    taken = {tensor.name for node in graph.nodes for tensor in (*node.inputs, *node.outputs)}
    while name in taken:
        name += "_"
    return name


def nested_nodes(body: gs.Graph) -> Iterator[gs.Node]:
    """The nodes of a graph and of all bodies inside it."""
    pending = [body]
    while pending:
        graph = pending.pop()
        for node in graph.nodes:
            yield node
            pending.extend(bodies(node))


def interface_entry(graph: gs.Graph, tensor: gs.Tensor) -> onnx.ValueInfoProto:
    """The declaration of a graph input or output: the original one where the graph remembers it."""
    known = graph.__dict__.get("surgeon_interface", {}).get(tensor.name)
    if isinstance(known, onnx.ValueInfoProto):
        return known
    return value_info(tensor)
