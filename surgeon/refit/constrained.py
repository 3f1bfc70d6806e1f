"""The best weights of one product among those that a constraint allows, such as numbers of a grid.

Without the constraint they solve a ridge regression towards weights that are known to be good; where the result passes
through an activation, further least-squares steps follow, see `surgeon.refit.through`. The constraint then finds what is
allowed and near to that, as the matrix of the regression measures nearness, which is the same as a small error. All
strengths of the ridge are tried, and the best goes on through the activation; for each group what does best on held-out
places is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from surgeon.refit.definite import inverses
from surgeon.refit.fit import BIAS_STRENGTH, ENOUGH, TINY, Effort, Sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Matrix = NDArray[np.float64]


ROUNDING = 1e-6  # of the trace: what single precision leaves of the smallest eigenvalues


class Constraint(Protocol):
    """What the weights of a product may be."""

    @property
    def together(self) -> bool:
        """Whether it is one on all groups together, such as so many zeros of all of them.

        Then no group may be taken from one solution and another group from another.
        """

    def __call__(self, ideal: Matrix, hessian: Matrix) -> Matrix:
        """Allowed weights near to ``ideal``.

        Args:
            ideal: ``[groups, inputs + 1, outputs]``, the bias last, which is free.
            hessian: ``[groups, inputs + 1, inputs + 1]``, positive definite; the distance ``d`` of a column costs
                ``dᵀ H d``.
        """


@dataclass(frozen=True)
class Unconstrained:
    """No constraint: whatever is best."""

    together = False

    def __call__(self, ideal: Matrix, hessian: Matrix) -> Matrix:
        """The ideal itself."""
        del hessian
        return ideal


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
    sample: Sample,
    start: Matrix,
    anchor: Matrix,
    constraint: Constraint,
    effort: Effort,
    *,
    allowed: bool = True,
) -> Constrained:
    """The best allowed weights, or ``start`` for each group where nothing does better on held-out places.

    Args:
        sample: The places.
        start: Weights with the bias as last row ``[groups, inputs + 1, outputs]``.
        anchor: Weights without the constraint, of the same shape, that the ridge pulls towards.
        constraint: Finds allowed weights.
        effort: How much to try.
        allowed: Whether the start is; if not, the constraint is asked for what is near to it first.
    """
    fitted = ~sample.held_out
    ridges = _Ridges(sample, fitted, anchor)
    if not allowed:
        start = constraint(start, ridges.nearness())
    judge = _Judge(sample)
    before = judge.errors(start)
    choice = _Choice(judge, start, before, together=constraint.together)
    if fitted.any() and np.isfinite(before).all() and np.isfinite(sample.target).all():
        least, best = np.inf, None
        for strength in effort.strengths:
            ridge = ridges.of(strength)
            total = choice.offer(constraint(ridge.solve(ridges.t), ridge.hessian))
            if best is None or total < least:
                least, best = total, ridge
        if sample.through is not None and effort.steps and best is not None:
            choice.offer(constraint(ridges.through(best, effort.steps), best.hessian))
    scale = max(judge.energy, TINY)
    return Constrained(choice.best, float(before.sum()) / scale, float(choice.least.sum()) / scale)


class _Choice:
    """What did best so far, for each group or all of them: single outputs are too noisy where few places judge."""

    def __init__(self, judge: _Judge, start: Matrix, errors: Matrix, *, together: bool) -> None:
        self.judge, self.best, self.least = judge, start, errors
        self.axes = (0, 1) if together else (1,)

    def offer(self, candidate: Matrix) -> float:
        """Take the groups that are better; returns the error of all."""
        errors = self.judge.errors(candidate)
        better = errors.sum(axis=self.axes, keepdims=True) < self.least.sum(axis=self.axes, keepdims=True)
        better = np.broadcast_to(better, (len(errors), 1))
        self.best = np.where(better[:, None], candidate, self.best)
        self.least = np.where(better, errors, self.least)
        return float(errors.sum())


class _Ridges:
    """Ridge regressions on the places that are fitted, towards the same weights."""

    def __init__(self, sample: Sample, fitted: NDArray[np.bool_], anchor: Matrix) -> None:
        self.x, self.t, self.anchor = sample.x[:, fitted], sample.target[:, fitted], anchor
        self.other = None if sample.other is None else sample.other[:, fitted]
        self.activation = sample.through
        self.turned = self.x.swapaxes(1, 2)
        self.with_target = (self.turned @ self.t).astype(np.float64)
        self.gram = (self.turned @ self.x).astype(np.float64)
        # rounded to single precision sums of squares may lose what keeps the matrix positive definite
        trace = np.trace(self.gram, axis1=1, axis2=2)[:, None, None]
        self.gram += ROUNDING * trace * np.eye(self.gram.shape[1])

    def nearness(self) -> Matrix:
        """The left side of the normal equations without a ridge; where the places say nothing, all inputs count alike."""
        known = np.isfinite(self.gram).all(axis=(1, 2)) & (np.trace(self.gram, axis1=1, axis2=2) > 0)
        return np.where(known[:, None, None], self.gram, np.eye(self.gram.shape[1]))

    def of(self, strength: float) -> _Ridge:
        """The regression of one strength."""
        penalty = _penalty(self.gram, strength)[:, :, None]
        hessian = self.gram + penalty * np.eye(self.gram.shape[1])
        return _Ridge(self, hessian, inverses(hessian), penalty * self.anchor)

    def product(self, target: Floats) -> Matrix:
        """Inputs times a target."""
        return self.with_target if target is self.t else (self.turned @ target).astype(np.float64)

    def through(self, ridge: _Ridge, steps: int) -> Matrix:
        """Weights after some least-squares steps through the activation."""
        ideal, last = ridge.solve(self.t), np.inf
        for _ in range(steps):
            prediction = self.x @ ideal.astype(np.float32)
            towards = self._towards(prediction)
            error = float(np.square(towards - prediction, dtype=np.float64).sum())
            if not error < last * (1 - ENOUGH):
                break
            last, ideal = error, ridge.solve(towards)
        return ideal

    def _towards(self, prediction: Floats) -> Floats:
        if self.activation is None or self.other is None:
            return self.t if self.activation is None else self.activation.towards(prediction, self.t)
        return self.activation.towards(prediction + self.other, self.t + self.other) - self.other


@dataclass(frozen=True)
class _Ridge:
    """The normal equations of one strength: their left side, its inverse, and what the ridge adds to the right one."""

    of: _Ridges
    hessian: Matrix
    inverse: Matrix
    pull: Matrix

    def solve(self, target: Floats) -> Matrix:
        """The weights that come nearest to a target."""
        return np.asarray(self.inverse @ (self.of.product(target) + self.pull))


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
