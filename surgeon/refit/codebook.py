"""The constraint that weights share a few values, which the data choose.

First come values and their places by k-means, where each weight counts as much as the mean square of its input; see
`surgeon.refit.kmeans`. Then both are improved in turn, by the whole matrix of the inputs: weights are placed one after the
other, those that come making up for what is lost (the elimination of `surgeon.refit.rounding`), and the values are fitted
to the places by conjugate gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from surgeon.refit.kmeans import Start, kmeans
from surgeon.refit.rounding import distance, fed_back, visited
from surgeon.refit.table import Keeping, Table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]
    Places = NDArray[np.int64]
    Flags = NDArray[np.bool_]

ROUNDS = 3
STEPS = 20
ENOUGH = 1e-6


@dataclass(frozen=True)
class Codebook:
    """At most so many different values; see `surgeon.refit.constrained.Constraint`.

    Attributes:
        values: How many: of the whole weight, or of each of its outputs.
        per_output: Whether each output has values of its own.
        zeros: Which weights are zero and stay so, ``[groups, inputs, outputs]``; then zero is one of the values.
        start: How k-means starts.
        seed: Of what is random in that.
    """

    values: int
    per_output: bool
    zeros: Flags
    start: Start
    seed: int

    @property
    def together(self) -> bool:
        """Whether all groups have the same values."""
        return not self.per_output

    def __call__(self, ideal: Matrix, hessian: Matrix) -> Matrix:
        """Weights with few values, near to ``ideal``.

        Args:
            ideal: ``[groups, inputs + 1, outputs]``, the bias last, which is free.
            hessian: ``[groups, inputs + 1, inputs + 1]``, positive definite.
        """
        importance = np.diagonal(hessian, axis1=1, axis2=2)[:, :-1, None]
        table = self.table(ideal[:, :-1], np.broadcast_to(importance, ideal[:, :-1].shape))
        best = np.concatenate([self.allowed(table).nearest(ideal[:, :-1]), ideal[:, -1:]], axis=1)
        least = distance(best, ideal, hessian).sum()
        for _ in range(ROUNDS):
            allowed = self.allowed(table)
            found = visited(allowed, fed_back(allowed, ideal, hessian), ideal, hessian)
            table, found = self._fitted(table, found, ideal, hessian)
            lost = distance(found, ideal, hessian).sum()
            if not lost < least * (1 - ENOUGH):
                break
            best, least = found, lost
        return best

    def allowed(self, table: Matrix) -> Keeping:
        """The values of a table, and zero where it has to be."""
        return Keeping(Table(table), ~self.zeros if self.zeros.any() else None)

    def table(self, weights: Matrix, importance: Matrix) -> Matrix:
        """The values that k-means finds: ``[groups or 1, outputs or 1, values]``, ascending."""
        groups, _, outputs = weights.shape
        wanted = self.values - bool(self.zeros.any())
        if not self.per_output:
            found = kmeans(weights[~self.zeros], importance[~self.zeros], wanted, self.start, self.seed)
            return self._with_zero(found)[None, None]
        columns = [
            [
                self._with_zero(
                    kmeans(*_free(weights, importance, self.zeros, g, o), wanted, self.start, self.seed)
                )
                for o in range(outputs)
            ]
            for g in range(groups)
        ]
        return np.array(columns)

    def _with_zero(self, found: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.sort(np.append(found, 0.0)) if self.zeros.any() else found

    def _fitted(self, table: Matrix, found: Matrix, ideal: Matrix, hessian: Matrix) -> tuple[Matrix, Matrix]:
        """Values that suit where the weights are, and the weights with them; zero stays zero."""
        shape = found[:, :-1].shape
        places = Table(table).places(found[:, :-1])
        if not self.per_output:
            columns = np.zeros((shape[0], 1, shape[2]), np.int64)
        else:
            columns = np.arange(shape[0] * shape[2]).reshape(shape[0], 1, shape[2])
        places = places + columns * table.shape[2]
        fixed = table.ravel() == 0 if self.zeros.any() else np.zeros(table.size, bool)
        solved = _Values(places, fixed, hessian).solve(table.ravel(), found[:, -1:], ideal)
        weights = np.concatenate([solved[0][places], solved[1]], axis=1)
        return np.sort(solved[0].reshape(table.shape), axis=2), weights


@dataclass(frozen=True)
class _Values:
    """The best values for given places, and the best biases with them.

    Attributes:
        places: Which value each weight has, ``[groups, inputs, outputs]``.
        fixed: Which values stay, ``[values]``.
        hessian: ``[groups, inputs + 1, inputs + 1]``.
    """

    places: Places
    fixed: Flags
    hessian: Matrix

    def solve(
        self, values: NDArray[np.float64], bias: Matrix, ideal: Matrix
    ) -> tuple[NDArray[np.float64], Matrix]:
        """Conjugate gradients from these values and biases ``[groups, 1, outputs]`` on."""
        diagonal = np.diagonal(self.hessian, axis1=1, axis2=2)
        scale = self._gathered(np.broadcast_to(diagonal[:, :-1, None], self.places.shape))
        over = (1 / np.where(scale > 0, scale, 1.0), 1 / diagonal[:, -1:, None])
        residual = self._down(self.hessian @ (ideal - self._up(values, bias)))
        direction = [over[0] * residual[0], over[1] * residual[1]]
        size = first = _inner(residual, direction)
        for _ in range(STEPS):
            if size <= ENOUGH**2 * first or size <= 0:
                break
            moved = self._down(self.hessian @ self._up(*direction))
            length = size / _inner(direction, moved)
            values, bias = values + length * direction[0], bias + length * direction[1]
            residual = (residual[0] - length * moved[0], residual[1] - length * moved[1])
            scaled = (over[0] * residual[0], over[1] * residual[1])
            following = _inner(residual, scaled)
            direction = [new + following / size * old for new, old in zip(scaled, direction, strict=True)]
            size = following
        return values, bias

    def _up(self, values: NDArray[np.float64], bias: Matrix) -> Matrix:
        return np.concatenate([values[self.places], bias], axis=1)

    def _down(self, weights: Matrix) -> tuple[NDArray[np.float64], Matrix]:
        return np.where(self.fixed, 0.0, self._gathered(weights[:, :-1])), weights[:, -1:]

    def _gathered(self, weights: Matrix) -> NDArray[np.float64]:
        """The sum of the weights that have each value."""
        sums = np.bincount(self.places.ravel(), weights.ravel(), minlength=len(self.fixed))
        return np.asarray(sums, np.float64)


def _inner(
    first: tuple[Matrix, Matrix] | list[Matrix], second: tuple[Matrix, Matrix] | list[Matrix]
) -> float:
    return float(sum((one * other).sum() for one, other in zip(first, second, strict=True)))


def _free(
    weights: Matrix, importance: Matrix, zeros: Flags, group: int, output: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The weights of one output that are not held at zero, and what they count."""
    free = ~zeros[group, :, output]
    return weights[group, free, output], importance[group, free, output]
