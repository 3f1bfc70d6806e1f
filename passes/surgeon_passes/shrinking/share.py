"""Shares a target out between deleting indices of groups and splitting operators.

Both have error curves in the same unit, what they do to the model's outputs, so that one price for a multiply-accumulate
decides both (Everett, "Generalized Lagrange multiplier method", 1963): an operator takes the way with the least sum of its
error and what it costs, and a group loses as many indices as makes that sum least, if that is less than what its operators
come to as they are. What a group saves depends on what its neighbours have left; the groups are visited until none changes.
An operator that loses indices is not split as well: its curves are of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from surgeon.allocate.choices import choose
from surgeon.tally import KINDS, Tally

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from surgeon.allocate import Candidate
    from surgeon.allocate.choices import Choice
    from surgeon.cost import CostModel

VISITS = 8
HALVINGS = 40
STEPS = 32  # a group gives way in at most about this many
DEAREST = 1e6  # of the outputs' variance, for all multiply-accumulates: nothing that saves anything is worth keeping
MACS = KINDS.index("macs")


@dataclass(frozen=True)
class Compared:
    """What a group may lose, at the same saving either way.

    Attributes:
        kept: Indices that would stay.
        saved: Multiply-accumulates less, over those of the model.
        deleted: The error of the outputs if the others go.
        split: If its operators are split instead; None where they cannot save as much.
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
        kept: Indices that stay, by the id of the candidate.
        macs: What is left in all, over that of the model.
        error: The sum of the errors.
    """

    kept: dict[str, int]
    macs: float
    error: float


@dataclass
class Sharer:
    """Groups and operators of a model.

    Attributes:
        candidates: The groups, with scores that are errors of the outputs.
        cost: Of the model.
        ways: What operators may become, by name; the first is what they are. Costs are multiply-accumulates.
        touched: The operators whose weights each group runs through, by the candidate's id.
    """

    candidates: Sequence[Candidate]
    cost: CostModel
    ways: Mapping[str, Sequence[Choice]]
    touched: Mapping[str, Sequence[str]]
    whole: float = field(init=False)

    def __post_init__(self) -> None:
        self.whole = max(self.cost.evaluate().macs, 1.0)
        self._steps = {each.id: _steps(each) for each in self.candidates}

    def to(self, fraction: float) -> Sharing:
        """The cheapest that leaves at most ``fraction`` of the multiply-accumulates, or as little as can be."""
        low, high = 1 / DEAREST, DEAREST
        best = self._at(high)
        for _ in range(HALVINGS):
            price = float(np.sqrt(low * high))
            found = self._at(price)
            if found.macs <= fraction:
                best, high = found, price
            else:
                low = price
        self.price = high
        return best

    def compare(self, sharing: Sharing) -> dict[str, Compared]:
        """Both ways of every group, at the size that it has, or had best if it lost any."""
        tally = self._tally(sharing.kept)
        result = {}
        for each in self.candidates:
            kept = sharing.kept[each.id]
            chosen = kept < each.size
            if chosen:
                tally.shrink(each.atom, float(each.size))
            kept = kept if chosen else self._best(each, tally, self.price)[1]
            if kept < each.size:
                saved = float(tally.gain(each.atom, float(kept))[MACS])
                error = self._steps[each.id][kept]
                result[each.id] = Compared(kept, saved / self.whole, error, self._split(each, saved), chosen)
            if chosen:
                tally.shrink(each.atom, float(sharing.kept[each.id]))
        return result

    def _at(self, price: float) -> Sharing:
        kept = {each.id: each.size for each in self.candidates}
        tally = self._tally(kept)
        cheapest = {name: _cheapest(ways, price / self.whole) for name, ways in self.ways.items()}
        for _ in range(VISITS):
            before = dict(kept)
            for each in self.candidates:
                tally.shrink(each.atom, float(each.size))
                kept[each.id] = each.size
                cut = self._cut(kept)
                gain = 0.0
                for name in self.touched[each.id]:
                    if name not in cut:
                        now, then = self.ways[name][0], cheapest[name]
                        gain += price * (now.cost - then.cost) / self.whole - then.error
                value, size = self._best(each, tally, price)
                if value > gain:
                    kept[each.id] = size
                    tally.shrink(each.atom, float(size))
            if kept == before:
                break
        cut = self._cut(kept)
        split = {name: way for name, way in cheapest.items() if name not in cut}
        saved = sum(self.ways[name][0].cost - way.cost for name, way in split.items())
        error = sum(way.error for way in split.values())
        error += sum(self._steps[name][size] for name, size in kept.items())
        return Sharing(kept, (float(tally.totals[MACS]) - saved) / self.whole, error)

    def _best(self, each: Candidate, tally: Tally, price: float) -> tuple[float, int]:
        """The most that is won by deleting indices of a whole group, and what stays then."""
        return max(
            (price * float(tally.gain(each.atom, float(kept))[MACS]) / self.whole - error, kept)
            for kept, error in self._steps[each.id].items()
            if kept < each.size or len(self._steps[each.id]) == 1
        )

    def _split(self, each: Candidate, saved: float) -> float | None:
        """The least error of splitting a group's operators so that they save as much."""
        ways = [self.ways[name] for name in self.touched[each.id]]
        taken = choose(ways, sum(some[0].cost for some in ways) - saved) if ways else None
        if taken is None:
            return None
        return sum(some[k].error for some, k in zip(ways, taken, strict=True))

    def _cut(self, kept: Mapping[str, int]) -> set[str]:
        """Operators that lose indices."""
        return {
            name for each in self.candidates if kept[each.id] < each.size for name in self.touched[each.id]
        }

    def _tally(self, kept: Mapping[str, int]) -> Tally:
        tally = Tally(self.cost, [each.atom for each in self.candidates])
        for each in self.candidates:
            if kept[each.id] < each.size:
                tally.shrink(each.atom, float(kept[each.id]))
        return tally


def _steps(each: Candidate) -> dict[int, float]:
    """What may be kept, the whole first, and the error of that."""
    sums = np.concatenate([[0.0], np.cumsum(each.scores[each.order])])
    sizes = [each.size]
    while (following := each.below(sizes[-1], each.step, least_change=max(1, each.size // STEPS))) < sizes[
        -1
    ]:
        sizes.append(following)
    return {kept: float(sums[each.size - kept]) for kept in sizes}


def _cheapest(ways: Sequence[Choice], price: float) -> Choice:
    return min(ways, key=lambda way: (way.error + price * way.cost, way.cost))
