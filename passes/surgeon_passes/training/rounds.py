"""Cutting and training in turns: a little is cut, what is left learns, and so on until the target is met."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from surgeon.engine import analyse
from surgeon.errors import GateError
from surgeon.graph.copy import copy_of
from surgeon.pipeline import weaker
from surgeon_passes.prune import Prune

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from surgeon.passes import Context, Graph


def cut_and_learn(
    graph: Graph,
    context: Context,
    macs: float,
    shares: Sequence[float],
    exclude: tuple[str, ...],
    learn: Callable[[Graph, int], Graph],
) -> Graph:
    """Cut in rounds, each followed by training.

    Args:
        graph: What is cut.
        context: The run; what the cuts are about is put together in its record.
        macs: The fraction of the multiply-accumulates that is left in the end.
        shares: Which part of the cut has been made in each round, ascending to 1.
        exclude: Patterns of what is left alone.
        learn: Trains a graph, given the number of the round.

    Raises:
        GateError: The target cannot be met, or a proof fails.
    """
    whole = _macs(graph)
    rounds: list[dict[str, Any]] = []
    certificate: dict[str, Any] | None = None
    groups: object = {}
    changed = False
    for number, share in enumerate(shares):
        wanted = (1 - (1 - macs) * share) * whole / _macs(graph)
        if wanted < 1:
            try:
                graph = Prune(macs=wanted, exclude=exclude).run(copy_of(graph), context)
            except GateError as error:
                if share >= 1:
                    raise GateError(
                        f"the last of {len(shares)} rounds cannot cut to {wanted:.3f} of what is left: {error.message}",
                        where="finetune.macs",
                        hint="cut less, or with the options of prune before finetune",
                    ) from error
                # kernels like whole blocks of channels, and a small step may be less than one
                context.warn(f"round {number + 1} cuts nothing: {error.message}")
            each: Any = context.record.pop("certificate", None)
            certificate = weaker(certificate, each) if each else certificate
            groups = context.record.pop("groups", groups)
        graph = learn(graph, number)
        changed = changed or bool(context.record["changed"])
        rounds.append({"macs": _macs(graph) / whole, "training": context.record.pop("training", None)})
    if certificate is not None:
        context.record["certificate"] = certificate
        context.record["groups"] = groups
    context.record["rounds"] = rounds
    context.record["changed"] = changed or certificate is not None
    return graph


def _macs(graph: Graph) -> float:
    return max(analyse(copy_of(graph)).cost.evaluate().macs, 1.0)
