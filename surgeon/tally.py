"""The cost of a cut in progress: what one more removal would save, in microseconds, by keeping every size up to date."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from surgeon.axes import Atom, Axis, Concat, Product, atoms_of, normal
from surgeon.axes import count as size_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from surgeon.cost import CostModel, Term

    Floats = NDArray[np.float64]

KINDS = ("params", "macs", "bytes")


@dataclass(frozen=True)
class _Reach:
    """What changes with one atom.

    Attributes:
        added: Axes that lose ``times`` positions with each index, as a concatenation does.
        times: How many.
        scaled: Axes that shrink in proportion, as a product does.
        other: Axes that have to be measured anew.
        factors: For each term, the axes whose sizes are multiplied, ``[terms, width]``.
        weights: For each term, its coefficient in the column of its kind, ``[terms, kinds]``.
    """

    added: NDArray[np.intp]
    times: Floats
    scaled: NDArray[np.intp]
    other: list[tuple[int, Axis]]
    factors: NDArray[np.intp]
    weights: Floats


class Tally:
    """Costs while atoms shrink.

    Attributes:
        totals: What the model costs now, in the order of `KINDS`.
        sizes: The size each atom has now.
    """

    def __init__(self, cost: CostModel, atoms: Sequence[Atom]) -> None:
        self.totals: Floats = np.array([getattr(cost.evaluate(), kind) for kind in KINDS])
        self.sizes: dict[Atom, float] = {atom: float(atom.size) for atom in atoms}
        axes = list({id(axis): axis for term in cost.terms for axis in term.axes}.values())
        number = {id(axis): k for k, axis in enumerate(axes)}
        self._lengths = np.array([float(axis.size) for axis in axes] + [1.0])
        touched: dict[Atom, list[int]] = {atom: [] for atom in atoms}
        for k, axis in enumerate(axes):
            for atom in set(atoms_of(axis)) & touched.keys():
                touched[atom].append(k)
        self._reach = {
            atom: _reach(atom, [(k, axes[k]) for k in touched[atom]], cost.terms_of(atom), number)
            for atom in atoms
        }

    def gain(self, atom: Atom, size: float) -> Floats:
        """What is saved of each kind if ``atom`` shrinks to ``size``."""
        reach, lengths = self._reach[atom], self._lengths
        before = lengths[reach.factors].prod(axis=1)
        places, old = self._resize(atom, size)
        after = lengths[reach.factors].prod(axis=1)
        for place, length in zip(places, old, strict=True):
            lengths[place] = length
        saved: Floats = (before - after) @ reach.weights
        return saved

    def shrink(self, atom: Atom, size: float) -> None:
        """Let ``atom`` have ``size``."""
        self.totals = self.totals - self.gain(atom, size)
        self._resize(atom, size)
        self.sizes[atom] = size

    def _resize(self, atom: Atom, size: float) -> tuple[list[NDArray[np.intp] | int], list[Floats]]:
        """Sets the lengths of all axes that mention ``atom``; returns which they were and what they had."""
        reach, lengths, now = self._reach[atom], self._lengths, self.sizes[atom]
        places: list[NDArray[np.intp] | int] = [reach.added, reach.scaled, *(k for k, _ in reach.other)]
        old = [lengths[place].copy() for place in places]
        lengths[reach.added] += reach.times * (size - now)
        lengths[reach.scaled] *= size / now
        if reach.other:
            self.sizes[atom] = size
            for k, axis in reach.other:
                lengths[k] = size_of(axis, self.sizes)
            self.sizes[atom] = now
        return places, old


def _reach(atom: Atom, axes: list[tuple[int, Axis]], terms: list[Term], number: dict[int, int]) -> _Reach:
    added: list[tuple[int, int]] = []
    scaled: list[int] = []
    other: list[tuple[int, Axis]] = []
    for k, axis in axes:
        inner = normal(axis)
        occurrences = sum(each is atom for each in atoms_of(inner))
        parts = inner.parts if isinstance(inner, Concat) else (inner,)
        if sum(part is atom for part in parts) == occurrences:
            added.append((k, occurrences))
        elif isinstance(inner, Product) and occurrences == 1 and any(f is atom for f in inner.factors):
            scaled.append(k)
        else:
            other.append((k, inner))
    width = max((len(term.axes) for term in terms), default=0)
    factors = np.full(
        (len(terms), width), len(number), dtype=np.intp
    )  # one beyond the last axis stands for 1
    weights = np.zeros((len(terms), len(KINDS)))
    for row, term in enumerate(terms):
        factors[row, : len(term.axes)] = [number[id(axis)] for axis in term.axes]
        weights[row, KINDS.index(term.kind)] = term.coefficient
    return _Reach(
        np.array([k for k, _ in added], dtype=np.intp),
        np.array([times for _, times in added], dtype=np.float64),
        np.array(scaled, dtype=np.intp),
        other,
        factors,
        weights,
    )
