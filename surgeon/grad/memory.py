"""How much memory a graph takes per sample, from its shapes: what bounds the number of samples that run at once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from surgeon.graph.order import bodies, every_node, needs
from surgeon.graph.shapes import infer_once
from surgeon.graph.weights import packed_bytes

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

ROOM = 1.5  # how much more onnxruntime's arena takes than what it holds, as measured
FEW, MANY = 6, 12  # samples at which shapes are looked at; sizes grow linearly with them


def activation_bytes(graph: gs.Graph, dimension: str, size: int) -> int:
    """The most that what nodes make takes at once, in bytes, at a size of the only open dimension.

    Nodes run in the order of the graph and tensors go when the last reader has run, as in onnxruntime, which also lets
    some take each other's place. What kernels need for themselves comes on top, and so do inputs and constants.
    """
    shapes = infer_once(graph, {dimension: size})

    def taken(name: str) -> int:
        dims, kind = shapes.dims.get(name), shapes.dtypes.get(name)
        return 0 if dims is None or kind is None else packed_bytes(kind, dims)

    last = {tensor.name: node for node in graph.nodes for tensor in (*node.outputs, *needs(node))}
    leaving: dict[int, set[str]] = {}
    for name in last.keys() - {tensor.name for tensor in graph.outputs}:
        leaving.setdefault(id(last[name]), set()).add(name)
    present, here, most = set(), 0, 0
    for node in graph.nodes:
        made = {tensor.name for tensor in node.outputs if tensor.name}
        present |= made
        here += sum(map(taken, made))
        inside = {t.name for body in bodies(node) for each in every_node(body) for t in each.outputs}
        most = max(most, here + sum(map(taken, inside)))
        gone = leaving.get(id(node), set()) & present
        present -= gone
        here -= sum(map(taken, gone))
    return most


def samples_within(graph: gs.Graph, dimension: str, limit_bytes: int) -> int:
    """How many samples fit into so much memory, at least one.

    Args:
        graph: What runs, such as a gradient.
        dimension: The name of the open dimension that is the number of samples.
        limit_bytes: For what its nodes make.
    """
    few, many = (activation_bytes(graph, dimension, size) for size in (FEW, MANY))
    each = (many - few) / (MANY - FEW)
    if each <= 0:
        return 10**9
    return max(math.floor((limit_bytes / ROOM - (few - FEW * each)) / each), 1)
