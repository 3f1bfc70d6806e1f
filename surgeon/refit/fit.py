"""The best weights of one product for a sample of its inputs and targets: ridge regression towards the present ones.

The strength of the ridge is what does best on held-out places. Where the result passes through an activation, further
least-squares steps with the same matrix follow, see `surgeon.refit.through`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from surgeon.refit.definite import inverses
from surgeon.refit.support import solved_on
from surgeon.stats.blocks import moments, product, rowwise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from surgeon.refit.through import Activation

    Floats = NDArray[np.float32]
    Flags = NDArray[np.bool_]
    Matrix = NDArray[np.float64]

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
STEPS = 12
BIAS_STRENGTH = 1e-9
ENOUGH = 1e-3  # a step that gains less of the error is the last one
TINY = 1e-12


@dataclass
class Sample:
    """Places at which an operator's groups are multiplied.

    Attributes:
        x: ``[groups, places, inputs + 1]``, what is multiplied, with a 1 appended.
        target: ``[groups, places, outputs]``, what should come out.
        other: What is added to the result before the activation, of the shape of ``target``; None for nothing.
        held_out: ``[places]``, which places only judge.
        through: The activation that the sum passes through, or None.
    """

    x: Floats
    target: Floats
    other: Floats | None
    held_out: NDArray[np.bool_]
    through: Activation | None = None


@dataclass(frozen=True)
class Fit:
    """Weights ``[groups, inputs + 1, outputs]`` and their squared error on held-out places over the target's energy."""

    weights: Matrix
    before: float
    after: float


@dataclass(frozen=True)
class Effort:
    """How much work a fit is.

    Attributes:
        strengths: Strengths of the ridge that are tried.
        steps: Steps through the activation behind an operator.
        joint: Steps of an operator together with the one before it; 0 for none.
    """

    strengths: tuple[float, ...] = STRENGTHS
    steps: int = STEPS
    joint: int = 8


def fit(sample: Sample, start: Matrix, effort: Effort = Effort(), support: Flags | None = None) -> Fit:
    """The best weights, or ``start`` for each group where nothing does better on held-out places.

    Args:
        sample: The places.
        start: The present weights with the bias as last row ``[groups, inputs + 1, outputs]``.
        effort: How much to try.
        support: Where weights may differ from zero, of the shape of ``start``, which is zero elsewhere; None for everywhere.
    """
    solved = [
        _fit(_one(sample, k), start[k], effort, None if support is None else support[k])
        for k in range(len(start))
    ]
    scale = max(sum(each.energy for each in solved), TINY)
    before, after = (sum(each.before for each in solved), sum(each.after for each in solved))
    return Fit(np.stack([each.weights for each in solved]), before / scale, after / scale)


def _one(sample: Sample, k: int) -> Sample:
    other = None if sample.other is None else sample.other[k]
    return Sample(sample.x[k], sample.target[k], other, sample.held_out, sample.through)


class _Solved(NamedTuple):
    weights: Matrix
    before: float
    after: float
    energy: float


def _fit(sample: Sample, start: Matrix, effort: Effort, support: Flags | None) -> _Solved:
    judge = _Judge(sample)
    best, before = start, judge.error(start)
    least = before
    fitted = ~sample.held_out
    if not fitted.any() or not np.isfinite(before):
        return _Solved(start, 0.0, 0.0, 0.0)
    x, t = sample.x[fitted], sample.target[fitted]
    gram, right = moments(x, x), moments(x, t)
    if not np.isfinite(right).all():
        return _Solved(start, before, before, judge.energy)
    found = _strongest(gram, right, start, judge, effort.strengths, support)
    if found is None:
        return _Solved(start, before, before, judge.energy)
    error, ridge, weights = found
    if error < least:
        least, best = error, weights
    if sample.through is not None:
        other = None if sample.other is None else sample.other[fitted]
        for _ in range(effort.steps):
            aim = towards(sample.through, product(x, weights.astype(np.float32)), t, other)
            if not np.isfinite(aim).all():
                break
            weights = ridge.solve(moments(x, aim), start)
            error = judge.error(weights)
            enough = error > least * (1 - ENOUGH)
            if error < least:
                least, best = error, weights
            if enough:
                break
    return _Solved(best, before, least, judge.energy)


