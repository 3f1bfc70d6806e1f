"""The best weights of one product among those that a constraint allows, such as numbers of a grid.

Without the constraint they solve a ridge regression towards weights that are known to be good; where the result passes
through an activation, further least-squares steps follow, see `surgeon.refit.through`. The constraint then finds what is
allowed and near to that, as the matrix of the regression measures nearness, which is the same as a small error. All
strengths of the ridge are tried, and for each output what does best on held-out places is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from surgeon.refit.fit import BIAS_STRENGTH, ENOUGH, TINY, Effort, Sample

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Matrix = NDArray[np.float64]


class Constraint(Protocol):
    """What the weights of a product may be."""

    def __call__(self, ideal: Matrix, hessian: Matrix) -> Matrix:
        """Allowed weights near to ``ideal``.

        Args:
            ideal: ``[groups, inputs + 1, outputs]``, the bias last, which is free.
            hessian: ``[groups, inputs + 1, inputs + 1]``, positive definite; the distance ``d`` of a column costs
                ``dᵀ H d``.
        """


@dataclass(frozen=True)
class Constrained:
    """What was found.

    Attributes:
        weights: ``[groups, inputs + 1, outputs]``.
        before: The squared error of the start on held-out places, over the target's energy.
        after: The same of what was found; not larger.
    """

    weights: Matrix
    before: float
    after: float


def fit_constrained(
    sample: Sample, start: Matrix, anchor: Matrix, constraint: Constraint, effort: Effort
) -> Constrained:
    """The best allowed weights, or ``start`` for each output where nothing does better on held-out places.

    Args:
        sample: The places.
        start: Allowed weights with the bias as last row ``[groups, inputs + 1, outputs]``.
        anchor: Weights without the constraint, of the same shape, that the ridge pulls towards.
        constraint: Finds allowed weights.
        effort: How much to try.
    """
    judge = _Judge(sample)
    before = judge.errors(start)
    fitted = ~sample.held_out
    best, least = start, before
    if fitted.any() and np.isfinite(before).all() and np.isfinite(sample.target).all():
        for candidate in _candidates(sample, fitted, anchor, constraint, effort):
            errors = judge.errors(candidate)
            better = errors < least
            best = np.where(better[:, None], candidate, best)
            least = np.where(better, errors, least)
    scale = max(judge.energy, TINY)
    return Constrained(best, float(before.sum()) / scale, float(least.sum()) / scale)


def _candidates(
    sample: Sample, fitted: NDArray[np.bool_], anchor: Matrix, constraint: Constraint, effort: Effort
) -> Iterator[Matrix]:
    x, t = sample.x[:, fitted], sample.target[:, fitted]
    other = None if sample.other is None else sample.other[:, fitted]
    gram = (x.swapaxes(1, 2) @ x).astype(np.float64)
    right = (x.swapaxes(1, 2) @ t).astype(np.float64)
    for strength in effort.strengths:
        penalty = _penalty(gram, strength)
        hessian = gram + penalty[:, :, None] * np.eye(gram.shape[1])
        inverse = np.linalg.inv(hessian)
        pull = penalty[:, :, None] * anchor
        ideal = inverse @ (right + pull)
        yield constraint(ideal, hessian)
        if sample.through is None or not effort.steps:
            continue
        last = np.inf
        for _ in range(effort.steps):
            prediction = x @ ideal.astype(np.float32)
            if other is None:
                towards = sample.through.towards(prediction, t)
            else:
                towards = sample.through.towards(prediction + other, t + other) - other
            error = float(np.square(towards - prediction, dtype=np.float64).sum())
            if not error < last * (1 - ENOUGH):
                break
            last = error
            ideal = inverse @ ((x.swapaxes(1, 2) @ towards).astype(np.float64) + pull)
        yield constraint(ideal, hessian)


def _penalty(gram: Matrix, strength: float) -> Matrix:
    """``[groups, inputs + 1]``: a share of the mean square of the inputs, and next to nothing for the bias."""
    diagonal = np.diagonal(gram, axis1=1, axis2=2)
    mean = diagonal[:, :-1].mean(axis=1, keepdims=True)
    result = np.broadcast_to(strength * np.maximum(mean, TINY), diagonal.shape).copy()
    result[:, -1] = BIAS_STRENGTH * np.maximum(diagonal[:, -1], 1.0)
    return result


class _Judge:
    """Squared errors of each output on held-out places, behind the activation."""

    def __init__(self, sample: Sample) -> None:
        held = sample.held_out
        self.x, self.through = sample.x[:, held], sample.through
        self.other = None if sample.other is None else sample.other[:, held]
        whole = sample.target if sample.other is None else sample.target + sample.other
        seen = whole if sample.through is None else sample.through.function(whole)
        self.wanted = seen[:, held]
        mean = seen.mean(axis=1, keepdims=True)  # of all places: those held out may be few
        self.energy = float(np.square(self.wanted - mean, dtype=np.float64).sum())

    def errors(self, weights: Matrix) -> Matrix:
        """``[groups, outputs]``."""
        made = self.x @ weights.astype(np.float32)
        made = made if self.other is None else made + self.other
        difference = (made if self.through is None else self.through.function(made)) - self.wanted
        return np.asarray(np.einsum("gpo,gpo->go", difference, difference, dtype=np.float64))
