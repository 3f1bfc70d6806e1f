"""How much of each group to remove: a fixed ratio of every axis, or the cheapest indices until a target is met."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.axes import Atom
    from surgeon.cost import CostModel
    from surgeon.groups import Group

OVERSHOOT = 0.02
KERNEL_QUANTUM = 16  # channels per step of onnxruntime's fp32 kernels on a CPU


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
        least = max(self.min_keep, 1, int(np.ceil(size * (1 - self.max_ratio) - 1e-9)))
        step = self.step(size)
        return min(size, -(-least // step) * step)

    def step(self, size: int) -> int:
        """How many indices are removed at a time, once what is kept is a multiple of it."""
        if self.multiple_of is not None:
            return max(1, min(self.multiple_of, size))
        step = 1
        while step < KERNEL_QUANTUM and size >= 16 * step:
            step *= 2
        return step


def by_ratio(size: int, ratio: float, limits: Limits) -> int:
    """How many of ``size`` indices are kept when ``ratio`` of them are to be removed.

    Never more than the ratio is removed, and what is kept is rounded up to the multiple asked for.
    """
    kept = size - int(np.floor(size * ratio + 1e-9))
    step = limits.step(size) if limits.multiple_of is not None else 1
    return max(limits.least(size), min(size, -(-kept // step) * step))


def to_target(
    groups: Sequence[Group],
    scores: Mapping[str, NDArray[np.float64]],
    cost: CostModel,
    targets: Mapping[str, float],
    limits: Limits,
) -> dict[str, NDArray[np.bool_]] | None:
    """Remove the indices with the least score per unit of cost until every target holds.

    Args:
        groups: What may be cut.
        scores: Importance per index of each group, comparable between groups.
        cost: The cost of every cut.
        targets: Fractions of the original cost (``macs``, ``params``, ``bytes``) not to be exceeded.
        limits: Bounds for each group.

    Returns:
        What is kept of each group, or None when no cut within the limits meets the targets.
    """
    return _Descent(groups, scores, cost, targets, limits).run()


class _Descent:
    def __init__(
        self,
        groups: Sequence[Group],
        scores: Mapping[str, NDArray[np.float64]],
        cost: CostModel,
        targets: Mapping[str, float],
        limits: Limits,
    ) -> None:
        self.groups, self.cost, self.limits = groups, cost, limits
        whole = vars(cost.evaluate())
        self.now = dict(whole)
        self.goal = {kind: whole[kind] * fraction for kind, fraction in targets.items()}
        self.order = [np.argsort(scores[g.id], kind="stable") for g in groups]
        self.scores = [scores[g.id] for g in groups]
        self.kept = [g.size for g in groups]
        self.sizes: dict[Atom, float] = {g.atom: float(g.size) for g in groups}

    def run(self) -> dict[str, NDArray[np.bool_]] | None:
        heap = [entry for k in range(len(self.groups)) if (entry := self._entry(k))]
        heapq.heapify(heap)
        postponed: list[tuple[float, int, int]] = []
        while not self._met():
            if not heap:
                if not self._take_least_overshoot(postponed):
                    return None
                break
            price, k, kept = heapq.heappop(heap)
            if kept != self.kept[k]:
                continue
            fresh = self._entry(k)
            if fresh is None:
                continue
            if fresh[0] > price * (1 + 1e-9) and heap and fresh[0] > heap[0][0]:
                heapq.heappush(heap, fresh)
            elif self._overshoots(k):
                postponed.append(fresh)
            else:
                self._remove(k)
                following = self._entry(k)
                if following:
                    heapq.heappush(heap, following)
        return {g.id: self._mask(k) for k, g in enumerate(self.groups)}

    def _met(self) -> bool:
        return all(self.now[kind] <= goal * (1 + 1e-9) for kind, goal in self.goal.items())

    def _next(self, k: int) -> int:
        step, kept = self.limits.step(self.groups[k].size), self.kept[k]
        return max(self.limits.least(self.groups[k].size), (kept - 1) // step * step)

    def _entry(self, k: int) -> tuple[float, int, int] | None:
        """Score per unit of cost of the next removal; None when the group is at its least."""
        following = self._next(k)
        if following >= self.kept[k]:
            return None
        gain = self._gain(k, following)
        saved = sum(gain[kind] / goal for kind, goal in self.goal.items() if self.now[kind] > goal)
        if saved <= 0:
            return None
        size = self.groups[k].size
        chunk = self.order[k][size - self.kept[k] : size - following]
        return (float(self.scores[k][chunk].sum() / saved), k, self.kept[k])

    def _gain(self, k: int, following: int) -> dict[str, float]:
        atom = self.groups[k].atom
        gain = dict.fromkeys(self.now, 0.0)
        terms = self.cost.terms_of(atom)
        before = [term.value(self.sizes) for term in terms]
        self.sizes[atom] = float(following)
        for term, value in zip(terms, before, strict=True):
            gain[term.kind] += value - term.value(self.sizes)
        self.sizes[atom] = float(self.kept[k])
        return gain

    def _overshoots(self, k: int) -> bool:
        gain = self._gain(k, self._next(k))
        after = {kind: self.now[kind] - gain[kind] for kind in self.goal}
        return all(value < self.goal[kind] * (1 - OVERSHOOT) for kind, value in after.items())

    def _remove(self, k: int) -> None:
        following = self._next(k)
        for kind, amount in self._gain(k, following).items():
            self.now[kind] -= amount
        self.kept[k] = following
        self.sizes[self.groups[k].atom] = float(following)

    def _take_least_overshoot(self, postponed: list[tuple[float, int, int]]) -> bool:
        left = [k for _, k, kept in postponed if kept == self.kept[k]]
        if not left:
            return False
        kind = next(iter(self.goal))
        self._remove(min(left, key=lambda k: self._gain(k, self._next(k))[kind]))
        return self._met()

    def _mask(self, k: int) -> NDArray[np.bool_]:
        group = self.groups[k]
        keep = np.ones(group.size, bool)
        keep[self.order[k][: group.size - self.kept[k]]] = False
        return keep
