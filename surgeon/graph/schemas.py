"""Looking up ONNX operator schemas at the opset a graph imports."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

# Operators onnxruntime still runs in the standard domain although the ONNX specification has no schema for them.
RUNTIME_ONLY = frozenset(
    {
        "Affine", "Crop", "DynamicSlice", "GRUUnit", "GivenTensorFill", "ImageScaler", "LayerNormalization",
        "ParametricSoftplus", "Scale", "ScaledTanh", "SimplifiedLayerNormalization", "ThresholdedRelu",
    }
)  # fmt: skip


def standard(domain: str | None) -> str:
    """The canonical spelling of a domain: the standard one is ``""``, never ``"ai.onnx"`` or ``None``."""
    return "" if domain in (None, "ai.onnx") else domain


@lru_cache(maxsize=4096)
def schema_of(operator: str, domain: str | None, version: int) -> onnx.defs.OpSchema | None:
    """The schema of an operator at one opset version, or None where onnx does not know it."""
    try:
        return onnx.defs.get_schema(operator, version, standard(domain))
    except onnx.defs.SchemaError:
        return None


@lru_cache(maxsize=4096)
def attribute_kinds(operator: str, domain: str | None, version: int) -> dict[str, int]:
    """The declared ``AttributeProto`` type of every attribute of an operator; empty for operators without a schema."""
    schema = schema_of(operator, domain, version)
    if schema is None:
        return {}
    kinds = onnx.AttributeProto.AttributeType
    return {
        name: int(kinds.Value(str(entry.type).split(".")[-1])) for name, entry in schema.attributes.items()
    }


def opsets(graph: gs.Graph) -> dict[str, int]:
    """The opset version of every domain the graph imports; the standard domain is always present."""
    versions = {standard(entry.domain): int(entry.version) for entry in graph.import_domains or ()}
    versions.setdefault("", int(graph.opset))
    return versions


def node_schema(node: gs.Node, versions: dict[str, int]) -> onnx.defs.OpSchema | None:
    """The schema of a node at the given opset versions, or None for operators onnx does not know."""
    domain = standard(node.domain)
    return schema_of(node.op, domain, versions.get(domain, 1))


def label(node: gs.Node) -> str:
    """How messages name a node: its name when it has one, else its first output; always with its operator."""
    name = node.name or next((tensor.name for tensor in node.outputs if tensor.name), "?")
    return f"{node.op} '{name}'"
