"""The closed forms: ridge regression towards given weights, and block-wise optimal-brain-surgeon elimination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass
class Moments:
    """Second moments of one product ``x W + b`` and its target.

    Attributes:
        g: ``[k, k]``, the sum of ``x x'`` with a 1 appended to every x.
        b: ``[k, n]``, the sum of ``x t'``.
        t: The sum of ``t' t``.
        mean: ``[n]``, the sum of t.
        count: Number of positions.
    """

    g: Matrix
    b: Matrix
    t: float
    mean: NDArray[np.float64]
    count: int

    @staticmethod
    def empty(inputs: int, outputs: int) -> Moments:
        """No positions yet."""
        return Moments(
            np.zeros((inputs + 1, inputs + 1)), np.zeros((inputs + 1, outputs)), 0.0, np.zeros(outputs), 0
        )

    def add(self, x: NDArray[np.float32], t: NDArray[np.float32]) -> None:
        """Add positions: ``x`` is ``[positions, inputs]``, ``t`` is ``[positions, outputs]``."""
        extended = np.concatenate([x, np.ones((len(x), 1), x.dtype)], axis=1)
        self.g += extended.T @ extended
        self.b += extended.T @ t
        self.t += float(np.einsum("ij,ij->", t, t, dtype=np.float64))
        self.mean += t.sum(axis=0, dtype=np.float64)
        self.count += len(x)

    def error(self, w: Matrix) -> float:
        """The sum of squared differences between ``x w`` and the target; ``w`` is ``[k, n]``."""
        return float(np.einsum("ij,ij->", w, self.g @ w) - 2 * np.einsum("ij,ij->", w, self.b) + self.t)

    def energy(self) -> float:
        """The sum of squares of the target around its mean."""
        return max(self.t - float((self.mean**2).sum()) / max(self.count, 1), 1e-12)


def ridge(moments: Moments, start: Matrix, strength: float) -> Matrix:
    """The weights that minimise the error plus ``strength`` times the distance from ``start``, scaled by the inputs.

    The bias (last row) is not penalised.
    """
    penalty = strength * _scale(moments.g) * np.ones(len(moments.g))
    penalty[-1] = 1e-9 * max(moments.g[-1, -1], 1.0)
    left = moments.g + np.diag(penalty)
    return np.asarray(np.linalg.solve(left, moments.b + penalty[:, None] * start), dtype=np.float64)


def _scale(g: Matrix) -> float:
    return max(float(np.diag(g)[:-1].mean()) if len(g) > 1 else 0.0, 1e-12)


def best_ridge(fit: Moments, held_out: Moments, start: Matrix) -> Matrix:
    """Ridge regression with the strength that does best on held-out positions; ``start`` if nothing beats it."""
    best, least = start, held_out.error(start)
    for strength in STRENGTHS:
        candidate = ridge(fit, start, strength)
        error = held_out.error(candidate)
        if error < least:
            best, least = candidate, error
    return best


@dataclass
class Elimination:
    """The inputs of one product, removed block by block, the rest compensating.

    Attributes:
        blocks: ``[indices, block]`` rows of the product that belong to each removable index.
    """

    blocks: NDArray[np.int64]
    inverse: Matrix
    w: Matrix

    @staticmethod
    def start(moments: Moments, w: Matrix, blocks: NDArray[np.int64], strength: float = 1e-3) -> Elimination:
        """Nothing removed yet; the bias row never is."""
        damped = moments.g + np.diag(np.full(len(moments.g), strength * _scale(moments.g)))
        return Elimination(blocks, np.asarray(np.linalg.inv(damped), dtype=np.float64), w.copy())

    def costs(self, alive: NDArray[np.int64]) -> NDArray[np.float64]:
        """The increase of the squared error if one more of the indices ``alive`` is removed, for each."""
        rows = self.blocks[alive]
        inner = self.inverse[rows[:, :, None], rows[:, None, :]]
        part = self.w[rows]
        return np.asarray(np.einsum("abn,abn->a", part, np.linalg.solve(inner, part)))

    def remove(self, index: int) -> None:
        """Remove an index; the weights of the others move to make up for it."""
        rows = self.blocks[index]
        column = self.inverse[:, rows]
        gain = np.linalg.solve(
            self.inverse[np.ix_(rows, rows)], np.concatenate([self.w[rows], column.T], axis=1)
        )
        outputs = self.w.shape[1]
        self.w -= column @ gain[:, :outputs]
        self.inverse -= column @ gain[:, outputs:]
        self.w[rows] = 0
        self.inverse[rows, :] = 0
        self.inverse[:, rows] = 0
        self.inverse[rows, rows] = 1.0  # keeps the block solvable; it is never asked for again


def eliminate(problems: Sequence[tuple[Elimination, float]], size: int) -> tuple[list[int], list[float]]:
    """Remove all indices one after the other, each time the one that costs least over all products.

    Args:
        problems: One elimination per consumer, and the energy its error is measured against.
        size: Number of indices.

    Returns:
        The order of removal, and the cost of each step relative to the energies.
    """
    alive = np.arange(size)
    order, steps = [], []
    while len(alive):
        total = np.zeros(len(alive))
        for elimination, energy in problems:
            total += elimination.costs(alive) / energy
        place = int(np.argmin(total))
        order.append(int(alive[place]))
        steps.append(float(total[place]))
        for elimination, _ in problems:
            elimination.remove(int(alive[place]))
        alive = np.delete(alive, place)
    return order, steps
