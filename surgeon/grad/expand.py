"""Operators without a derivative rule that ONNX defines by simpler ones, replaced by these."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import onnx_graphsurgeon as gs

from surgeon.errors import UnsupportedModelError
from surgeon.grad.registry import DERIVATIVES
from surgeon.graph.load import from_model
from surgeon.graph.order import bodies, every_node
from surgeon.graph.proto import node_proto
from surgeon.graph.schemas import node_schema, opsets, schema_of, standard
from surgeon.graph.shapes import infer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from surgeon.graph.shapes import Shapes

DEPTH = 8  # definitions within definitions
IR_VERSION = 10
_HERE = "surgeon.grad"
_FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16})


def expanded(graph: gs.Graph) -> gs.Graph:
    """The graph with such operators replaced, in place.

    An operator stays where its definition needs other operators than those of the graph's opset, or its result is not
    float, so that no gradient passes through it anyway.
    """
    versions = opsets(graph)
    taken = {tensor.name for node in every_node(graph) for tensor in (*node.inputs, *node.outputs)}
    taken |= {tensor.name for tensor in graph.inputs}
    _cast(graph)
    tried: dict[int, gs.Node] = {}
    for _ in range(DEPTH):
        candidates = [node for node in graph.nodes if id(node) not in tried and _defined(node, versions)]
        if not candidates:
            break
        shapes = infer(graph)
        for node in candidates:
            tried[id(node)] = node
            found = _body(node, versions, shapes)
            if found is not None:
                _replace(graph, node, found, taken)
    _cast(graph)
    return graph


def _cast(graph: gs.Graph) -> None:
    """Types that are taken from another tensor are written out: that tensor's value does not matter."""
    found = [node for node in graph.nodes if node.op == "CastLike" and not standard(node.domain)]
    shapes = infer(graph) if found else None
    for node in found:
        kind = shapes.dtypes.get(node.inputs[1].name) if shapes is not None else None
        if kind:
            node.op, node.attrs = "Cast", {**node.attrs, "to": kind}
            node.inputs = node.inputs[:1]


def _defined(node: gs.Node, versions: dict[str, int]) -> bool:
    """Whether there is no rule for a node, but a definition."""
    domain = standard(node.domain)
    if DERIVATIVES.find(node.op, domain, versions.get(domain, 1)) is not None or bodies(node):
        return False
    schema: Any = node_schema(node, versions)  # onnx's types do not tell of definitions
    return schema is not None and bool(schema.has_function or schema.has_context_dependent_function)


def _body(node: gs.Node, versions: dict[str, int], shapes: Shapes) -> gs.Graph | None:
    """What a node stands for: a graph whose inputs and outputs are the node's, without those that are left out."""
    kinds = [shapes.dtypes.get(tensor.name, 0) for tensor in (*node.inputs, *node.outputs) if tensor.name]
    if shapes.dtypes.get(node.outputs[0].name) not in _FLOATS or 0 in kinds:
        return None
    call = node_proto(node, versions)
    function = _definition(node, call, versions, shapes)
    if function is None or not _fits(function, versions):
        return None
    function.domain, function.name = _HERE, node.op
    _give_defaults(node, call, function, versions)
    for entry in function.opset_import:
        entry.version = versions.get(standard(entry.domain), entry.version)
    call.domain, call.op_type = _HERE, node.op
    inputs = {tensor.name: tensor for tensor in node.inputs if tensor.name}
    message = onnx.helper.make_graph(
        [call],
        "body",
        [_entry(name, shapes) for name in inputs],
        [_entry(tensor.name, shapes) for tensor in node.outputs if tensor.name],
    )
    imports = [
        onnx.helper.make_opsetid(domain, version) for domain, version in {**versions, _HERE: 1}.items()
    ]
    model = onnx.helper.make_model(
        message, opset_imports=imports, functions=[function], ir_version=IR_VERSION
    )
    try:
        return from_model(model)
    except UnsupportedModelError:
        return None


