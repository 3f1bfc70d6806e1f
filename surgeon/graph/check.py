"""Everything that must hold of a model before anything is computed from it, each said in one line when it does not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx
from onnx.checker import ValidationError, check_node

from surgeon.errors import UnsupportedModelError
from surgeon.graph.schemas import RUNTIME_ONLY, schema_of, standard
from surgeon.graph.weights import packed_bytes
from surgeon.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

OLDEST_OPSET = 7
_KIND = onnx.AttributeProto
_TENSOR = onnx.TensorProto
_LARGEST_DIMENSION = 2**40
_FIELDS: dict[int, str] = {
    _TENSOR.FLOAT: "float_data",
    _TENSOR.COMPLEX64: "float_data",
    _TENSOR.DOUBLE: "double_data",
    _TENSOR.COMPLEX128: "double_data",
    _TENSOR.INT64: "int64_data",
    _TENSOR.UINT32: "uint64_data",
    _TENSOR.UINT64: "uint64_data",
    _TENSOR.STRING: "string_data",
}  # every other type is in int32_data
# onnx calls version 18 deprecated because its scales are per group, but exporters write it and onnxruntime runs it.
_DEPRECATED_BUT_RUN = frozenset({"GroupNormalization"})
_CONSTANT_ATTRIBUTES = frozenset(
    {
        "value",
        "value_float",
        "value_floats",
        "value_int",
        "value_ints",
        "value_string",
        "value_strings",
        "sparse_value",
    }
)


def check(model: onnx.ModelProto) -> None:
    """Checks a model without its external data, and without copying its weights.

    Local functions must have been inlined. Cycles are found when nodes are put in order.

    Raises:
        UnsupportedModelError: Something is broken; ``where`` names the node or tensor.
    """
    versions = check_versions(model)
    context = onnx.checker.DEFAULT_CONTEXT.__class__()
    context.ir_version = min(int(model.ir_version), int(onnx.IR_VERSION))
    context.opset_imports = versions
    if not model.graph.output:
        raise UnsupportedModelError("has no outputs", where="model")
    _check_graph(model.graph, frozenset(), versions, context)


def check_versions(model: onnx.ModelProto) -> dict[str, int]:
    """The opset version of every imported domain.

    Raises:
        UnsupportedModelError: A version is missing, too old, or newer than the installed onnx knows.
    """
    if not 1 <= model.ir_version <= onnx.IR_VERSION:
        raise UnsupportedModelError(
            f"has IR version {model.ir_version}; versions 1 to {onnx.IR_VERSION} are known",
            where="model",
            hint="upgrade onnx" if model.ir_version > onnx.IR_VERSION else None,
        )
    versions = {standard(entry.domain): int(entry.version) for entry in model.opset_import}
    if "" not in versions:
        raise UnsupportedModelError("does not say which version of the ONNX operators it uses", where="model")
    newest = onnx.defs.onnx_opset_version()
    if versions[""] > newest:
        raise UnsupportedModelError(
            f"uses opset {versions['']}, but the installed onnx knows none after {newest}",
            where="model",
            hint="upgrade onnx, or convert the model",
        )
    if versions[""] < OLDEST_OPSET:
        raise UnsupportedModelError(
            f"uses opset {versions['']}, which is older than {OLDEST_OPSET}",
            where="model",
            hint="convert it with onnx.version_converter",
        )
    return versions


def _check_graph(
    graph: onnx.GraphProto,
    outer: frozenset[str],
    versions: Mapping[str, int],
    context: onnx.checker.C.CheckerContext,
) -> None:
    _check_text(graph)
    made = _names(entry.name for entry in graph.input) if not outer else {entry.name for entry in graph.input}
    initialized: set[str] = set()
    for tensor in graph.initializer:
        if not tensor.name or tensor.name in initialized:
            raise UnsupportedModelError(
                "two initializers have this name", where=f"initializer '{tensor.name}'"
            )
        initialized.add(tensor.name)
        check_tensor(tensor, f"initializer '{tensor.name}'")
    initialized.update(sparse.values.name for sparse in graph.sparse_initializer)
    for entry in graph.input:
        if entry.type.WhichOneof("value") is None and not outer:
            raise UnsupportedModelError("has no type", where=f"input '{entry.name}'")
        _check_type(entry, f"input '{entry.name}'")
    for entry in graph.output:
        _check_type(entry, f"output '{entry.name}'")
    made |= initialized
    for node in graph.node:
        for name in node.output:
            if name and name in made:
                raise UnsupportedModelError(
                    f"makes '{name}', which something else makes already", where=_label(node)
                )
            made.add(name)
    visible = frozenset(made | outer)
    for node in graph.node:
        _check_node(node, visible, versions, context)
    for entry in graph.output:
        if entry.name not in visible:
            raise UnsupportedModelError("nothing makes it", where=f"output '{entry.name}'")


def _check_text(graph: onnx.GraphProto) -> None:
    """Protobuf hands out text that is not UTF-8 as bytes; nothing after this expects that."""
    tensors = [*graph.input, *graph.output, *graph.initializer]
    if any(not isinstance(tensor.name, str) for tensor in tensors):
        raise UnsupportedModelError("has names that are not text: it is damaged", where="model")
    for node in graph.node:
        names = (node.op_type, node.domain, node.name, *node.input, *node.output)
        if not all(isinstance(name, str) for name in (*names, *(entry.name for entry in node.attribute))):
            raise UnsupportedModelError(
                "has names that are not text: it is damaged", where=f"node {node.name!r}"
            )


def _names(names: Iterable[str]) -> set[str]:
    result: set[str] = set()
    for name in names:
        if not name or name in result:
            raise UnsupportedModelError(
                "two inputs have this name" if name else "has no name", where=f"input '{name}'"
            )
        result.add(name)
    return result


def _check_type(entry: onnx.ValueInfoProto, where: str) -> None:
    kind = entry.type.WhichOneof("value")
    if kind not in ("tensor_type", "sparse_tensor_type"):
        return
    declared = getattr(entry.type, kind)
    if declared.elem_type not in _TENSOR.DataType.values():
        raise UnsupportedModelError("has an unknown data type", where=where)
    for dim in declared.shape.dim:
        if dim.dim_value > _LARGEST_DIMENSION:
            raise UnsupportedModelError(f"has an impossible size {dim.dim_value}", where=where)


def check_tensor(tensor: onnx.TensorProto, where: str) -> None:
    """Checks that a tensor holds as many values as its shape says.

    Raises:
        UnsupportedModelError: It does not, or its type or shape is impossible.
    """
    if tensor.data_type not in _TENSOR.DataType.values() or tensor.data_type == _TENSOR.UNDEFINED:
        raise UnsupportedModelError(f"has the unknown data type {tensor.data_type}", where=where)
    shape = list(tensor.dims)
    if any(size < 0 for size in shape):
        raise UnsupportedModelError(f"has a negative size in its shape {shape}", where=where)
    if tensor.data_location == _TENSOR.EXTERNAL:
        return
    count = math.prod(shape)
    if tensor.HasField("raw_data"):
        needed, stored, unit = packed_bytes(tensor.data_type, shape), len(tensor.raw_data), "bytes"
        if tensor.data_type == _TENSOR.STRING:
            raise UnsupportedModelError("has text stored as raw bytes", where=where)
    else:
        field = _FIELDS.get(tensor.data_type, "int32_data")
        stored, unit = len(getattr(tensor, field)), "values"
        packed = field == "int32_data" and packed_bytes(tensor.data_type, [2]) == 1
        needed = count * 2 if tensor.data_type in (_TENSOR.COMPLEX64, _TENSOR.COMPLEX128) else count
        needed = packed_bytes(tensor.data_type, shape) if packed else needed
    if stored != needed:
        raise UnsupportedModelError(
            f"has shape {shape}, which takes {needed} {unit}, but {stored} are there", where=where
        )


def _check_node(
    node: onnx.NodeProto,
    visible: frozenset[str],
    versions: Mapping[str, int],
    context: onnx.checker.C.CheckerContext,
) -> None:
    where, domain = _label(node), standard(node.domain)
    for name in node.input:
        if name and name not in visible:
            raise UnsupportedModelError(f"reads '{name}', which nothing makes", where=where)
    for attribute in node.attribute:
        if attribute.type == _KIND.TENSOR:
            check_tensor(attribute.t, where)
            if attribute.t.data_location == _TENSOR.EXTERNAL:
                raise UnsupportedModelError("keeps external data in an attribute", where=where)
    if domain not in versions:
        raise UnsupportedModelError(
            f"is in the domain '{domain}', which the model does not import", where=where
        )
    schema = schema_of(node.op_type, domain, versions[domain])
    if schema is None:
        if domain == "" and node.op_type not in RUNTIME_ONLY:
            known = {entry.name for entry in onnx.defs.get_all_schemas() if entry.domain == ""}
            raise UnsupportedModelError(
                f"is not an ONNX operator of opset {versions['']}",
                where=where,
                hint=did_you_mean(node.op_type, known),
            )
    elif node.op_type == "Constant":
        if len(node.output) != 1 or [a.name in _CONSTANT_ATTRIBUTES for a in node.attribute] != [True]:
            raise UnsupportedModelError("is a constant without a value", where=where)
    elif not (schema.deprecated and node.op_type in _DEPRECATED_BUT_RUN):
        _check_against_schema(node, context, where)
    for body in _bodies(node):
        _check_graph(body, visible, versions, context)


def _check_against_schema(node: onnx.NodeProto, context: onnx.checker.C.CheckerContext, where: str) -> None:
    try:
        check_node(_without_bodies(node), context)
    except ValidationError as error:
        raise UnsupportedModelError(str(error).strip().splitlines()[0].rstrip("."), where=where) from error


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    return (attribute.g for attribute in node.attribute if attribute.type == _KIND.GRAPH)


def _without_bodies(node: onnx.NodeProto) -> onnx.NodeProto:
    """The node with empty bodies: they are checked on their own, with the names around them in view."""
    if not any(True for _ in _bodies(node)):
        return node
    result = onnx.NodeProto()
    result.CopyFrom(node)
    for body in _bodies(result):
        body.Clear()
        body.name = "body"
    return result


def _label(node: onnx.NodeProto) -> str:
    name = node.name or next((output for output in node.output if output), "?")
    return f"{node.op_type} '{name}'"
