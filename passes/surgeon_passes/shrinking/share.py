"""Shares a target out between deleting indices of groups and splitting operators.

Both have error curves in the same unit, what they do to the model's outputs, so that one price for a multiply-accumulate
decides both (Everett, "Generalized Lagrange multiplier method", 1963): every operator takes the way, and every group the
size, that make the sum of all errors and of what is left to compute, at that price, least. What either saves depends on the
others: a channel is cheaper to keep in front of an operator that was split, and a split saves less where channels are gone.
So groups are visited in turn, each with the operators it runs through, until none changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from surgeon.allocate.candidate import SLACK
from surgeon.allocate.choices import Choice, choose
from surgeon.axes import Axis, atoms_of
from surgeon.axes import count as size_of
from surgeon.tally import KINDS, Tally

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.allocate import Candidate
    from surgeon.axes import Atom
    from surgeon.cost import CostModel

    Floats = NDArray[np.float64]
    Sizes = Mapping[Atom, float]

VISITS = 8
HALVINGS = 30
STEPS = 32  # a group gives way in at most about this many
DEAREST = 1e6  # of the outputs' variance, for all multiply-accumulates: nothing that saves anything is worth keeping
MACS = KINDS.index("macs")


@dataclass(frozen=True)
class Operator:
    """An operator that can be split.

    Attributes:
        inputs: The axis that it sums over.
        outputs: The axis of what it makes.
        macs: Multiply-accumulates as it is.
        errors: ``[ways]``, what each way does to the model's outputs; the first way is to stay whole.
        reading: ``[ways]``, multiply-accumulates of what reads the inputs, when all of them are there.
        writing: ``[ways]``, the same of what makes the outputs.
    """

    inputs: Axis
    outputs: Axis
    macs: float
    errors: Floats
    reading: Floats
    writing: Floats

    def costs(self, sizes: Sizes) -> Floats:
        """``[ways]``, multiply-accumulates of each way when groups have ``sizes``."""
        seen = size_of(self.inputs, sizes) / self.inputs.size
        made = size_of(self.outputs, sizes) / self.outputs.size
        result = self.reading * seen + self.writing * made
        result[0] = self.macs * seen * made
        return result


@dataclass(frozen=True)
class Compared:
    """What a group may lose, at the same saving either way.

    Attributes:
        kept: Indices that would stay.
        saved: Multiply-accumulates less, over those of the model.
        deleted: The error of the outputs if the others go.
        split: If the operators around are split instead; None where they cannot save as much.
        chosen: Whether the others go.
    """

    kept: int
    saved: float
    deleted: float
    split: float | None
    chosen: bool


@dataclass
class Sharing:
    """What a price leads to.

    Attributes:
        price: Of all multiply-accumulates of the model, in the unit of errors.
        kept: Indices that stay, by the id of the candidate.
        macs: What is left in all, over that of the model.
        error: The sum of the errors.
    """

    price: float
    kept: dict[str, int]
    macs: float
    error: float


@dataclass
class Sharer:
    """Groups and operators of a model.

    Attributes:
        candidates: The groups, with scores that are errors of the outputs.
        cost: Of the model.
        operators: What can be split.
    """

    candidates: Sequence[Candidate]
    cost: CostModel
    operators: Sequence[Operator]
    whole: float = field(init=False)

    def __post_init__(self) -> None:
        self.whole = max(self.cost.evaluate().macs, 1.0)
        self._steps = {each.id: _steps(each) for each in self.candidates}
        self._around = {
            each.id: [
                op for op in self.operators if each.atom in {*atoms_of(op.inputs), *atoms_of(op.outputs)}
            ]
            for each in self.candidates
        }

    def to(self, fraction: float) -> Sharing:
        """The cheapest that leaves at most ``fraction`` of the multiply-accumulates, or as little as can be."""
        low, high = 1 / DEAREST, DEAREST
        best = self.at(high)
        for _ in range(HALVINGS):
            price = float(np.sqrt(low * high))
            found = self.at(price)
            if found.macs <= fraction:
                best, high = found, price
            else:
                low = price
        return self._grown(best, fraction)

    def compare(self, sharing: Sharing) -> dict[str, Compared]:
        """Both ways of every group, at the size that it has, or had best if it lost any; the others as they are."""
        sizes = {each.atom: float(sharing.kept[each.id]) for each in self.candidates}
        tally = self._tally(sharing.kept)
        result = {}
        for each in self.candidates:
            kept = sharing.kept[each.id]
            without = sizes | {each.atom: float(each.size)}
            tally.shrink(each.atom, float(each.size))
            smaller = {k: self._value(each, k, tally, without, sharing.price) for k in self._steps[each.id]}
            smaller.pop(each.size)
            if smaller:
                size = kept if kept < each.size else min(smaller, key=smaller.__getitem__)
                saved = float(tally.gain(each.atom, float(size))[MACS])
                deleted, split = self._steps[each.id][size], self._split(each, saved, without)
                result[each.id] = Compared(size, saved / self.whole, deleted, split, kept < each.size)
            tally.shrink(each.atom, float(kept))
        return result

    def at(self, price: float) -> Sharing:
        """What a price leads to."""
        sizes = {each.atom: float(each.size) for each in self.candidates}
        tally = Tally(self.cost, list(sizes))
        kept = {each.id: each.size for each in self.candidates}
        for _ in range(VISITS):
            before = dict(kept)
            for each in self.candidates:
                values = {size: self._value(each, size, tally, sizes, price) for size in self._steps[each.id]}
                size = min(values, key=values.__getitem__)
                if size != kept[each.id]:
                    tally.shrink(each.atom, float(size))
                    kept[each.id], sizes[each.atom] = size, float(size)
            if kept == before:
                break
        return self._sum(kept, tally, price)

    def _sum(self, kept: dict[str, int], tally: Tally, price: float) -> Sharing:
        sizes = {each.atom: float(kept[each.id]) for each in self.candidates}
        taken = [self._best(op, sizes, price) for op in self.operators]
        macs = float(tally.totals[MACS]) + sum(cost - whole for _, cost, whole in taken)
        error = sum(error for error, _, _ in taken)
        error += sum(self._steps[name][size] for name, size in kept.items())
        return Sharing(price, kept, macs / self.whole, error)

    def _grown(self, sharing: Sharing, fraction: float) -> Sharing:
        """With what a price leaves of the target given back to groups, where that saves most error for its cost."""
        while True:
            tally = self._tally(sharing.kept)
            best: tuple[float, Sharing] | None = None
            for each in self.candidates:
                kept = sharing.kept[each.id]
                larger = min((size for size in self._steps[each.id] if size > kept), default=kept)
                if larger == kept:
                    continue
                tally.shrink(each.atom, float(larger))
                found = self._sum({**sharing.kept, each.id: larger}, tally, sharing.price)
                tally.shrink(each.atom, float(kept))
                rate = (sharing.error - found.error) / max(found.macs - sharing.macs, SLACK)
                if found.macs <= fraction and rate > 0 and (best is None or rate > best[0]):
                    best = rate, found
            if best is None:
                return sharing
            sharing = best[1]

    def _tally(self, kept: Mapping[str, int]) -> Tally:
        tally = Tally(self.cost, [each.atom for each in self.candidates])
        for each in self.candidates:
            tally.shrink(each.atom, float(kept[each.id]))
        return tally

    def _value(self, each: Candidate, size: int, tally: Tally, sizes: Sizes, price: float) -> float:
        """The part of the sum that depends on the size of a group, if it had this one."""
        rate = price / self.whole
        value = self._steps[each.id][size] - rate * float(tally.gain(each.atom, float(size))[MACS])
        there = {**sizes, each.atom: float(size)}
        for op in self._around[each.id]:
            error, cost, whole = self._best(op, there, price)
            value += error + rate * (cost - whole)
        return value

    def _best(self, op: Operator, sizes: Sizes, price: float) -> tuple[float, float, float]:
        """The error and the cost of the best way of an operator, and its cost whole."""
        costs = op.costs(sizes)
        k = int(np.argmin(op.errors + price / self.whole * costs))
        return float(op.errors[k]), float(costs[k]), float(costs[0])

    def _split(self, each: Candidate, saved: float, sizes: Sizes) -> float | None:
        """The least error of splitting the operators around a group so that they save as much."""
        ways, whole = [], 0.0
        for op in self._around[each.id]:
            costs = op.costs(sizes)
            whole += float(costs[0])
            ways.append([Choice(*pair) for pair in zip(costs.tolist(), op.errors.tolist(), strict=True)])
        taken = choose(ways, whole - saved) if ways else None
        if taken is None:
            return None
        return sum(some[k].error for some, k in zip(ways, taken, strict=True))


def _steps(each: Candidate) -> dict[int, float]:
    """What may be kept, the whole first, and the error of that."""
    sums = np.concatenate([[0.0], np.cumsum(each.scores[each.order])])
    sizes, stride = [each.size], max(1, each.size // STEPS)
    while (following := each.below(sizes[-1], each.step, least_change=stride)) < sizes[-1]:
        sizes.append(following)
    return {kept: float(sums[each.size - kept]) for kept in sizes}
