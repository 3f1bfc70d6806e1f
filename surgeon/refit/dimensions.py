"""Error curves of dimensions over which two activations are multiplied, as queries and keys are.

What leaving out the dimensions R does to ``Q K'`` is ``Q_R K_R'``, whose squares are ``Σ Gq[i, j] Gk[i, j]`` over i and j
in R: a quadratic form, which says what goes best. Where the factors will be projected (see `surgeon.refit.project`) it
does not matter which dimensions go, only how many, and the error of every number is a sum of eigenvalues.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from surgeon.axes import coordinates
from surgeon.refit.contraction import contractions
from surgeon.refit.project import Summed, moments, samples_of, spectrum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from surgeon.analysis import Analysis
    from surgeon.axes import Atom, Keep
    from surgeon.refit.contraction import Contraction
    from surgeon.refit.eliminate import Problem
    from surgeon.stats.replay import Replay

    Matrix = NDArray[np.float64]

TINY = 1e-12
CONSTANT = 1e-6  # of the squares: what varies less is taken to vary this much
TIE = 1e-6  # of what selecting costs decides between dimensions that cost the same


@dataclass
class Selected:
    """Dimensions that are kept as they are.

    Attributes:
        form: ``[indices, indices]``, the squared error of leaving out a set is the sum over its pairs.
        gone: ``[indices]``, what is left out already.
    """

    form: Matrix
    gone: NDArray[np.bool_]

    def costs(self, alive: NDArray[np.int64]) -> Matrix:
        """The increase of the error, for each of the indices ``alive``."""
        return np.asarray(np.diag(self.form)[alive] + 2 * self.form[alive][:, self.gone].sum(axis=1))

    def remove(self, index: int) -> None:
        """Leave out one more."""
        self.gone = self.gone.copy()
        self.gone[index] = True


@dataclass
class Projected:
    """Dimensions that are replaced by the best few.

    Attributes:
        steps: What the next removal costs, by how many indices are left.
        selected: Decides which goes, for what is not projected in the end.
    """

    steps: Matrix
    selected: Selected

    def costs(self, alive: NDArray[np.int64]) -> Matrix:
        """The same for all, but for a little."""
        return np.asarray(self.steps[len(alive)] + TIE * np.abs(self.selected.costs(alive)))

    def remove(self, index: int) -> None:
        """Leave out one more."""
        self.selected.remove(index)


def dimension_problems(
    analysis: Analysis, atoms: Sequence[Atom], keep: Keep, original: Replay
) -> dict[Atom, list[tuple[Problem, float]]]:
    """For each atom over which activations are multiplied, the products' errors and the energy they are measured by.

    Args:
        analysis: The original.
        atoms: What may be removed.
        keep: What was kept so far.
        original: A run of the original from its start.
    """
    found: dict[Atom, list[tuple[Problem, float]]] = {}
    wanted = []
    for each in contractions(analysis):
        known = {atom: coordinates(each.axis, atom) for atom in atoms}
        mine = {atom: places[0] for atom, places in known.items() if len(places) == 1}
        if mine:
            wanted.append((each, mine))
    for each, _ in wanted:
        for name in each.operands:
            original.hold(name)
    for each, places in wanted:
        original.advance(each.operands)
        form, energy, summed = _measure(each, original)
        for name in each.operands:
            original.release(name)
        if not np.isfinite(energy) or not np.isfinite(form).all():
            continue
        for atom, index in places.items():
            problem = _problem(each, atom, index, form, summed, keep)
            found.setdefault(atom, []).append((problem, max(energy, TINY)))
    return found


def _measure(contraction: Contraction, original: Replay) -> tuple[Matrix, float, Summed | None]:
    """The quadratic form by position, the energy of the result around its mean, and moments by head."""
    size = contraction.axis.size
    form, energy, total, count = np.zeros((size, size)), 0.0, 0.0, 0
    for first, second in samples_of(contraction, original, original.batches):
        products = moments(first) * moments(second)
        form += products.sum(axis=0)
        energy += float(products.sum())
        total += float((first.sum(axis=1) * second.sum(axis=1)).sum())
        count += len(first) * first.shape[1] * second.shape[1]
    if not contraction.softmax:  # else every row is around its mean already
        energy = max(energy - total**2 / max(count, 1), CONSTANT * energy)
    factors = contraction.factors
    samples = samples_of(contraction, original, original.batches)
    return form, energy, None if factors is None else Summed.of(factors, samples)


def _problem(
    contraction: Contraction,
    atom: Atom,
    index: NDArray[np.int64],
    form: Matrix,
    summed: Summed | None,
    keep: Keep,
) -> Problem:
    spread = np.zeros((atom.size, len(index)))
    here = np.flatnonzero(index >= 0)
    spread[index[here], here] = 1
    alive = keep.get(atom, np.ones(atom.size, bool))
    selected = Selected(spread @ form @ spread.T, ~alive)
    if summed is None or contraction.factors is None:
        return selected
    values = np.zeros(len(index))
    for _, _, single, others in summed.heads(contraction.factors):
        values += spectrum(single, others)
    # pairs of rows of different samples are among those of the moments, so only the shares are taken from them
    shares = np.append(values, 0.0) / max(float(values.sum()), TINY)
    left = np.cumsum(shares[::-1])[::-1]
    each = max(1, len(here) // atom.size)
    ranks = len(index) - len(here) + each * np.arange(atom.size + 1)
    steps = np.append(0.0, left[ranks[:-1]] - left[ranks[1:]]) * float(form.sum())
    return Projected(steps, selected)
