"""Two nodes for one: the weights of an operator have the rank of a split, and the graph says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.refit.lowrank import factors
from surgeon.stats.product import Product
from surgeon.stats.weight import weight_values

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from surgeon.stats.linear import Linear
    from surgeon_passes.factorizing.splits import Split

    Array = NDArray[Any]
    Fresh = Callable[[str], str]

OPTIONAL_BIAS = 11  # the opset from which on a Gemm needs no third input


def emit(graph: gs.Graph, view: Linear, split: Split, rank: int, fresh: Fresh, names: set[str]) -> gs.Node:
    """Put a node before an operator and let the operator read it; returns the new node.

    The operator keeps its name, its output and its bias.

    Args:
        graph: The operator's graph, which is changed.
        view: The operator's product, whose weights have the rank.
        split: How it is split.
        rank: Channels in between.
        fresh: Makes a name that no tensor has yet.
        names: Of nodes, to which that of the new one is added.
    """
    node = view.op.node
    data = 1 - view.weight
    values = weight_values(node.inputs[view.weight])
    matrices = view.matrices(node, values).astype(np.float64)
    pairs = [factors(each, split.order, rank) for each in matrices]
    shape = _product_weights if isinstance(view, Product) else _kernels
    weights = [each.astype(values.dtype) for each in shape(view, split, pairs, values.shape)]
    stem = node.name or node.outputs[0].name
    name = str(node.inputs[view.weight].name)
    between = gs.Variable(fresh(f"{node.outputs[0].name}/surgeon/factor"), dtype=values.dtype)
    constants = [
        gs.Constant(fresh(f"{name}/surgeon/{each}"), np.ascontiguousarray(array))
        for each, array in zip(("first", "second"), weights, strict=True)
    ]
    inputs: list[Any] = [None, None]
    inputs[data], inputs[view.weight] = node.inputs[data], constants[0]
    first, second = _attributes(view, split, weights)
    if node.op == "Gemm" and view.op.opset < OPTIONAL_BIAS:
        inputs.append(gs.Constant(fresh(f"{name}/surgeon/zero"), np.zeros((1, 1), values.dtype)))
    title, number = f"{stem}/surgeon/first", 2
    while title in names:
        title, number = f"{stem}/surgeon/first__{number}", number + 1
    names.add(title)
    added = gs.Node(node.op, name=title, attrs=first, inputs=inputs, outputs=[between], domain=node.domain)
    graph.nodes.insert(next(k for k, each in enumerate(graph.nodes) if each is node), added)
    node.inputs[data] = between
    node.inputs[view.weight] = constants[1]
    node.attrs = second
    return added


def _kernels(
    view: Linear, split: Split, pairs: list[tuple[Array, Array]], shape: tuple[int, ...]
) -> list[Array]:
    """``[rank, inputs, taps of the first]`` and ``[outputs, rank, taps of the second]``."""
    del view
    (first, second), kernel = pairs[0], shape[2:]
    own = [size if mine else 1 for size, mine in zip(kernel, split.first, strict=True)]
    other = [1 if mine else size for size, mine in zip(kernel, split.first, strict=True)]
    rank = first.shape[1]
    return [first.T.reshape(rank, shape[1], *own), second.transpose(2, 0, 1).reshape(shape[0], rank, *other)]


def _product_weights(
    view: Linear, split: Split, pairs: list[tuple[Array, Array]], shape: tuple[int, ...]
) -> list[Array]:
    """Both with the batch axes of the weight, and turned as it is."""
    del split
    turned = isinstance(view, Product) and view.turned
    result = []
    for each in (np.stack([first for first, _ in pairs]), np.stack([second[:, 0] for _, second in pairs])):
        sizes = each.shape[:0:-1] if turned else each.shape[1:]
        result.append(view.weights(each, (*shape[:-2], *sizes)))
    return result


def _attributes(view: Linear, split: Split, weights: list[Array]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the two nodes have of the attributes of the one."""
    attributes = dict(view.op.node.attrs)
    if isinstance(view, Product):
        turned = ("transB", "transA")[view.weight]
        first = {key: value for key, value in attributes.items() if key not in ("alpha", "beta")}
        return first, {key: value for key, value in attributes.items() if key != turned}
    first, second = dict(attributes), dict(attributes)
    for each, weight, mine in ((first, weights[0], True), (second, weights[1], False)):
        each["kernel_shape"] = [int(size) for size in weight.shape[2:]]
        has = [which == mine for which in split.first]
        for name, nothing in (("strides", 1), ("dilations", 1), ("pads", 0)):
            if name in attributes:
                several = has * (len(attributes[name]) // len(has))
                each[name] = [
                    int(v) if own else nothing for v, own in zip(attributes[name], several, strict=True)
                ]
    return first, second
