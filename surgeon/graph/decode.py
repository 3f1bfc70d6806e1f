"""Reading weights that a file stores as small indices and a table: they are plain constants then, as any others.

See `surgeon.stats.encode`, which writes them. The operators that decode a weight depend on constants alone, bytes among them,
and end with a Gather from a table of floats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from surgeon.graph.evaluate import Call, evaluate
from surgeon.graph.order import every_node
from surgeon.graph.weights import data_type, peek

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

SUFFIX = "/surgeon/weight"
BYTE = 8
_FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE})
_DECODING = frozenset({"Cast", "Gather", "Reshape", "Slice", "Add"})


def decode(graph: gs.Graph) -> dict[str, int]:
    """Replace weights that are looked up by constants with what comes out, in place.

    Returns:
        For each, by its name from now on, of how many bits its indices are.
    """
    found: dict[str, int] = {}
    done: list[gs.Node] = []
    outputs = {id(tensor) for tensor in graph.outputs}
    decoding = [node for node in every_node(graph) if _is_lookup(node) and id(node.outputs[0]) not in outputs]
    taken = set(graph.tensors()) if decoding else set()
    for node in decoding:
        values = _value(node.outputs[0], {})  # ends at the first operator that decodes nothing
        bits = None if values is None else _bits(node)
        if bits is None or values is None:
            continue
        tensor = node.outputs[0]
        name = tensor.name.removesuffix(SUFFIX)
        name = tensor.name if name in taken else name
        taken.add(name)
        constant = gs.Constant(name, np.ascontiguousarray(values))
        for user in list(tensor.outputs):
            for k, each in enumerate(user.inputs):
                if each is tensor:
                    user.inputs[k] = constant
        found[name] = bits
        done += [node, *_makers(node.inputs[1])]
    if found:
        _drop_unread(graph, done)
    return found


def _is_lookup(node: gs.Node) -> bool:
    """Whether a node picks floats from a row by what is computed."""
    if node.op != "Gather" or node.domain not in (None, "", "ai.onnx"):
        return False
    table, places = node.inputs
    known = isinstance(table, gs.Constant) and not isinstance(places, gs.Constant)
    return known and len(table.shape) == 1 and data_type(table) in _FLOATS


def _bits(node: gs.Node) -> int | None:
    """Of how many bits the indices are that are read from bytes; None where that is not what happens."""
    for maker in _makers(node.inputs[1]):
        if maker.op == "Gather" and isinstance(maker.inputs[0], gs.Constant):
            table = maker.inputs[0]
            if data_type(table) == onnx.TensorProto.UINT8 and tuple(table.shape)[:1] == (2**BYTE,):
                return BYTE // int(table.shape[1]) if len(table.shape) > 1 else None
    return None


def _makers(tensor: gs.Tensor) -> list[gs.Node]:
    """All nodes that a tensor depends on, each once."""
    found: dict[int, gs.Node] = {}
    waiting = list(tensor.inputs)
    while waiting:
        node = waiting.pop()
        if id(node) not in found:
            found[id(node)] = node
            waiting += [maker for each in node.inputs for maker in each.inputs]
    return list(found.values())


def _value(tensor: gs.Tensor, known: dict[int, NDArray[Any] | None]) -> NDArray[Any] | None:
    """What is computed from constants alone; None for anything else."""
    if isinstance(tensor, gs.Constant):
        return peek(tensor)
    if id(tensor) not in known:
        known[id(tensor)] = _made(tensor, known)
    return known[id(tensor)]


def _made(tensor: gs.Tensor, known: dict[int, NDArray[Any] | None]) -> NDArray[Any] | None:
    if len(tensor.inputs) != 1 or tensor.inputs[0].op not in _DECODING or tensor.inputs[0].domain:
        return None
    node = tensor.inputs[0]
    inputs = [_value(each, known) for each in node.inputs]
    if any(each is None for each in inputs):
        return None
    attributes = {name: _plain(value) for name, value in node.attrs.items()}
    made = evaluate(Call(node.op, attributes, inputs))
    return None if made is None else made[0]


def _plain(value: Any) -> Any:
    """Types as ONNX has them; graphsurgeon reads some attributes as numpy's."""
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value))) if isinstance(value, type) else value


def _drop_unread(graph: gs.Graph, nodes: Iterable[gs.Node]) -> None:
    """Remove those of some nodes whose results nobody reads any more."""
    some, kept = {id(node) for node in nodes}, []
    outputs = {id(tensor) for tensor in graph.outputs}
    for node in reversed(graph.nodes):
        if id(node) in some and not any(each.outputs or id(each) in outputs for each in node.outputs):
            node.inputs.clear()
        else:
            kept.append(node)
    graph.nodes = kept[::-1]
