"""Cutting and training in turns: a little is cut, what is left learns, and so on until the target is met."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgeon.engine import analyse
from surgeon.errors import GateError
from surgeon.graph.copy import copy_of
from surgeon_passes.prune import Prune

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from surgeon.passes import Context, Graph

WEAKEST_FIRST = ("none", "structural", "exact")


def cut_and_learn(
    graph: Graph,
    context: Context,
    macs: float,
    shares: Sequence[float],
    learn: Callable[[Graph, int], Graph],
) -> Graph:
    """Cut in rounds, each followed by training.

    Args:
        graph: What is cut.
        context: The run; what the cuts are about is put together in its record.
        macs: The fraction of the multiply-accumulates that is left in the end.
        shares: Which part of the cut has been made in each round, ascending to 1.
        learn: Trains a graph, given the number of the round.

    Raises:
        GateError: The target cannot be met, or a proof fails.
    """
    whole = _macs(graph)
    rounds, certificates = [], []
    groups: object = {}
    for number, share in enumerate(shares):
        wanted = (1 - (1 - macs) * share) * whole / _macs(graph)
        if wanted < 1:
            graph = _cut(graph, context, wanted, last=number + 1 == len(shares))
            certificates.append(context.record.pop("certificate", None))
            groups = context.record.pop("groups", groups)
        graph = learn(graph, number)
        rounds.append({"macs": _macs(graph) / whole, "training": context.record.pop("training", None)})
    found = [each for each in certificates if isinstance(each, dict)]
    if found:
        context.record["certificate"] = {
            "status": min((each["status"] for each in found), key=WEAKEST_FIRST.index),
            "max_rel_err": max((each["max_rel_err"] or 0.0 for each in found), default=None),
            "probes": sum(each["probes"] for each in found),
        }
        context.record["groups"] = groups
    context.record["rounds"] = rounds
    context.record["changed"] = True
    return graph


def _cut(graph: Graph, context: Context, macs: float, *, last: bool) -> Graph:
    try:
        return Prune(macs=macs).run(copy_of(graph), context)
    except GateError:
        if last:
            raise
        return graph  # kernels like whole blocks of channels, and a small step may be less than one


def _macs(graph: Graph) -> float:
    return max(analyse(copy_of(graph)).cost.evaluate().macs, 1.0)
