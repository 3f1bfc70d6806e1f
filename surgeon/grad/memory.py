"""How much memory a graph takes per sample, from its shapes: what bounds the number of samples that run at once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from surgeon.graph.order import every_node
from surgeon.graph.shapes import infer_once
from surgeon.graph.weights import packed_bytes

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

FEW, MANY = 6, 12  # samples at which shapes are looked at; sizes grow linearly with them


def activation_bytes(graph: gs.Graph, dimension: str, size: int) -> int:
    """What the nodes of a graph make altogether, in bytes, at a size of its only open dimension.

    No run needs more for its tensors, for most are given back before the last are made; what kernels need for
    themselves comes on top.
    """
    shapes = infer_once(graph, {dimension: size})
    made = {tensor.name for node in every_node(graph) for tensor in node.outputs if tensor.name}
    return sum(
        packed_bytes(shapes.dtypes[name], dims)
        for name in made
        if (dims := shapes.dims.get(name)) is not None and name in shapes.dtypes
    )


def samples_within(graph: gs.Graph, dimension: str, limit_bytes: int) -> int:
    """How many samples fit into so much memory, at least one.

    Args:
        graph: What runs, such as a gradient.
        dimension: The name of the open dimension that is the number of samples.
        limit_bytes: For everything that its nodes make.
    """
    few, many = (activation_bytes(graph, dimension, size) for size in (FEW, MANY))
    each = (many - few) / (MANY - FEW)
    if each <= 0:
        return 10**9
    return max(math.floor((limit_bytes - (few - FEW * each)) / each), 1)
