"""The structure of a model: everything but the values of its weights, in words that two files can be compared by."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from surgeon.graph.order import every_node, graphs
from surgeon.graph.weights import data_type, peek, raw_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Structure: TypeAlias = "Mapping[str, Mapping[str, str]]"  # kind of thing, its name, and what it is

# Constants of these types are sizes, indices and flags: what they are decides what the operators mean.
FIXED = frozenset({onnx.TensorProto.INT64, onnx.TensorProto.BOOL, onnx.TensorProto.STRING})
# Inputs that are floats and sizes all the same, by operator.
SIZES = {"Resize": (1, 2), "Upsample": (1,), "Range": (0, 1, 2), "OneHot": (1,)}
SPELLED = 8  # elements of a constant that are written out; of longer ones a hash is
LONGEST = 160  # letters of a description in a message


def structure_of(graph: gs.Graph) -> Structure:
    """What a graph is made of: opsets, inputs, constants, nodes and outputs by name.

    Names of nodes and of symbolic dimensions do not count, nor does the order of nodes: nothing is found by them.

    Args:
        graph: The graph as it was loaded.
    """
    constants: dict[str, str] = {}
    nodes: dict[str, str] = {}
    for node in every_node(graph):
        for index, tensor in enumerate(node.inputs):
            if isinstance(tensor, gs.Constant):
                said = _typed(tensor)
                if data_type(tensor) in FIXED or index in SIZES.get(node.op, ()):
                    constants[tensor.name] = said + _values(tensor)
                else:
                    constants.setdefault(tensor.name, said)
        made = [tensor.name for tensor in node.outputs]
        nodes[", ".join(made)] = _node(node)
    for body in list(graphs(graph))[1:]:
        read, made = ([tensor.name for tensor in side] for side in (body.inputs, body.outputs))
        nodes[f"body that makes {', '.join(made)}"] = f"({', '.join(read)})"
    opsets = {imported.domain or "ai.onnx": imported.version for imported in graph.import_domains or ()}
    used = {node.domain or "ai.onnx" for node in every_node(graph)}
    return {
        "opset": {domain: str(version) for domain, version in opsets.items() if domain in used},
        "input": {tensor.name: _declared(tensor) for tensor in graph.inputs},
        "constant": constants,
        "node": nodes,
        "output": {tensor.name: _declared(tensor) for tensor in graph.outputs},
    }


def first_difference(found: Structure, expected: Structure) -> str | None:
    """The first thing that is not the same, as a sentence about ``found``; None where the structures are equal."""
    for kind, things in expected.items():
        here = found.get(kind, {})
        for name, wanted in things.items():
            if name not in here:
                return f"it has no {kind} {name}, which is {_short(wanted)} in the plan's graph"
            if here[name] != wanted:
                return f"{kind} {name} is {_short(here[name])}, in the plan's graph {_short(wanted)}"
        surplus = next((name for name in here if name not in things), None)
        if surplus is not None:
            return f"{kind} {surplus}, {_short(here[surplus])}, is not in the plan's graph"
    return None


def _node(node: gs.Node) -> str:
    domain = f"{node.domain}." if node.domain else ""
    read = ", ".join(tensor.name for tensor in node.inputs)
    said = {
        name: _attribute(value)
        for name, value in sorted(node.attrs.items())
        if not isinstance(value, gs.Graph)
    }
    return f"{domain}{node.op}({read})" + (f" {json.dumps(said)}" if said else "")


def _attribute(value: Any) -> Any:
    """An attribute as JSON; what holds tensors or other messages as a hash."""
    if isinstance(value, gs.Constant):
        return _typed(value) + _values(value)
    if isinstance(value, list):
        return [_attribute(each) for each in value]
    if isinstance(value, bool | int | float | str):
        return value
    serialize = getattr(value, "SerializeToString", None)
    content = serialize(deterministic=True) if serialize is not None else repr(value).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _typed(tensor: gs.Constant) -> str:
    return _type(data_type(tensor), tensor.shape)


def _values(tensor: gs.Constant) -> str:
    values = peek(tensor)
    if values.size <= SPELLED:
        return f" = {np.asarray(values).tolist()}"
    content = repr(values.tolist()).encode() if values.dtype.hasobject else raw_bytes(values)
    return f" #{hashlib.sha256(content).hexdigest()[:16]}"


def _declared(tensor: gs.Tensor) -> str:
    """Type and shape; sizes that are not fixed are all alike."""
    shape, dtype = getattr(tensor, "shape", None), getattr(tensor, "dtype", None)
    kind = dtype if isinstance(dtype, int) else None
    if kind is None and dtype is not None:
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    sizes = None if shape is None else [size if isinstance(size, int) and size > 0 else "?" for size in shape]
    return _type(kind, sizes)


def _type(kind: int | None, shape: Sequence[int | str] | None) -> str:
    name = "unknown" if kind is None else onnx.TensorProto.DataType.Name(kind).lower()
    return name + ("" if shape is None else f"[{','.join(map(str, shape))}]")


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
