"""Giving factors to a graph: constants are rewritten, and what the graph computes is compared with what it did."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.errors import PassError, SurgeonError
from surgeon.graph.answers import answers
from surgeon.graph.canonical import drop_dead
from surgeon.graph.copy import copy_of
from surgeon.graph.restore import restore
from surgeon.graph.weights import derived
from surgeon.probes import probe_feeds
from surgeon.stats.weight import weight_values
from surgeon.verify import measured_noise, relative_error

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from surgeon.engine import Model
    from surgeon.scaling.fields import Scaling

    Array = NDArray[Any]
    Feeds = dict[str, Array]

TOLERANCE = 1e-5
LARGEST_NOISE = 1e-3  # a model that rounds to more than this says nothing about its factors


def scaled(model: Model, scaling: Scaling, factors: NDArray[np.float64]) -> gs.Graph:
    """The graph with every tensor multiplied by its factors, and constants that make up for it.

    Args:
        model: The analysed graph; it is not changed.
        scaling: What may be scaled in it.
        factors: ``[scaling.size]``, all positive, the first one 1.
    """
    graph = copy_of(model.analysis.graph)
    nodes = {node.outputs[0].name: node for node in graph.nodes if node.outputs}
    done: dict[str, gs.Constant] = {}
    for demand in scaling.demands:
        ratio = factors[demand.times] / factors[demand.over]
        if np.all(ratio == 1):
            continue
        node = nodes[demand.op.node.outputs[0].name]
        tensor = node.inputs[demand.index]
        if tensor.name not in done:
            done[tensor.name] = _multiplied(tensor, ratio)
        node.inputs[demand.index] = done[tensor.name]
    drop_dead(graph)
    restore(graph, model.original, lambda _: False)
    return graph


def _multiplied(tensor: gs.Tensor, ratio: Array) -> gs.Constant:
    if isinstance(tensor, gs.Constant):
        return gs.Constant(tensor.name, derived(tensor, partial(_times, ratio=ratio)))
    # a weight behind other nodes gets a name of its own, for they still make a tensor of the old one
    return gs.Constant(f"{tensor.name}/surgeon/weight", _times(weight_values(tensor), ratio))


def _times(values: Array, ratio: Array) -> Array:
    return np.ascontiguousarray((values * ratio).astype(values.dtype))


def check_unchanged(
    model: Model, changed: gs.Graph, feeds: Sequence[Feeds], name: str, *, threads: int, folder: Path | None
) -> float:
    """Compare the outputs of a graph with those it had, on made-up and real inputs.

    Args:
        model: The graph before.
        changed: And after.
        feeds: Real inputs.
        name: The pass, for messages.
        threads: Threads for onnxruntime.
        folder: Where temporary files may go.

    Returns:
        The largest difference relative to the largest value of the output.

    Raises:
        PassError: It is above 1e-5 and above twice of what rounding otherwise makes of the graph itself, or the changed
            graph does not run where the other did.
    """
    probes = [*probe_feeds(model.analysis), *feeds]
    before = answers(model.original, probes, threads=threads, folder=folder)
    after = answers(changed, probes, threads=threads, folder=folder)
    worst = 0.0
    for probe, expected, found in zip(probes, before, after, strict=True):
        if isinstance(expected, SurgeonError):
            continue  # made-up inputs that the model does not take
        if isinstance(found, SurgeonError):
            raise PassError(
                f"the changed model does not run: {found.message}", where=f"pass {name}"
            ) from found
        difference = relative_error(expected, found)
        if difference > TOLERANCE:
            noise = measured_noise(
                model.original, probe, expected, partial(answers, threads=threads, folder=folder)
            )
            if difference > min(2 * noise, LARGEST_NOISE):
                raise PassError(
                    f"changed the outputs by {difference:.1e}, rounding alone changes them by {noise:.1e}",
                    where=f"pass {name}",
                    hint="leave the pass out, or exclude operators with --exclude",
                )
        worst = max(worst, difference)
    return worst
