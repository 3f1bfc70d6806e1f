"""How much of each group to remove: a ratio of every axis, or as much as targets need, the cheapest indices first."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import TYPE_CHECKING

import numpy as np

from surgeon.tally import KINDS, Tally

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.axes import Atom
    from surgeon.cost import CostModel

    Flags = NDArray[np.bool_]

OVERSHOOT = 0.02
COARSE = 32  # a group gives way in at most about this many steps before the last ones are refined
SLACK = 1e-9
TINY = 1e-30
WIDEST_QUANTUM, LEAST_QUANTUM = 16, 4


@dataclass(frozen=True)
class Limits:
    """Bounds on what one group may lose.

    Attributes:
        min_keep: Indices that stay at least.
        max_ratio: The largest fraction removed.
        multiple_of: What is kept is a multiple of this; None chooses by the size of the group.
    """

    min_keep: int = 1
    max_ratio: float = 1.0
    multiple_of: int | None = None

    def least(self, size: int) -> int:
        """The fewest indices a group of ``size`` may be left with."""
        least = max(self.min_keep, 1, int(np.ceil(size * (1 - self.max_ratio) - SLACK)))
        step = self.multiple_of or 1
        return min(size, -(-least // step) * step)

    def step(self, size: int, block: int = 1) -> int:
        """What a group's size is kept a multiple of.

        The default follows onnxruntime's fp32 kernels on a CPU, measured around 64 to 96 channels (AVX-512, one
        thread; tests/benchmarks/kernel_quantum.py repeats it): convolutions work on blocks of 16 channels, and 65 cost
        as much as 80; counts that are no multiple of 4 fall off the blocked kernels altogether and cost 1.4 (1x1, 3x3)
        to 4 times (depthwise) as much; MatMul hardly minds. So the multiple is 16 where that is no coarser than an
        eighth of the group, less in smaller groups, but not under 4 as long as there are 8 channels.

        Args:
            size: Indices of the group.
            block: Channels that go with one index, as head_dim does with a head.
        """
        if self.multiple_of is not None:
            return max(1, min(self.multiple_of, size))
        channels = size * block
        if channels < 2 * LEAST_QUANTUM:
            return 1
        quantum = LEAST_QUANTUM
        while quantum < WIDEST_QUANTUM and channels >= 16 * quantum:
            quantum *= 2
        return quantum // gcd(quantum, block)


@dataclass(frozen=True, eq=False)
class Candidate:
    """One group as the allocation sees it.

    Attributes:
        id: The group's id.
        atom: What shrinks.
        scores: Importance per index ``[size]``, comparable between groups.
        limits: Bounds on what it may lose.
        block: Channels that go with one index.
        stays: Indices that must stay ``[size]``, or None.
        goes: Indices that go whatever their score ``[size]``, or None; these do not count against the limits.
    """

    id: str
    atom: Atom
    scores: NDArray[np.float64]
    limits: Limits = Limits()
    block: int = 1
    stays: Flags | None = None
    goes: Flags | None = None

    @property
    def size(self) -> int:
        """Indices of the whole group."""
        return self.atom.size

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Indices in the order they go; of two with the same score the later one goes first."""
        rank = np.zeros(self.size)
        if self.goes is not None:
            rank[self.goes] = -1
        if self.stays is not None:
            rank[self.stays] = 1
        return self.ascending(self.scores, rank)

    @staticmethod
    def ascending(scores: NDArray[np.float64], *first: NDArray[np.float64]) -> NDArray[np.int64]:
        """Indices from the least score to the largest, by ``first`` before that, the later of two alike first."""
        return np.lexsort((-np.arange(len(scores)), scores, *first)).astype(np.int64)

    @cached_property
    def most(self) -> int:
        """How many may stay at most."""
        return self.size - (0 if self.goes is None else int(self.goes.sum()))

    @cached_property
    def least(self) -> int:
        """How many stay at least."""
        staying = 0 if self.stays is None else int(self.stays.sum())
        return min(self.most, max(staying, self.limits.least(self.size)))

    @cached_property
    def step(self) -> int:
        """What the number kept is a multiple of."""
        return self.limits.step(self.size, self.block)

    def below(self, kept: int, *, least_change: int = 1) -> int:
        """The next smaller number to keep; ``kept`` itself at the end.

        Where a whole step would go below the least and the multiple was not asked for, it is halved until it fits.
        """
        step = self.step
        wanted = max(1, kept - least_change + 1)
        following = (wanted - 1) // step * step
        while step > 1 and following < self.least and self.limits.multiple_of is None:
            step //= 2
            following = (kept - 1) // step * step
        return min(kept, max(self.least, following))

    def at_ratio(self, ratio: float, *, rounded: bool) -> int:
        """How many stay when ``ratio`` of the group is to go; never more goes, whatever the rounding."""
        kept = self.size - int(np.floor(self.size * ratio + SLACK))
        step = self.step if rounded else 1
        return min(self.most, max(self.least, min(self.size, -(-kept // step) * step)))

    def mask(self, kept: int) -> Flags:
        """What stays when ``kept`` indices do."""
        flags = np.ones(self.size, bool)
        flags[self.order[: self.size - kept]] = False
        return flags


def prices(scores: NDArray[np.float64], weights: int) -> NDArray[np.float64]:
    """What removing each index costs, from scores that only rank the indices of one group.

    Scores are taken as magnitudes: with their squares as the group's energy, an index costs the logarithm of what is
    left before over what is left after it. That is its share of the energy at first, and the more the less is left of
    its group, so that no group is used up before the others have given their part; and it counts once for each weight
    the group runs through, since each of them loses that share.

    Args:
        scores: Importance per index ``[size]``, in any unit.
        weights: In how many weights the group occurs.

    Returns:
        Prices ``[size]`` that order the indices as the scores do.
    """
    order = Candidate.ascending(scores)
    energy = np.square(scores[order])
    if not energy.sum() > 0:
        energy = np.ones(len(scores))
    left = np.cumsum(energy[::-1])[::-1]
    after = np.append(left[1:], 0.0)
    result = np.empty(len(scores))
    result[order] = weights * -np.log(np.maximum(after / np.maximum(left, TINY), TINY))
    return result


def by_ratio(candidates: Sequence[Candidate], ratio: float) -> dict[str, Flags]:
    """Remove ``ratio`` of every group, or less where that is no whole number or no multiple asked for."""
    return {
        each.id: each.mask(each.at_ratio(ratio, rounded=each.limits.multiple_of is not None))
        for each in candidates
    }


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
    return _Exact(candidates, cost, targets, _descend).run()


def evenly_to_target(
    candidates: Sequence[Candidate], cost: CostModel, targets: Mapping[str, float]
) -> dict[str, Flags] | None:
    """Remove the same fraction of every group, the least that meets the targets; arguments as for `to_target`.

    Groups whose last step turns out to be unnecessary, the first ones first, keep it.
    """
    return _Exact(candidates, cost, targets, _level).run()


class _Exact:
    """Runs a strategy; where selections make the polynomial an estimate, again with a lower goal until it holds."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        cost: CostModel,
        targets: Mapping[str, float],
        strategy: _Strategy,
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


def _descend(
    candidates: Sequence[Candidate], cost: CostModel, limits: NDArray[np.float64]
) -> list[int] | None:
    descent = _Descent(candidates, cost, limits)
    # large groups first go in larger steps, which is faster; what then would overshoot is tried again in small ones
    for coarse in (COARSE, None):
        if descent.go(coarse):
            return descent.kept
    return descent.kept if descent.overshoot() else None


def _level(candidates: Sequence[Candidate], cost: CostModel, limits: NDArray[np.float64]) -> list[int] | None:
    def kept_at(ratio: float) -> list[int]:
        return [each.at_ratio(ratio, rounded=True) for each in candidates]

    def met(kept: Sequence[int]) -> bool:
        after = cost.evaluate({each.atom: float(n) for each, n in zip(candidates, kept, strict=True)})
        return all(getattr(after, kind) <= limit for kind, limit in zip(KINDS, limits, strict=True))

    low, high = 0.0, 1.0
    if met(kept_at(low)):
        return kept_at(low)
    if not met(kept_at(high)):
        return None
    while kept_at(low) != kept_at(high) and high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (low, middle) if met(kept_at(middle)) else (middle, high)
    kept, more = kept_at(high), kept_at(low)
    tally = Tally(cost, [each.atom for each in candidates])
    for each, count in zip(candidates, kept, strict=True):
        tally.shrink(each.atom, float(count))
    for k, each in enumerate(candidates):
        if more[k] > kept[k] and np.all(tally.totals - tally.gain(each.atom, float(more[k])) <= limits):
            tally.shrink(each.atom, float(more[k]))
            kept[k] = more[k]
    return kept


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

    def go(self, coarse: int | None) -> bool:
        """Remove until the targets hold; False when everything left would overshoot or nothing is left."""
        heap = [entry for k in range(len(self.candidates)) if (entry := self._entry(k, coarse))]
        heapq.heapify(heap)
        while not self._met():
            if not heap:
                return False
            price, k, _ = heapq.heappop(heap)
            fresh = self._entry(k, coarse)
            if fresh is None:
                continue
            if fresh[0] > price * (1 + SLACK) and heap and fresh > heap[0]:
                heapq.heappush(heap, fresh)
                continue
            following = fresh[2]
            if self._overshoots(k, following):
                continue
            self._remove(k, following)
            again = self._entry(k, coarse)
            if again is not None:
                heapq.heappush(heap, again)
        return True

    def overshoot(self) -> bool:
        """Take the step with the least score of those that meet the targets at once; False when none does."""
        best: tuple[float, int, int] | None = None
        for k, each in enumerate(self.candidates):
            following = each.below(self.kept[k])
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

    def _entry(self, k: int, coarse: int | None) -> tuple[float, int, int] | None:
        """Score per unit of cost of the next removal; None when the group is at its least or saves nothing."""
        each, kept = self.candidates[k], self.kept[k]
        following = each.below(kept, least_change=each.size // coarse if coarse else 1)
        if following >= kept:
            return None
        saved = float(self._saved(k, following).sum())
        if saved <= 0:
            return None
        return (self._score(k, following) / saved, k, following)

    def _overshoots(self, k: int, following: int) -> bool:
        after = self.tally.totals - self.tally.gain(self.candidates[k].atom, float(following))
        bounded = np.isfinite(self.limits)
        return bool(np.all(after[bounded] < self.limits[bounded] * (1 - OVERSHOOT)))

    def _remove(self, k: int, following: int) -> None:
        self.tally.shrink(self.candidates[k].atom, float(following))
        self.kept[k] = following


if TYPE_CHECKING:
    from collections.abc import Callable

    _Strategy = Callable[[Sequence[Candidate], CostModel, NDArray[np.float64]], list[int] | None]
