"""Solving what the rules of scaling state: which variables have one factor in common, and which have to keep theirs.

Logarithms of factors are the variables, so that "the factor of a product is the product of the factors" is a sum.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Array = NDArray[Any]
    Ids = NDArray[np.int64]

FIXED = 0  # the variable of everything that keeps its numbers


@dataclass
class Equations:
    """Statements about numbered variables.

    Attributes:
        equal: Pairs of arrays of variables that are equal, element by element.
        sums: Triples of arrays: the first is the sum of the others; with the name of who says so.
        pins: Arrays of variables that are zero, each with the reason.
    """

    equal: list[tuple[Ids, Ids]] = field(default_factory=list)
    sums: list[tuple[Ids, Ids, Ids, str]] = field(default_factory=list)
    pins: list[tuple[Ids, str]] = field(default_factory=list)

    def pin(self, ids: Array, reason: str) -> None:
        """These variables are zero."""
        ids = np.unique(ids)
        ids = ids[ids != FIXED]
        if ids.size:
            self.pins.append((ids, reason))

    def link(self, left: Array, right: Array, reason: str) -> None:
        """Both are equal, element by element; ``reason`` is why, where one of them is the fixed variable."""
        one, other = (np.ravel(each).astype(np.int64) for each in np.broadcast_arrays(left, right))
        fixed = (one == FIXED) | (other == FIXED)
        self.pin(np.concatenate([one[fixed], other[fixed]]), reason)
        self.equal.append((one[~fixed], other[~fixed]))


@dataclass(frozen=True)
class Solution:
    """What follows from equations.

    Attributes:
        labels: For every variable the number of its value, `FIXED` for those that are zero.
        reasons: Why those are zero that are, by variable; the fixed variable itself needs none.
    """

    labels: Ids
    reasons: Mapping[int, str]


def solve(equations: Equations, count: int) -> Solution:
    """Find the components of variables that share their value.

    Args:
        equations: The statements; products that nothing decides get pins added.
        count: Number of variables.
    """
    labels = components(count, equations.equal)
    while True:
        zero = np.zeros(count, bool)
        zero[FIXED] = True
        for ids, _ in equations.pins:
            zero[ids] = True
        frozen = _spread(labels, zero)
        if not _decide(equations, labels, frozen):
            break
        labels = components(count, equations.equal)
    by_label = _reasons(equations, labels)
    reasons = {int(k): by_label[int(labels[k])] for k in np.flatnonzero(frozen) if int(labels[k]) in by_label}
    return Solution(np.where(frozen, FIXED, labels), reasons)


def components(count: int, pairs: list[tuple[Ids, Ids]]) -> Ids:
    """The smallest variable of each variable's component."""
    labels = np.arange(count, dtype=np.int64)
    if not pairs:
        return labels
    left, right = (np.concatenate([pair[k] for pair in pairs]) for k in (0, 1))
    while True:
        low = np.minimum(labels[left], labels[right])
        before = labels.copy()
        for side in (left, right):
            np.minimum.at(labels, before[side], low)
            np.minimum.at(labels, side, low)
        while not np.array_equal(labels, labels[labels]):
            labels = labels[labels]
        if np.array_equal(before, labels):
            return labels


def _spread(labels: Ids, flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether any variable of the same component is flagged."""
    found = np.zeros(len(labels), bool)
    found[labels[flags]] = True
    return found[labels]


def _decide(equations: Equations, labels: Ids, frozen: NDArray[np.bool_]) -> bool:
    """Turn sums into equalities and pins as far as they are decided; one undecided sum is decided by a pin.

    Returns:
        Whether anything was new.
    """
    left, undecided = [], []
    changed = False
    for whole, first, second, name in equations.sums:
        w, a, b = (np.where(frozen[ids], FIXED, labels[ids]) for ids in (whole, first, second))
        square = (a == b) & (a != FIXED)
        to_first, to_second = (b == FIXED) & ~square, (a == FIXED) & ~square
        lone = (w == FIXED) & ~to_first & ~to_second
        same = ((w == a) | (w == b)) & (w != FIXED) & ~to_first & ~to_second & ~square
        for flags, one, other in ((to_first, whole, first), (to_second & ~to_first, whole, second)):
            if flags.any():
                equations.link(one[flags], other[flags], f"{name}: multiplies it by what keeps its range")
        square_reason = f"{name}: multiplies it by what is scaled as well"
        for flags, ids, reason in (
            (square, np.stack([whole, first, second]), square_reason),
            (lone, np.stack([first, second]), f"{name}: what it is multiplied into keeps its numbers"),
            (same & (w == a), second[None], square_reason),
            (same & (w == b), first[None], square_reason),
        ):
            if flags.any():
                equations.pin(ids[:, flags].ravel(), reason)
        done = to_first | to_second | square | lone | same
        changed |= bool(done.any())
        if not done.all():
            rest = (whole[~done], first[~done], second[~done], name)
            left.append(rest)
            undecided.append(rest)
    if not changed and undecided:
        _, _, second, name = undecided[0]
        equations.pin(second, f"{name}: multiplies what is scaled by it")
        changed = True
    equations.sums[:] = left
    return changed


def _reasons(equations: Equations, labels: Ids) -> dict[int, str]:
    """The first reason given to any variable of a component, by label."""
    found: dict[int, str] = {}
    for ids, reason in equations.pins:
        for label in np.unique(labels[ids]):
            found.setdefault(int(label), reason)
    return found
