"""Two idioms of exporters said more simply: channel shuffles as permutations, index tables that change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from surgeon.graph.canonical import drop_dead
from surgeon.graph.order import every_node, graphs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from surgeon.graph.shapes import Shapes


def drop_identity_gathers(graph: gs.Graph, shapes: Shapes) -> int:
    """Turn a Gather of all elements of a vector, in order, into a Reshape; returns how many there were.

    Exporters write views of strided storage this way, with indices computed while the model runs.
    """
    count = 0
    for node in every_node(graph):
        if node.op == "Gather" and len(node.inputs) == 2 and not node.attrs.get("axis", 0):
            vector = shapes.dims.get(node.inputs[0].name)
            indices = shapes.values.get(node.inputs[1].name)
            name = node.outputs[0].name
            dynamic = shapes.dynamic.get(name, ())
            if indices is None or vector is None or len(vector) != 1 or sum(dynamic) > 1:
                continue
            if not np.array_equal(indices.data.ravel(), np.arange(vector[0])):
                continue
            target = np.where(np.array(dynamic, bool), -1, np.array(indices.data.shape, dtype=np.int64))
            _become(node, "Reshape", _constant(f"{name}/shape", target, shapes), {})
            count += 1
    if count:
        for each in graphs(graph):
            drop_dead(each)
    return count


def has_shuffles(graph: gs.Graph, shapes: Shapes) -> bool:
    """Whether `fold_shuffles` would find any."""
    return any(_shuffle(node, shapes) is not None for node in graph.nodes)


def fold_shuffles(graph: gs.Graph, shapes: Shapes) -> int:
    """Turn Reshape, Transpose, Reshape that only permute one axis into a Gather; returns how many there were."""
    count = 0
    for node in graph.nodes:
        found = _shuffle(node, shapes)
        if found is None:
            continue
        last, axis, indices = found
        _become(last, "Gather", _constant(f"{last.outputs[0].name}/shuffle", indices, shapes), {"axis": axis})
        last.inputs[0] = node.inputs[0]
        count += 1
    if count:
        drop_dead(graph)
    return count


def _shuffle(node: gs.Node, shapes: Shapes) -> tuple[gs.Node, int, NDArray[np.int64]] | None:
    """The last node of a shuffle that begins with ``node``, the axis it permutes, and how."""
    chain = _chain(node, ("Reshape", "Transpose", "Reshape"))
    if chain is None:
        return None
    dims = [shapes.dims.get(tensor.name) for tensor in (node.inputs[0], *(n.outputs[0] for n in chain))]
    if any(d is None for d in dims) or dims[0] != dims[3]:
        return None
    order = chain[1].attrs.get("perm") or list(range(len(dims[1] or ())))[::-1]
    found = _permutation(dims[0] or (), dims[1] or (), order)
    return None if found is None else (chain[2], *found)


def _chain(node: gs.Node, operators: tuple[str, ...]) -> list[gs.Node] | None:
    """Nodes of these operators one after the other, with no other users in between."""
    chain = [node]
    if node.op != operators[0]:
        return None
    for operator in operators[1:]:
        users = chain[-1].outputs[0].outputs
        if len(users) != 1 or users[0].op != operator or users[0].inputs[0] is not chain[-1].outputs[0]:
            return None
        chain.append(users[0])
    return chain


def _permutation(
    whole: tuple[int, ...], split: tuple[int, ...], order: list[int]
) -> tuple[int, NDArray[np.int64]] | None:
    """The axis whose factors are exchanged, and where each of its positions comes from."""
    before = 0
    while before < len(whole) and whole[before] == split[before]:
        before += 1
    factors = len(split) - len(whole) + 1
    if factors < 2 or before == len(whole) or whole[before + 1 :] != split[before + factors :]:
        return None
    inside = range(before, before + factors)
    if [k for k in order if k not in inside] != [k for k in range(len(split)) if k not in inside]:
        return None
    local = [k - before for k in order[before : before + factors]]
    if sorted(local) != list(range(factors)) or local == sorted(local):
        return None
    table = np.arange(whole[before], dtype=np.int64).reshape([split[k] for k in inside])
    return before, table.transpose(local).ravel()


def _constant(name: str, values: NDArray[np.int64], shapes: Shapes) -> gs.Constant:
    shapes.dims[name], shapes.dynamic[name] = values.shape, (False,)
    shapes.dtypes[name] = onnx.TensorProto.INT64
    return gs.Constant(name, values.astype(np.int64))


def _become(node: gs.Node, operator: str, constant: gs.Constant, attributes: dict[str, Any]) -> None:
    node.op, node.attrs = operator, attributes
    node.inputs[1] = constant
