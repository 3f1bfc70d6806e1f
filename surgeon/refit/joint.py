"""Fitting two operators with an activation between them at once, towards what the second one should compute.

Alone, each operator aims at what it used to compute. Together they may agree on other channels between them, fewer ones
being left. The second weights have a closed form for given first ones; the first ones take steps of conjugate gradients
(Polak and Ribière), preconditioned by their own second moments, each as long as the linearised error says (Gauss and
Newton). What does best on held-out places is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from surgeon.refit.definite import inverses
from surgeon.refit.fit import BIAS_STRENGTH, Effort, Sample, fit, scale_of, towards
from surgeon.stats.blocks import moments, product, rowwise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from surgeon.refit.pair import Linked
    from surgeon.refit.through import Activation

    Floats = NDArray[np.float32]
    Matrix = NDArray[np.float64]
    Supports = tuple[NDArray[np.bool_] | None, NDArray[np.bool_] | None]

STEPS = 8
EVERY = 4  # the second weights are solved anew after so many steps
DAMPING = 1e-2
SECOND = Effort(strengths=(1e-4, 1e-2), steps=3)
WIDTH = 1e-3  # of the differences that derivatives of activations are taken from
TINY = 1e-20


@dataclass
class Wanted:
    """What should come out of the second operator, see `surgeon.refit.fit.Sample`; ``biased`` if it can have a bias."""

    target: Floats
    other: Floats | None
    held_out: NDArray[np.bool_]
    through: Activation | None
    biased: bool = True


@dataclass(frozen=True)
class Both:
    """The weights of both operators, and the relative error on held-out places."""

    first: Matrix
    second: Matrix
    error: float


def fit_both(
    linked: Linked,
    between: Activation,
    wanted: Wanted,
    first: Matrix,
    second: Matrix,
    steps: int = STEPS,
    supports: Supports = (None, None),
) -> tuple[Both, Both]:
    """Fit both operators.

    Args:
        linked: What they read.
        between: The activation between them.
        wanted: What should come out.
        first: The present weights of the first operator, ``[groups, inputs + 1, outputs]``.
        second: Those of the second one.
        steps: Steps for the first weights.
        supports: Where the first and the second weights may differ from zero, each of their shape; None for everywhere.

    Returns:
        Where it started, and the best that was found, which may be the same.
    """
    if not wanted.held_out.any() or wanted.held_out.all():
        start = Both(first, second, 0.0)
        return start, start
    search = _Search(linked, between, wanted, first, second, supports)
    start = best = search.state()
    for step in range(steps):
        if step % EVERY == 0:
            search.solve_second()
            best = min(best, search.state(), key=lambda both: both.error)
        moved = search.step()
        found = search.state()
        if not moved or found.error >= best.error:  # the places that are fitted have no more to say of others
            break
        best = found
    search.solve_second()
    return start, min(best, search.state(), key=lambda both: both.error)


class _Search:
    def __init__(
        self,
        linked: Linked,
        between: Activation,
        wanted: Wanted,
        first: Matrix,
        second: Matrix,
        supports: Supports,
    ) -> None:
        self.supports = supports[0], None if supports[1] is None else linked.arranged(supports[1])
        self.linked, self.between, self.wanted = linked, between, wanted
        self.first, self.second = first, linked.arranged(second)  # as what it multiplies is fetched
        self.ones = np.full((len(second), linked.places, 1), wanted.biased, np.float32)
        self.inverse = _inverse(linked.x)
        self.truth = self._seen(wanted.target)
        spread = (self.truth - self.truth.mean(axis=1, keepdims=True))[:, wanted.held_out]
        self.energy = max(float(np.square(spread).sum()), TINY)
        self.direction: Matrix | None = None
        self.gradient = np.zeros_like(first)
        self.length = 1.0
        self._evaluate(linked.hidden(first))

    def _evaluate(self, before: Floats) -> None:
        self.before = before
        self.rows = self.linked.gathered(rowwise(self.between.function, before))
        self.result = self._product(self.rows)

    def _product(self, rows: Floats) -> Floats:
        weights = self.second.astype(np.float32)
        return np.asarray(product(rows, weights[:, :-1]) + weights[:, -1:], np.float32)

    def _seen(self, values: Floats) -> Floats:
        if self.wanted.through is None:
            return values
        seen = values if self.wanted.other is None else values + self.wanted.other
        return rowwise(self.wanted.through.function, seen)

    def state(self) -> Both:
        difference = (self._seen(self.result) - self.truth)[:, self.wanted.held_out]
        error = float(np.einsum("gpo,gpo->", difference, difference, dtype=np.float64)) / self.energy
        return Both(self.first, self.linked.restored(self.second), error if np.isfinite(error) else np.inf)

    def solve_second(self) -> None:
        """The best second weights for what is between the operators now."""
        wanted = self.wanted
        sample = Sample(
            np.concatenate([self.rows, self.ones], axis=2),
            wanted.target,
            wanted.other,
            wanted.held_out,
            wanted.through,
        )
        self.second = fit(sample, self.second, SECOND, self.supports[1]).weights
        self.result = self._product(self.rows)
        self.direction = None

    def step(self) -> bool:
        """One step of the first weights; False where there is nowhere to go."""
        residual = self._residual()
        back = product(residual, self.second[:, :-1].transpose(0, 2, 1).astype(np.float32))
        slope = self._slope()
        groups = len(self.first)
        gradient = self.linked.first_gradient(self.linked.scattered(back) * slope, groups)
        gradient = self._supported(gradient)
        downhill = self._supported(-(self.inverse @ gradient))
        if self.direction is not None:
            turn = float(-(downhill * (gradient - self.gradient)).sum()) / self.length
            downhill = downhill + max(turn, 0.0) * self.direction
        self.direction, self.gradient = downhill, gradient
        self.length = max(float((gradient * (self.inverse @ gradient)).sum()), TINY)
        moved = self.linked.hidden(downhill)
        change = product(self.linked.gathered(slope * moved), self.second[:, :-1].astype(np.float32))
        change[:, self.wanted.held_out] = 0
        energy = float(np.square(change, dtype=np.float64).sum())
        size = -float(np.einsum("gpo,gpo->", residual, change, dtype=np.float64)) / max(energy, TINY)
        if not np.isfinite(size) or size <= 0:
            return False
        self.first = self.first + size * downhill
        self._evaluate(self.before + np.float32(size) * moved)  # which is linear in the weights
        return True

    def _supported(self, weights: Matrix) -> Matrix:
        """Without what the first operator has to leave zero."""
        support = self.supports[0]
        return weights if support is None else np.where(support, weights, 0.0)

    def _residual(self) -> Floats:
        """Result minus target at the places that are fitted, less where the activation behind is flat."""
        wanted = self.wanted
        target = wanted.target
        if wanted.through is not None:
            target = towards(wanted.through, self.result, target, wanted.other)
        residual = self.result - target
        residual[:, wanted.held_out] = 0
        return np.asarray(residual, np.float32)

    def _slope(self) -> Floats:
        function, width = self.between.function, np.float32(WIDTH)
        slope = rowwise(lambda x: (function(x + width) - function(x - width)) / (2 * width), self.before)
        return np.asarray(slope, np.float32)


def _inverse(x: Floats) -> Matrix:
    """The inverse of the damped second moments of each group ``[groups, inputs + 1, inputs + 1]``."""
    gram = moments(x, x)
    for k, each in enumerate(gram):
        damping = np.full(len(each), DAMPING * scale_of(each))
        damping[-1] = BIAS_STRENGTH * max(each[-1, -1], 1.0)
        gram[k] = each + np.diag(damping)
    return np.asarray(inverses(gram), np.float64)
