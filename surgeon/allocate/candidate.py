"""What one group may lose, in which order, and in which steps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from surgeon.axes import Atom

    Flags = NDArray[np.bool_]

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

    @cached_property
    def fine_step(self) -> int:
        """What it is a multiple of where ``step`` misses a target by too much; the same where it was asked for."""
        return self.step if self.limits.multiple_of is not None else min(self.step, self._least_step)

    @property
    def _least_step(self) -> int:
        return LEAST_QUANTUM // gcd(LEAST_QUANTUM, self.block)

    def below(self, kept: int, step: int, *, least_change: int = 1) -> int:
        """The next smaller number to keep, a multiple of ``step``; ``kept`` itself at the end.

        Where a whole step would go below the least and the multiple was not asked for, it is halved until it fits.
        """
        following = max(0, kept - least_change) // step * step
        while step > 1 and following < self.least and self.limits.multiple_of is None:
            step //= 2
            following = (kept - 1) // step * step
        return min(kept, max(self.least, following))

    def at_ratio(self, ratio: float, step: int) -> int:
        """How many stay, a multiple of ``step``, when ``ratio`` of the group is to go; never more goes."""
        kept = self.size - int(np.floor(self.size * ratio + SLACK))
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
