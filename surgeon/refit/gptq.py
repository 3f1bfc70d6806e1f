"""Rounding the weights of a quantized graph anew, with second-order error feedback; see `surgeon.refit.rounding`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.refit.biases import drop_zero_biases, give_biases
from surgeon.refit.keeping import Kept, of_originals
from surgeon.refit.rounding import Rounded
from surgeon.refit.settle import Settled, settle
from surgeon.stats.grid import grid_of
from surgeon.stats.weight import is_rounded, weight_values

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from surgeon.reference import Reference
    from surgeon.refit.constrained import Constraint
    from surgeon.stats.linear import Linear

    Feeds = Sequence[Mapping[str, NDArray[Any]]]


def round_again(
    graph: gs.Graph,
    reference: Reference,
    feeds: Feeds,
    *,
    ordered: bool = True,
    sweeps: int = 2,
    **options: Any,
) -> Settled:
    """Choose the integers of a quantized graph's weights by what the float graph computes, in place.

    Args:
        graph: With weights behind DequantizeLinear; scales and zero points stay as they are.
        reference: The float graph it was made from.
        feeds: Calibration batches, without labels.
        ordered: Whether the inputs with the largest mean square are rounded first.
        sweeps: How often all weights are visited again.
        options: Those of `surgeon.refit.settle.settle`.
    """
    given = give_biases(graph)
    promised = of_originals(graph, reference)

    def constrain(view: Linear) -> Constraint | str:
        node, tensor = view.op.node, view.op.node.inputs[view.weight]
        if not is_rounded(tensor):
            return "its weight is not rounded"
        grid = Rounded.of(view, node, grid_of(tensor), ordered=ordered, sweeps=sweeps)
        promise = promised.get((id(node), view.weight))
        if promise is None:
            return grid
        now = view.matrices(node, weight_values(tensor).astype(np.float64))
        return Kept.of(promise, now).constraint(grid, ordered=ordered, sweeps=sweeps)

    result = settle(graph, reference, feeds, constrain, **options)
    drop_zero_biases(graph, given)
    return result


def round_apart(
    graph: gs.Graph,
    into: gs.Graph,
    reference: Reference,
    feeds: Feeds,
    *,
    ordered: bool = True,
    sweeps: int = 2,
    **options: Any,
) -> Settled:
    """Choose the integers of weights, each as if all others were as they are in another graph.

    Args:
        graph: What each weight finds around it; it stays as it is.
        into: The same with other grids, which gets the integers and biases, in place.
        reference: The float graph both were made from.
        feeds: Calibration batches, without labels.
        ordered: See `round_again`.
        sweeps: See `round_again`.
        options: Those of `surgeon.refit.settle.settle`.
    """
    nodes = {node.outputs[0].name: node for node in into.nodes if node.outputs}

    def constrain(view: Linear) -> Constraint | str:
        node = nodes[view.op.node.outputs[0].name]
        tensor = node.inputs[view.weight]
        if not is_rounded(tensor):
            return "its weight is not rounded"
        return Rounded.of(view, node, grid_of(tensor), ordered=ordered, sweeps=sweeps)

    return settle(graph, reference, feeds, constrain, into=into, allowed=False, **options)
