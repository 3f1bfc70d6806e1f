"""How much of each group to remove: a ratio of every axis, or as much as targets need, the cheapest indices first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from surgeon.allocate.candidate import SLACK, Candidate, Limits, prices
from surgeon.allocate.descent import descend
from surgeon.allocate.level import level
from surgeon.allocate.totals import OVERSHOOT
from surgeon.tally import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.cost import CostModel

    Flags = NDArray[np.bool_]
    Strategy = Callable[[Sequence[Candidate], CostModel, NDArray[np.float64]], list[int] | None]

__all__ = ["OVERSHOOT", "Candidate", "Limits", "by_ratio", "evenly_to_target", "prices", "to_target"]


def by_ratio(candidates: Sequence[Candidate], ratio: float) -> dict[str, Flags]:
    """Remove ``ratio`` of every group, or less where that is no whole number or no multiple asked for."""
    return {each.id: each.mask(each.at_ratio(ratio, each.limits.multiple_of or 1)) for each in candidates}


def to_target(
    candidates: Sequence[Candidate], cost: CostModel, targets: Mapping[str, float]
) -> dict[str, Flags] | None:
    """Remove the indices with the least score per unit of cost until every target holds.

    Greedy: at each step the group whose next indices have the least sum of scores per cost they save. Costs depend on
    each other (a channel is cheaper to keep once its neighbours have shrunk) and are brought up to date as it goes.

    Args:
        candidates: What may be cut.
        cost: The cost of every cut.
        targets: Fractions of the original cost (``macs``, ``params``, ``bytes``) not to be exceeded. What is removed
            beyond is at most 2 % of them where the steps are that fine.

    Returns:
        What is kept of each group, or None when no cut within the limits meets the targets.
    """
    return _Exact(candidates, cost, targets, descend).run()


def evenly_to_target(
    candidates: Sequence[Candidate], cost: CostModel, targets: Mapping[str, float]
) -> dict[str, Flags] | None:
    """Remove the same fraction of every group, the least that meets the targets; arguments as for `to_target`.

    Groups whose last step turns out to be unnecessary, the first ones first, keep it.
    """
    return _Exact(candidates, cost, targets, level).run()


class _Exact:
    """Runs a strategy; where selections make the polynomial an estimate, again with a lower goal until it holds."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        cost: CostModel,
        targets: Mapping[str, float],
        strategy: Strategy,
    ) -> None:
        self.candidates, self.cost, self.strategy = candidates, cost, strategy
        whole = vars(cost.evaluate())
        self.goal = {kind: whole[kind] * fraction for kind, fraction in targets.items()}

    def run(self) -> dict[str, Flags] | None:
        estimate = dict(self.goal)
        for _ in range(8):
            limits = np.array([estimate.get(kind, np.inf) for kind in KINDS]) * (1 + SLACK)
            kept = self.strategy(self.candidates, self.cost, limits)
            if kept is None:
                return None
            masks = {each.id: each.mask(kept[k]) for k, each in enumerate(self.candidates)}
            exact = vars(self.cost.after({each.atom: masks[each.id] for each in self.candidates}))
            if all(exact[kind] <= goal * (1 + SLACK) for kind, goal in self.goal.items()):
                return masks
            for kind, goal in self.goal.items():
                estimate[kind] *= min(1.0, goal / exact[kind]) * 0.999
        return None
