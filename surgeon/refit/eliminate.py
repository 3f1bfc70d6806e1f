"""Block-wise optimal-brain-surgeon elimination: which inputs of a product can go, the others making up for it.

Hassibi and Stork, Second order derivatives for network pruning: Optimal Brain Surgeon, 1992; in blocks as in Kwon et
al., A fast post-training pruning framework for transformers, 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from surgeon.refit.fit import scale_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]

DAMPING = 1e-3


class Problem(Protocol):
    """What removing indices one by one costs."""

    def costs(self, alive: NDArray[np.int64]) -> NDArray[np.float64]:
        """The increase of a squared error if one more of the indices ``alive`` is removed, for each."""

    def remove(self, index: int) -> None:
        """Remove an index."""


@dataclass
class Elimination:
    """The inputs of one product, removed block by block, the rest compensating.

    Attributes:
        blocks: ``[indices, block]`` rows of the product that belong to each removable index.
        inverse: ``[inputs + 1, inputs + 1]``, the inverse of the damped second moments of what is left.
        w: ``[inputs + 1, outputs]``, the weights of what is left; the bias is the last row and never goes.
    """

    blocks: NDArray[np.int64]
    inverse: Matrix
    w: Matrix

    @staticmethod
    def start(gram: Matrix, w: Matrix, blocks: NDArray[np.int64], strength: float = DAMPING) -> Elimination:
        """Nothing removed yet.

        Args:
            gram: ``[inputs + 1, inputs + 1]``, the sum of ``x x'`` with a 1 appended to every x.
            w: ``[inputs + 1, outputs]``, the present weights.
            blocks: ``[indices, block]``, see above.
            strength: Damping, relative to the mean square of the inputs.
        """
        damped = gram + np.diag(np.full(len(gram), strength * scale_of(gram)))
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


def eliminate(
    problems: Sequence[tuple[Problem, float]], alive: NDArray[np.int64]
) -> tuple[list[int], list[float]]:
    """Remove all indices one after the other, each time the one that costs least over all products.

    Args:
        problems: One per consumer, and the energy its error is measured against.
        alive: The indices that are there.

    Returns:
        The order of removal, and the cost of each step relative to the energies.
    """
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
