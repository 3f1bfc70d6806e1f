"""Greedy allocation: the cheapest indices of all groups go first."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import numpy as np

from surgeon.allocate.candidate import SLACK
from surgeon.allocate.totals import overshoots
from surgeon.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from surgeon.allocate.candidate import Candidate
    from surgeon.cost import CostModel

COARSE = 32  # a group gives way in at most about this many steps before the last ones are refined


def descend(
    candidates: Sequence[Candidate], cost: CostModel, limits: NDArray[np.float64]
) -> list[int] | None:
    """How many indices of each candidate stay; None when the limits (one per kind of cost) cannot be met."""
    descent = _Descent(candidates, cost, limits)
    # large groups first go in larger steps, which is faster; what then would overshoot is tried again in smaller ones
    for coarse, fine in ((COARSE, False), (None, False), (None, True)):
        if descent.go(coarse, fine=fine):
            return descent.kept
    return descent.kept if descent.overshoot() else None


class _Descent:
    """The greedy removal; ``kept`` says how many indices of each candidate are left."""

    def __init__(self, candidates: Sequence[Candidate], cost: CostModel, limits: NDArray[np.float64]) -> None:
        self.candidates, self.limits = candidates, limits
        self.tally = Tally(cost, [each.atom for each in candidates])
        self.kept = [each.most for each in candidates]
        for each in candidates:
            if each.most < each.size:
                self.tally.shrink(each.atom, float(each.most))
        self.sums = [np.concatenate([[0.0], np.cumsum(each.scores[each.order])]) for each in candidates]

    def go(self, coarse: int | None, *, fine: bool) -> bool:
        """Remove until the targets hold; False when everything left would overshoot or nothing is left."""
        heap = [entry for k in range(len(self.candidates)) if (entry := self._entry(k, coarse, fine=fine))]
        heapq.heapify(heap)
        while not self._met():
            if not heap:
                return False
            price, k, _ = heapq.heappop(heap)
            fresh = self._entry(k, coarse, fine=fine)
            if fresh is None:
                continue
            if fresh[0] > price * (1 + SLACK) and heap and fresh > heap[0]:
                heapq.heappush(heap, fresh)
                continue
            following = fresh[2]
            after = self.tally.totals - self.tally.gain(self.candidates[k].atom, float(following))
            if overshoots(after, self.limits):
                continue
            self._remove(k, following)
            again = self._entry(k, coarse, fine=fine)
            if again is not None:
                heapq.heappush(heap, again)
        return True

    def overshoot(self) -> bool:
        """Take the step with the least score of those that meet the targets at once; False when none does."""
        best: tuple[float, int, int] | None = None
        for k, each in enumerate(self.candidates):
            following = each.below(self.kept[k], each.fine_step)
            if following < self.kept[k]:
                after = self.tally.totals - self.tally.gain(each.atom, float(following))
                if np.all(after <= self.limits):
                    entry = (self._score(k, following), k, following)
                    best = min(best or entry, entry)
        if best is None:
            return False
        self._remove(best[1], best[2])
        return True

    def _score(self, k: int, following: int) -> float:
        """The sum of the scores of what the removal takes."""
        sums, size = self.sums[k], self.candidates[k].size
        return float(sums[size - following] - sums[size - self.kept[k]])

    def _met(self) -> bool:
        return bool(np.all(self.tally.totals <= self.limits))

    def _saved(self, k: int, following: int) -> NDArray[np.float64]:
        """What the removal saves of each kind that is still too large, as a fraction of its limit."""
        gain = self.tally.gain(self.candidates[k].atom, float(following))
        return np.where(self.tally.totals > self.limits, gain / np.maximum(self.limits, SLACK), 0.0)

    def _entry(self, k: int, coarse: int | None, *, fine: bool) -> tuple[float, int, int] | None:
        """Score per unit of cost of the next removal; None when the group is at its least or saves nothing."""
        each, kept = self.candidates[k], self.kept[k]
        step = each.fine_step if fine else each.step
        following = each.below(kept, step, least_change=max(1, each.size // coarse) if coarse else 1)
        if following >= kept:
            return None
        saved = float(self._saved(k, following).sum())
        if saved <= 0:
            return None
        return (self._score(k, following) / saved, k, following)

    def _remove(self, k: int, following: int) -> None:
        self.tally.shrink(self.candidates[k].atom, float(following))
        self.kept[k] = following
