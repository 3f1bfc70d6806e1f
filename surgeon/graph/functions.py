"""Local functions of a model, replaced by what they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types

from surgeon.errors import UnsupportedModelError
from surgeon.graph.schemas import schema_of, standard

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Key: TypeAlias = tuple[str, str, str]


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model in which calls of its local functions are replaced by the functions' nodes.

    Functions may call each other, and may be written for another opset than the model. What is left out of a call has
    the function's default, which onnx's own inliner forgets.

    Raises:
        UnsupportedModelError: A function cannot be inlined.
    """
    light = onnx.ModelProto()
    light.CopyFrom(model)
    for tensor in light.graph.initializer:  # values do not matter
        bare = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        tensor.CopyFrom(bare)
    functions = {_key(each.domain, each.name, each.overload): each for each in light.functions}
    _give_defaults(light.graph.node, functions)
    for function in light.functions:
        _give_defaults(function.node, functions)
    _import_domains(light)
    _align_versions(light)
    try:
        result = onnx.inliner.inline_local_functions(light, convert_version=True)
    except (RuntimeError, ValueError, DecodeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UnsupportedModelError(
            f"its local functions cannot be inlined: {reason}", where="model"
        ) from error
    if result.functions:
        left = result.functions[0]
        raise UnsupportedModelError(
            "cannot be inlined: it needs another version of the ONNX operators than the model",
            where=f"function '{left.domain}.{left.name}'",
            hint="inline it with onnx.inliner after onnx.version_converter",
        )
    del result.graph.initializer[:]
    result.graph.initializer.extend(model.graph.initializer)
    return result


def _key(domain: str, name: str, overload: str) -> Key:
    return standard(domain), name, overload


def _give_defaults(nodes: Iterable[onnx.NodeProto], functions: dict[Key, onnx.FunctionProto]) -> None:
    """Write defaults of functions into the calls that leave them out, bodies included."""
    for node in _every_node(nodes):
        function = functions.get(_key(node.domain, node.op_type, node.overload))
        if function is not None:
            given = {attribute.name for attribute in node.attribute}
            node.attribute.extend(each for each in function.attribute_proto if each.name not in given)


def _align_versions(model: onnx.ModelProto) -> None:
    """A function for another opset takes the model's where its operators mean the same in both."""
    versions = {standard(entry.domain): entry.version for entry in model.opset_import}
    for function in model.functions:
        for entry in function.opset_import:
            domain, version = standard(entry.domain), versions[standard(entry.domain)]
            used = {node.op_type for node in _every_node(function.node) if standard(node.domain) == domain}
            pairs = [[schema_of(name, domain, each) for each in (entry.version, version)] for name in used]
            if all(a and b and a.since_version == b.since_version for a, b in pairs):
                entry.version = version


def _every_node(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _every_node(attribute.g.node)


def _import_domains(model: onnx.ModelProto) -> None:
    """The model imports what its functions import, where it does not yet."""
    known = {standard(entry.domain) for entry in model.opset_import}
    for function in model.functions:
        for entry in function.opset_import:
            if standard(entry.domain) not in known:
                known.add(standard(entry.domain))
                model.opset_import.add(domain=entry.domain, version=entry.version)
