"""From ONNX messages to graphsurgeon's objects, keeping what graphsurgeon's own importer would drop.

Attributes of kinds graphsurgeon has no value for stay messages, text that is not UTF-8 stays bytes, ``Constant``
nodes become constants, and weights stay where they are stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from surgeon.graph.schemas import standard
from surgeon.graph.weights import SparseValues, StoredValues

if TYPE_CHECKING:
    from collections.abc import Mapping

    from surgeon.graph.weights import Slice

_KIND = onnx.AttributeProto
Scope = dict[str, gs.Tensor]


def build(model: onnx.ModelProto, places: Mapping[str, Slice]) -> gs.Graph:
    """A graph whose weights are read from the model's messages, or from ``places``, when they are first needed.

    Initializers that are also inputs become constants and are no longer inputs. Node documentation and metadata
    and the shapes declared for intermediate tensors are left behind.

    Args:
        model: A checked model without local functions.
        places: Where the bytes of externally stored initializers are, by name.
    """
    versions = {standard(entry.domain): int(entry.version) for entry in model.opset_import}
    graph = _Builder(versions, list(model.opset_import), places).graph(model.graph, {})
    graph.producer_name, graph.producer_version = model.producer_name, model.producer_version
    graph.ir_version = model.ir_version
    return graph


class _Builder:
    def __init__(
        self, versions: dict[str, int], imports: list[onnx.OperatorSetIdProto], places: Mapping[str, Slice]
    ) -> None:
        self.versions, self.imports, self.places = versions, imports, places

    def graph(self, message: onnx.GraphProto, outer: Mapping[str, gs.Tensor]) -> gs.Graph:
        scope: Scope = {}
        for weight in message.initializer:
            place = None if outer else self.places.get(weight.name)
            scope[weight.name] = gs.Constant(weight.name, StoredValues(weight, place))
        for sparse in message.sparse_initializer:
            scope[sparse.values.name] = gs.Constant(sparse.values.name, SparseValues(sparse))
        inputs = []
        for entry in message.input:
            if entry.name not in scope:
                scope[entry.name] = variable(entry)
                inputs.append(scope[entry.name])
        declared = {entry.name: entry for entry in message.output}
        both = _Scope(scope, outer)
        nodes = []
        for node in message.node:
            constant = None if node.op_type != "Constant" or node.output[0] in declared else constant_of(node)
            if constant is not None:
                scope[constant.name] = constant
            else:
                nodes.append(self.node(node, both, declared))
        outputs = [both.get(entry.name, entry) for entry in message.output]
        graph = gs.Graph(
            nodes=nodes, inputs=inputs, outputs=outputs, name=message.name, doc_string=message.doc_string,
            opset=self.versions[""], import_domains=self.imports,
        )  # fmt: skip
        graph.surgeon_interface = {entry.name: entry for entry in [*message.input, *message.output]}
        return graph

    def node(
        self, message: onnx.NodeProto, scope: _Scope, declared: Mapping[str, onnx.ValueInfoProto]
    ) -> gs.Node:
        # where nodes are out of order, an output may be read before the node that makes it
        inputs = [scope.get(name, declared.get(name)) for name in message.input]
        attributes = {attribute.name: self.attribute(attribute, scope) for attribute in message.attribute}
        outputs = [scope.make(name, declared.get(name)) for name in message.output]
        return gs.Node(
            message.op_type, message.name, attributes, inputs, outputs, standard(message.domain) or None
        )

    def attribute(self, message: onnx.AttributeProto, scope: _Scope) -> Any:
        kind = message.type
        if kind == _KIND.GRAPH:
            return self.graph(message.g, scope.flat())
        if kind == _KIND.TENSOR:
            return gs.Constant(message.t.name, StoredValues(message.t))
        if kind == _KIND.STRING:
            return _text(message.s)
        if kind == _KIND.STRINGS:
            return [_text(value) for value in message.strings]
        if kind in _PLAIN:
            value = getattr(message, _PLAIN[kind])
            return list(value) if kind in (_KIND.FLOATS, _KIND.INTS) else value
        copy = onnx.AttributeProto()
        copy.CopyFrom(message)
        return copy


_PLAIN = {_KIND.FLOAT: "f", _KIND.INT: "i", _KIND.FLOATS: "floats", _KIND.INTS: "ints"}


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


class _Scope:
    """Tensors by name: those of the graph being built first, those of the graphs around it after."""

    def __init__(self, own: Scope, outer: Mapping[str, gs.Tensor]) -> None:
        self.own, self.outer = own, outer

    def get(self, name: str, entry: onnx.ValueInfoProto | None = None) -> gs.Tensor:
        if not name:
            return gs.Variable.empty()
        tensor = self.own.get(name)
        if tensor is None:
            tensor = self.outer.get(name)
        return tensor if tensor is not None else self.make(name, entry)

    def make(self, name: str, entry: onnx.ValueInfoProto | None) -> gs.Tensor:
        if not name:
            return gs.Variable.empty()
        if name not in self.own:
            self.own[name] = variable(entry) if entry is not None else gs.Variable(name)
        return self.own[name]

    def flat(self) -> Mapping[str, gs.Tensor]:
        return {**self.outer, **self.own}


def variable(entry: onnx.ValueInfoProto) -> gs.Variable:
    """A variable with the declared type; a size is a number, a symbol's name, or None where nothing is declared."""
    kind = entry.type.WhichOneof("value")
    if kind not in ("tensor_type", "sparse_tensor_type"):
        return gs.Variable(entry.name, type=kind or "tensor_type")
    declared = getattr(entry.type, kind)
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(declared.elem_type)) if declared.elem_type else None
    shape: list[int | str | None] | None = None
    if declared.HasField("shape"):
        shape = [
            dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None)
            for dim in declared.shape.dim
        ]
    return gs.Variable(entry.name, dtype, shape, type=kind)


def constant_of(node: onnx.NodeProto) -> gs.Constant | None:
    """The constant a ``Constant`` node makes, bearing its output's name; None for a sparse or malformed one.

    See https://onnx.ai/onnx/operators/onnx__Constant.html.
    """
    if len(node.attribute) != 1 or len(node.output) != 1:
        return None
    attribute, name = node.attribute[0], node.output[0]
    if attribute.name == "value":
        return gs.Constant(name, StoredValues(attribute.t))
    if attribute.name in ("value_float", "value_floats"):
        floats = attribute.f if attribute.name == "value_float" else list(attribute.floats)
        return gs.Constant(name, np.asarray(floats, dtype=np.float32))
    if attribute.name in ("value_int", "value_ints"):
        return gs.Constant(
            name,
            np.asarray(
                attribute.i if attribute.name == "value_int" else list(attribute.ints), dtype=np.int64
            ),
        )
    return None