def _strongest(
    gram: Matrix,
    right: Matrix,
    start: Matrix,
    judge: _Judge,
    strengths: Sequence[float],
    support: Flags | None,
) -> tuple[float, _Ridge, Matrix] | None:
    """The ridge that does best on held-out places: from the middle of the strengths downhill, for most are not needed."""
    tried: dict[int, tuple[float, _Ridge, Matrix]] = {}

    def error(k: int) -> float:
        if k not in tried and 0 <= k < len(strengths):
            ridge = _Ridge.of(gram, strengths[k], support)
            if ridge is not None:
                weights = ridge.solve(right, start)
                value = judge.error(weights)
                if np.isfinite(value):
                    tried[k] = (value, ridge, weights)
        return tried[k][0] if k in tried else np.inf

    best = (len(strengths) - 1) // 2
    error(best)
    for way in (-1, 1):
        while error(best + way) < error(best):
            best += way
    return tried.get(best)


def towards(through: Activation, prediction: Floats, target: Floats, other: Floats | None) -> Floats:
    """What a least-squares step aims at, where ``other`` is added to the result before the activation."""
    if other is None:
        return rowwise(through.towards, prediction, target)
    return rowwise(lambda p, t, o: through.towards(p + o, t + o) - o, prediction, target, other)


@dataclass(frozen=True)
class _Ridge:
    """The inverse of the left side of the normal equations, what pulls towards the start, and where weights may be.

    With a support, which each output has for itself, there is the left side instead of its inverse.
    """

    inverse: Matrix
    penalty: NDArray[np.float64]
    support: Flags | None = None

    @staticmethod
    def of(gram: Matrix, strength: float, support: Flags | None = None) -> _Ridge | None:
        penalty = np.full(len(gram), strength * scale_of(gram))
        penalty[-1] = BIAS_STRENGTH * max(gram[-1, -1], 1.0)
        if support is not None:
            return _Ridge(gram + np.diag(penalty), penalty, support)
        try:
            inverse = np.asarray(inverses((gram + np.diag(penalty))[None])[0], np.float64)
        except np.linalg.LinAlgError:
            return None
        return _Ridge(inverse, penalty) if np.isfinite(inverse).all() else None

    def solve(self, right: Matrix, start: Matrix) -> Matrix:
        whole = right + self.penalty[:, None] * start
        if self.support is None:
            return np.asarray(self.inverse @ whole)
        solved = solved_on(whole[None], self.inverse[None], self.support[None], start[None])
        return np.asarray(solved[0])


def scale_of(gram: Matrix) -> float:
    """The mean square of the inputs, without the 1 at the end."""
    return max(float(np.diag(gram)[:-1].mean()) if len(gram) > 1 else 0.0, TINY)


class _Judge:
    """Squared errors on held-out places, behind the activation."""

    def __init__(self, sample: Sample) -> None:
        held = sample.held_out
        self.x, self.through, self.other = sample.x[held], sample.through, sample.other
        truth = self._seen(sample.target)
        self.other = None if sample.other is None else sample.other[held]
        self.wanted = truth[held]
        finite = truth[np.isfinite(truth).all(axis=1)]
        mean = finite.mean(axis=0) if len(finite) else 0.0  # of all places: those held out may be few
        self.energy = float(np.square(self.wanted - mean, dtype=np.float64).sum())

    def error(self, weights: Matrix) -> float:
        difference = self._seen(product(self.x, weights.astype(np.float32))) - self.wanted
        return float(np.einsum("ij,ij->", difference, difference, dtype=np.float64))

    def _seen(self, values: Floats) -> Floats:
        if self.through is None:
            return values
        return rowwise(self.through.function, values if self.other is None else values + self.other)