def _definition(
    node: gs.Node, call: onnx.NodeProto, versions: Mapping[str, int], shapes: Shapes
) -> onnx.FunctionProto | None:
    """The newest that is not newer than the graph."""
    domain = standard(node.domain)
    version = versions.get(domain, 1)
    schema: Any = schema_of(node.op, domain, version)
    found = [each for each in schema.function_opset_versions if each <= version]
    if found:
        plain: bytes = schema.get_function_with_opset_version(max(found))
        function: onnx.FunctionProto = onnx.FunctionProto.FromString(plain)
        return function
    found = [each for each in schema.context_dependent_function_opset_versions if each <= version]
    if not found:
        return None
    types = [
        (_entry(tensor.name, shapes).type if tensor.name else onnx.TypeProto()).SerializeToString()
        for tensor in node.inputs
    ]
    text: bytes = schema.get_context_dependent_function_with_opset_version(
        max(found), call.SerializeToString(), types
    )
    return onnx.FunctionProto.FromString(text) if text else None


def _give_defaults(
    node: gs.Node, call: onnx.NodeProto, function: onnx.FunctionProto, versions: Mapping[str, int]
) -> None:
    """Write what the schema gives attributes that are left out: a function does not know."""
    schema = schema_of(node.op, node.domain, versions.get(standard(node.domain), 1))
    given = {attribute.name for attribute in call.attribute}
    for name in set(function.attribute) - given:
        default = schema.attributes[name].default_value if schema is not None else None
        if default is not None and default.type:
            call.attribute.append(default)


def _entry(name: str, shapes: Shapes) -> onnx.ValueInfoProto:
    """A tensor with its type; sizes that are dynamic stay open."""
    dims = shapes.dims.get(name)
    sizes = None
    if dims is not None:
        sizes = [None if open_ else size for size, open_ in zip(dims, shapes.dynamic[name], strict=True)]
    return onnx.helper.make_tensor_value_info(name, shapes.dtypes[name], sizes)


def _fits(function: onnx.FunctionProto, versions: Mapping[str, int]) -> bool:
    """Whether a definition can be read with the operators of the graph's opset."""
    for node in _every(function.node):
        domain = standard(node.domain)
        schema = schema_of(node.op_type, domain, versions.get(domain, 1))
        if (
            schema is None
            or not {each.name for each in node.attribute} <= set(schema.attributes)
            or not schema.min_input <= len(node.input) <= schema.max_input
        ):
            return False
    return True


def _every(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _every(attribute.g.node)


def _replace(graph: gs.Graph, node: gs.Node, body: gs.Graph, taken: set[str]) -> None:
    """The nodes of a body in place of a node, their tensors renamed."""
    inputs = {tensor.name: tensor for tensor in node.inputs if tensor.name}
    outputs = [tensor for tensor in node.outputs if tensor.name]
    outer = {id(inner): inputs[inner.name] for inner in body.inputs}
    outer |= {id(inner): tensor for inner, tensor in zip(body.outputs, outputs, strict=True)}
    node.inputs.clear()
    node.outputs.clear()
    for inner in body.nodes:
        for tensors in (inner.inputs, inner.outputs):
            for k, tensor in enumerate(list(tensors)):
                if tensor.name and id(tensor) not in outer:
                    outer[id(tensor)] = tensor
                    _rename(tensor, outputs[0].name, taken)
                elif tensor.name and outer[id(tensor)] is not tensor:
                    tensors[k] = outer[id(tensor)]
    at = next(k for k, each in enumerate(graph.nodes) if each is node)
    graph.nodes = [*graph.nodes[:at], *body.nodes, *graph.nodes[at + 1 :]]


def _rename(tensor: gs.Tensor, prefix: str, taken: set[str]) -> None:
    stem = name = f"{prefix}/{tensor.name}"
    number = 1
    while name in taken:
        number += 1
        name = f"{stem}_{number}"
    taken.add(name)
    tensor.name = name
