"""Block-wise optimal-brain-surgeon elimination: which inputs of a product can go, the others making up for it.

Hassibi and Stork, Second order derivatives for network pruning: Optimal Brain Surgeon, 1992; in blocks as in Kwon et
al., A fast post-training pruning framework for transformers, 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from surgeon.refit.definite import inverses
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

    What a removal costs follows from the rows that may go and from their part of the inverse; the others move as well, but
    nobody asks for them. So the work depends on how many may go, and not on how many there are.

    Attributes:
        blocks: ``[indices, block]`` rows of ``w`` that belong to each removable index.
        inverse: ``[rows, rows]``, the part of the inverse of the damped second moments of what is left.
        w: ``[rows, outputs]``, their weights.
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
            blocks: ``[indices, block]`` rows of the product that belong to each removable index.
            strength: Damping, relative to the mean square of the inputs.
        """
        return Elimination.among(inverted(gram, strength), w, blocks)

    @staticmethod
    def among(inverse: Matrix, w: Matrix, blocks: NDArray[np.int64]) -> Elimination:
        """Nothing removed yet, where several eliminations of one product share the inverse; see `start` and `inverted`."""
        rows, places = np.unique(blocks, return_inverse=True)
        return Elimination(places.reshape(blocks.shape), inverse[np.ix_(rows, rows)], w[rows])

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


@dataclass
class Apart:
    """The inputs of one product that has too many for an inverse; what goes is made up for by nothing, and costs what it does.

    Attributes:
        squares: ``[indices]``, the mean square of what each adds to the result.
    """

    squares: NDArray[np.float64]

    @staticmethod
    def among(grams: Matrix, w: Matrix, blocks: NDArray[np.int64]) -> Apart:
        """Nothing removed yet.

        Args:
            grams: ``[indices, block, block]``, second moments of the rows that belong to each index.
            w: ``[inputs + 1, outputs]``, the present weights.
            blocks: ``[indices, block]`` rows of the product that belong to each removable index.
        """
        part = w[blocks]
        return Apart(np.einsum("abn,abc,acn->a", part, grams, part, optimize=True))

    def costs(self, alive: NDArray[np.int64]) -> NDArray[np.float64]:
        """The increase of the squared error if one more of the indices ``alive`` is removed, for each."""
        return self.squares[alive]

    def remove(self, index: int) -> None:
        """Remove an index, of which the others take no notice."""


def inverted(gram: Matrix, strength: float = DAMPING) -> Matrix:
    """The inverse of damped second moments; see `Elimination.start`."""
    damped = gram + np.diag(np.full(len(gram), strength * scale_of(gram)))
    return np.asarray(inverses(damped[None])[0], dtype=np.float64)


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
