"""The constraint that weights are zero in so many places, which the data choose.

Which weights stay is chosen by a score, and those that stay then make up for the others, exactly. The score `alternating`
chooses both together: the alternating direction method of multipliers moves between weights without the constraint and
weights that keep it, until both agree where the zeros are; Meng et al., arXiv 2406.07831. It starts where each input
has mean square 1, so that its first choice is that of `wanda`, weights times the size of their input (Sun et al., arXiv
2306.11695), and what it finds is taken where it does better than that. `obs` goes through the inputs block by block, and feeds what each
loses on to those that come (Frantar and Alistarh, arXiv 2301.00774).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from surgeon.refit.definite import inverses
from surgeon.refit.rounding import distance
from surgeon.refit.support import on_support, with_bias

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from surgeon.refit.pattern import Pattern

    Matrix = NDArray[Any]  # in single or double precision
    Flags = NDArray[np.bool_]

Score = Literal["alternating", "wanda", "obs", "magnitude"]
ROUNDS = 60
STRENGTH = 0.1  # of the first pull towards the constraint; inputs have mean square 1
CHECKED = 3  # rounds after which it is seen how much still changes
FASTER = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # if more than this share changed, the pull grows by that
STEADY = 3e-3  # of the weights that stay: what changes less is as it will be
STEPS, ENOUGH = 60, 1e-4  # of the conjugate gradients: held-out places tell no finer differences
JUDGED = 64  # outputs by which two choices are compared
BLOCK = 128  # inputs whose zeros are chosen together by `obs`


@dataclass(frozen=True)
class Sparse:
    """So many zeros in a pattern; see `surgeon.refit.constrained.Constraint`.

    Attributes:
        pattern: Where zeros may be.
        sparsity: The fraction of them.
        taps: Weights of each input channel and output.
        score: How it is chosen which weights stay.
        magnitudes: The size of the weights that the score `magnitude` goes by, ``[groups, inputs, outputs]``.
        allowed: Where weights may differ from zero at all, of the same shape; None for everywhere.
    """

    pattern: Pattern
    sparsity: float
    taps: int
    score: Score
    magnitudes: Matrix
    allowed: Flags | None = None

    @property
    def together(self) -> bool:
        """Whether zeros are counted over all groups; a pattern with a fraction of its own has it in each."""
        return self.pattern.sparsity is None

    def __call__(self, ideal: Matrix, hessian: Matrix) -> Matrix:
        """Weights with zeros, near to ``ideal``.

        Args:
            ideal: ``[groups, inputs + 1, outputs]``, the bias last, which is free.
            hessian: ``[groups, inputs + 1, inputs + 1]``, positive definite.
        """
        if self.allowed is not None:
            ideal = _on_support(ideal, hessian, with_bias(self.allowed), ideal)
        if self.score == "magnitude":
            return _on_support(ideal, hessian, with_bias(self.kept(self.magnitudes)), ideal)
        if self.score == "obs":
            return _on_support(ideal, hessian, with_bias(self._fed_on(ideal, hessian)), ideal)
        simple = self.support(ideal, hessian)
        if self.score == "wanda":
            return _on_support(ideal, hessian, simple, ideal)
        sizes = np.sqrt(np.diagonal(hessian, axis1=1, axis2=2))[:, :, None]
        start, kept = self._alternated(ideal * sizes, hessian / sizes / sizes.swapaxes(1, 2))
        found = _on_support(ideal, hessian, with_bias(kept), start / sizes)
        some = spread_over(ideal.shape[2], JUDGED)
        part = ideal[:, :, some]
        other = _on_support(part, hessian, simple[:, :, some], part)
        if distance(found[:, :, some], part, hessian).sum() < distance(other, part, hessian).sum():
            return found
        return other if len(some) == ideal.shape[2] else _on_support(ideal, hessian, simple, ideal)

    def support(self, weights: Matrix, hessian: Matrix) -> Flags:
        """Where weights, the bias last, would stay if they went by their size times that of their input."""
        sizes = np.sqrt(np.diagonal(hessian, axis1=1, axis2=2))[:, :, None]
        return with_bias(self.kept(np.abs(weights * sizes)[:, :-1]))

    def of_outputs(self, some: NDArray[np.int64]) -> Sparse:
        """The same for some of the outputs."""
        allowed = None if self.allowed is None else self.allowed[:, :, some]
        return replace(self, magnitudes=self.magnitudes[:, :, some], allowed=allowed)

    def kept(self, scores: Matrix) -> Flags:
        """Which weights stay, ``[groups, inputs, outputs]``; what is not allowed goes first."""
        groups, inputs, outputs = scores.shape
        if self.allowed is not None:
            scores = np.where(self.allowed, scores, -1.0)
        split = scores.reshape(groups, inputs // self.taps, self.taps, outputs)
        found = self.pattern.kept(split, self.sparsity).reshape(scores.shape)
        return found if self.allowed is None else found & self.allowed

    def _alternated(self, ideal: Matrix, hessian: Matrix) -> tuple[Any, Flags]:
        """Weights after some rounds, and where they may differ from zero; inputs have mean square 1."""
        # single precision is enough to see which weights stay
        ideal, hessian = ideal.astype(np.float32), hessian.astype(np.float32)
        right, one = hessian @ ideal, np.eye(hessian.shape[1], dtype=np.float32)
        strength, dual = STRENGTH, np.zeros_like(ideal)  # a Python float leaves the type of arrays alone
        inverse = inverses(hessian + strength * one)
        kept = last = with_bias(self.kept(np.abs(ideal)[:, :-1]))
        sparse = np.where(kept, ideal, 0.0)
        for number in range(1, ROUNDS + 1):
            pulled = inverse @ (right + strength * (sparse - dual)) + dual
            kept = with_bias(self.kept(np.abs(pulled)[:, :-1]))
            sparse = np.where(kept, pulled, 0.0)
            dual = pulled - sparse  # over the strength
            if number % CHECKED == 0:
                changed = (kept != last).sum() / max(kept.sum(), 1)
                if changed <= STEADY:
                    break
                factor = next(factor for share, factor in FASTER if changed > share)
                strength, dual, last = strength * factor, dual / factor, kept
                inverse = inverses(hessian + strength * one)
        return sparse, kept[:, :-1]

    def _fed_on(self, ideal: Matrix, hessian: Matrix) -> Flags:
        """Which weights stay, chosen block by block; a block is whole input channels and whole parts of a pattern."""
        groups, inputs, outputs = ideal.shape[0], ideal.shape[1] - 1, ideal.shape[2]
        upper = np.linalg.cholesky(inverses(hessian)).swapaxes(1, 2)
        left, kept = ideal.copy(), np.ones((groups, inputs, outputs), bool)
        step = self.taps * self.pattern.rows * max(1, BLOCK // (self.taps * self.pattern.rows))
        for start in range(0, inputs, step):
            rows = slice(start, min(start + step, inputs))
            # the diagonal of the inverse of what is left of the matrix
            sizes = np.sqrt(np.square(upper[:, start:, rows]).sum(axis=1))[:, :, None]
            # what was rounded up before is not asked for again
            wanted = self.sparsity * kept[:, : rows.stop].size - (~kept[:, :start]).sum()
            fraction = float(np.clip(wanted / kept[:, rows].size, 0.0, 1.0))
            allowed = None if self.allowed is None else self.allowed[:, rows]
            part = replace(self, sparsity=fraction, allowed=allowed)
            kept[:, rows] = part.kept(np.square(left[:, rows] / sizes))
            for k in range(start, rows.stop):
                error = np.where(kept[:, k : k + 1], 0.0, left[:, k : k + 1]) / upper[:, k, k][:, None, None]
                left[:, k:] -= upper[:, k, k:, None] * error
        return kept


def spread_over(count: int, most: int) -> NDArray[np.int64]:
    """So many of the numbers below ``count`` at most, as evenly as they go."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def _on_support(ideal: Matrix, hessian: Matrix, support: Flags, start: Matrix) -> Matrix:
    return on_support(ideal, hessian, support, start, STEPS, ENOUGH)
