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
            return descent.cheapest()
    return descent.cheapest() if descent.overshoot() else descent.ended()


class _Descent:
    """The greedy removal; ``kept`` says how many indices of each candidate are left."""

    def __init__(self, candidates: Sequence[Candidate], cost: CostModel, limits: NDArray[np.float64]) -> None:
        self.candidates, self.limits = candidates, limits
        self.tally = Tally(cost, [each.atom for each in candidates])
        self.kept = [each.most for each in candidates]
        for each in candidates:
            if each.most < each.size:
                self.tally.shrink(each.atom, float(each.most))
        self.ends: list[tuple[float, list[int]]] = []
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
            after = self._after(k, following)
            if overshoots(after, self.limits):
                self._end_with(k, following)
                continue
            self._remove(k, following)
            again = self._entry(k, coarse, fine=fine)
            if again is not None:
                heapq.heappush(heap, again)
        return True

    def cheapest(self) -> list[int]:
        """What is kept, or what was kept by the end that was passed by on the way, if that costs less."""
        best = self.ended()
        return best if best is not None and self._price(best) < self._price(self.kept) else self.kept

    def ended(self) -> list[int] | None:
        """The cheapest of the ends that were passed by; None if there was none."""
        return min(self.ends, default=(0.0, None), key=lambda end: end[0])[1]

    def _end_with(self, k: int, following: int) -> None:
        """Note the end that smaller steps of a group lead to, for without it all others may have to go."""
        each, here = self.candidates[k], self.kept[k]
        choices = [here]
        while (below := each.below(choices[-1], each.fine_step)) < choices[-1] and below >= following:
            choices.append(below)
        low, high = 1, len(choices)
        while low < high:  # the most that can be kept
            middle = (low + high) // 2
            met = np.all(self._after(k, choices[middle]) <= self.limits)
            low, high = (low, middle) if met else (middle + 1, high)
        if low < len(choices):
            kept = [*self.kept[:k], choices[low], *self.kept[k + 1 :]]
            self.ends.append((self._price(kept), kept))

    def _after(self, k: int, following: int) -> NDArray[np.float64]:
        return self.tally.totals - self.tally.gain(self.candidates[k].atom, float(following))

    def _price(self, kept: Sequence[int]) -> float:
        """The sum of the scores of everything that goes."""
        sizes = [each.size for each in self.candidates]
        return float(sum(sums[size - left] for sums, size, left in zip(self.sums, sizes, kept, strict=True)))

    def overshoot(self) -> bool:
        """Take the step with the least score of those that meet the targets at once; False when none does."""
        best: tuple[float, int, int] | None = None
        for k, each in enumerate(self.candidates):
            following = each.below(self.kept[k], each.fine_step)
            if following < self.kept[k]:
                after = self._after(k, following)
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
