"""Importance scores: plain functions from the weights (or activations) of a group to one number per index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from surgeon.axes import Axis, coordinates

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from surgeon.axes import Atom

Scores = "NDArray[np.float64]"


@dataclass(frozen=True)
class Slices:
    """One tensor seen from a group: which of its values belong to which index.

    Attributes:
        values: The tensor.
        axis: The axis of the tensor that mentions the group.
        where: For each occurrence of the group along that axis, the index every position belongs to (-1: none).
        size: Number of indices of the group.
    """

    values: NDArray[np.floating]
    axis: int
    where: list[NDArray[np.int64]]
    size: int

    @staticmethod
    def of(values: NDArray[np.floating], axis: int, expression: Axis, atom: Atom) -> Slices:
        """The slices of ``values`` along ``axis``, whose expression mentions ``atom``."""
        return Slices(values, axis, coordinates(expression, atom), atom.size)

    def gather(self, per_position: NDArray[np.floating]) -> NDArray[np.float64]:
        """Sums one number per position of the axis into one per index."""
        total = np.zeros(self.size)
        for index in self.where:
            used = index >= 0
            total += np.bincount(index[used], weights=per_position[used], minlength=self.size)
        return total

    def covered(self) -> NDArray[np.bool_]:
        """Which indices of the group have any position on this axis."""
        return self.gather(np.ones(self.values.shape[self.axis])) > 0

    def power_sums(self, power: int) -> NDArray[np.float64]:
        """For each index the sum of ``|w| ** power`` (1 or 2) over its values, in float64."""
        lead = int(np.prod(self.values.shape[: self.axis]))
        cube = self.values.reshape(lead, self.values.shape[self.axis], -1)
        if power == 1:
            return self.gather(np.abs(cube).sum(axis=(0, 2), dtype=np.float64))
        return self.gather(np.einsum("ijk,ijk->j", cube, cube).astype(np.float64))

    def rows(self) -> NDArray[np.float64]:
        """Matrix ``[size, features]``: the values of each index in one row; a single occurrence only."""
        index = self.where[0]
        flat = np.moveaxis(self.values, self.axis, 0).reshape(self.values.shape[self.axis], -1)
        used = np.flatnonzero(index >= 0)
        order = used[np.argsort(index[used], kind="stable")]
        return flat[order].reshape(self.size, -1).astype(np.float64)


class WeightScore(Protocol):
    """Scores the indices of a group by one of its weights; larger means more important."""

    def __call__(self, slices: Slices) -> NDArray[np.float64]: ...


def l1(slices: Slices) -> NDArray[np.float64]:
    """Sum of magnitudes (Li et al. 2017, arXiv 1608.08710)."""
    return slices.power_sums(1)


def l2(slices: Slices) -> NDArray[np.float64]:
    """Euclidean norm."""
    return np.sqrt(slices.power_sums(2))


def geometric_median(slices: Slices) -> NDArray[np.float64]:
    """Sum of distances to all other filters: those near the median are replaceable (He et al. 2019, arXiv 1811.00250)."""
    rows = slices.rows()
    squared = (rows**2).sum(axis=1)
    distances = squared[:, None] + squared[None, :] - 2 * rows @ rows.T
    total: NDArray[np.float64] = np.sqrt(np.maximum(distances, 0)).sum(axis=1)
    return total


def redundancy(slices: Slices) -> NDArray[np.float64]:
    """How far a filter is from its nearest neighbour in angle; of two alike the smaller goes first and alone.

    Filters are visited from the largest norm down; each is scored by its norm times the sine of the angle to the most
    similar one visited before it.
    """
    rows = slices.rows()
    norms = np.linalg.norm(rows, axis=1)
    unit = rows / np.maximum(norms, 1e-12)[:, None]
    cosines = np.abs(unit @ unit.T)
    order = np.argsort(-norms, kind="stable")
    result = np.empty(len(rows))
    for rank, index in enumerate(order):
        nearest = cosines[index, order[:rank]].max(initial=0.0)
        result[index] = norms[index] * np.sqrt(max(0.0, 1.0 - min(nearest, 1.0) ** 2))
    return result


WEIGHT_SCORES: dict[str, Callable[[Slices], NDArray[np.float64]]] = {
    "l1": l1,
    "l2": l2,
    "geometric_median": geometric_median,
    "redundancy": redundancy,
}
