"""Importance scores: plain functions from the weights or activations of a group to one number per index.

A score of one's own is such a function, registered under the entry-point group ``surgeon.scores``: ``f(slices)`` ranks
by each weight of a group; wrapped in `Score` it can be given activations instead. Larger means more important. Only
ratios matter: what a score says of each tensor is scaled to mean 1 before `REDUCTIONS` join the tensors of a group. Scores
of gradients are the exception: they speak of a group as a whole, and groups are compared by what they say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from surgeon.axes import Axis, Coordinates, coordinates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from surgeon.axes import Atom

BLOCK = 1 << 22  # elements worked on at a time where a score needs a copy


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
    _sums: dict[int, NDArray[np.float64]] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def of(values: NDArray[np.floating], axis: int, expression: Axis, atom: Atom) -> Slices:
        """The slices of ``values`` along ``axis``, whose expression mentions ``atom``."""
        return Slices(values, axis, coordinates(expression, atom), atom.size)

    @staticmethod
    def along(values: NDArray[np.floating], axis: int, expression: Axis) -> Callable[[Atom], Slices]:
        """`of` for several atoms of one axis: what does not depend on the atom is done once."""
        found = Coordinates(expression)
        sums: dict[int, NDArray[np.float64]] = {}
        return lambda atom: Slices(values, axis, found.of(atom), atom.size, sums)

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
        """For each index the sum of ``|w| ** power`` (1 or 2) over its values."""
        if power not in self._sums:
            self._sums[power] = self._per_position(power)
        return self.gather(self._sums[power])

    def _per_position(self, power: int) -> NDArray[np.float64]:
        lead = int(np.prod(self.values.shape[: self.axis], dtype=np.int64))
        width = self.values.shape[self.axis]
        cube = self.values.reshape(lead, width, -1)
        total = np.zeros(width)
        step = max(1, BLOCK // max(cube[:1].size, 1))
        for start in range(0, lead, step):  # along the slowest axis, so that every block is contiguous
            total += _power_sums(cube[start : start + step], power)
        return total

    def rows(self) -> NDArray[np.floating]:
        """Matrix ``[size, features]``, fp32 or wider: the values of each index, by the group's first occurrence.

        Where a selection gives an index fewer positions than others, the rest of its row is zero.
        """
        index = self.where[0]
        flat = np.moveaxis(self.values, self.axis, 0).reshape(self.values.shape[self.axis], -1)
        order = np.argsort(index, kind="stable")[np.count_nonzero(index < 0) :]
        owner = index[order]
        first = np.searchsorted(owner, owner)
        most = int((np.arange(len(owner)) - first).max(initial=-1)) + 1
        rows = np.zeros((self.size, most, flat.shape[1]), np.promote_types(flat.dtype, np.float32))
        rows[owner, np.arange(len(owner)) - first] = flat[order]
        return rows.reshape(self.size, -1)


def _power_sums(cube: NDArray[np.floating], power: int) -> NDArray[np.float64]:
    """Sums over the first and last axis, in the weights' precision but at least fp32; rows are added up first."""
    lead, width, tail = cube.shape
    block = cube.astype(np.float32) if cube.dtype.itemsize < 4 else cube
    if lead == 1:
        found = np.einsum("jk,jk->j", block[0], block[0]) if power == 2 else np.abs(block[0]).sum(axis=1)
        return np.asarray(found, dtype=np.float64)
    flat = block.reshape(lead, width * tail)
    summed = np.einsum("ij,ij->j", flat, flat) if power == 2 else np.abs(flat).sum(axis=0)
    return np.asarray(summed.reshape(width, tail).sum(axis=1, dtype=np.float64))


@dataclass(frozen=True)
class Activity:
    """What calibration data say of one activation tensor, per index of a group.

    Attributes:
        squares: Sum of the squared activations ``[size]``.
        nonzeros: How many activations were not zero ``[size]``.
        count: How many there were in all ``[size]``.
    """

    squares: NDArray[np.float64]
    nonzeros: NDArray[np.float64]
    count: NDArray[np.float64]


@dataclass(frozen=True)
class Slopes:
    """How the loss of each sample changes as an index of a group fades from everything that reads it.

    The slope of a sample is the sum of activation times gradient over all places at which operators sum over the index.

    Attributes:
        magnitudes: Sum over samples of the slope's magnitude ``[size]``.
        squares: Sum over samples of its square ``[size]``.
        count: Samples.
    """

    magnitudes: NDArray[np.float64]
    squares: NDArray[np.float64]
    count: float

    def joined(self, other: Slopes) -> Slopes:
        """Over both sets of samples."""
        return Slopes(
            self.magnitudes + other.magnitudes, self.squares + other.squares, self.count + other.count
        )


Function: TypeAlias = "Callable[..., NDArray[np.floating]]"


@dataclass(frozen=True)
class Score:
    """A score and what it looks at.

    Attributes:
        function: Gives one number per index, ``[size]``.
        over: What it is called with. ``weights``: `Slices` of each weight of the group; ``scales``: of each
            BatchNormalization scale; ``activations``: `Activity` of each activation that a consumer of the group reads;
            ``consumers``: `Slices` of each weight that is multiplied with them, arranged with the positions of the
            activations first, and the norm ``[positions]`` of the activations at these positions; ``gradients``: `Slopes`
            of the group, and the answer is in squared units of the loss, which are compared between groups as they are.
    """

    function: Function
    over: Literal["weights", "scales", "activations", "consumers", "gradients"] = "weights"

    def __call__(self, *evidence: object) -> NDArray[np.floating]:
        """The function's answer."""
        return self.function(*evidence)


def l1(slices: Slices) -> NDArray[np.float64]:
    """Sum of magnitudes (Li et al. 2017, arXiv 1608.08710)."""
    return slices.power_sums(1)


def l2(slices: Slices) -> NDArray[np.float64]:
    """Euclidean norm."""
    return np.sqrt(slices.power_sums(2))


def bn_scale(slices: Slices) -> NDArray[np.float64]:
    """Magnitude of a BatchNormalization's scale (network slimming, Liu et al. 2017, arXiv 1708.06519)."""
    return slices.power_sums(1)


def geometric_median(slices: Slices) -> NDArray[np.float64]:
    """Sum of distances to all other filters: those near the median are replaceable (He et al. 2019, 1811.00250)."""
    rows = slices.rows()
    rows -= rows.mean(axis=0)  # distances stay, and what is squared below gets small
    squared = np.einsum("ij,ij->i", rows, rows)
    result = np.empty(len(rows))
    for here in _blocks(len(rows)):
        distances = squared[here, None] + squared[None, :] - 2 * rows[here] @ rows.T
        result[here] = np.sqrt(np.maximum(distances, 0)).sum(axis=1)
    return result


def redundancy(slices: Slices) -> NDArray[np.float64]:
    """How far a filter is from its nearest neighbour in angle; of two alike the smaller goes first and alone.

    Filters are visited from the largest norm down; each is scored by its norm times the sine of the angle to the most
    similar one visited before it.
    """
    rows = slices.rows()
    norms = np.linalg.norm(rows, axis=1)
    order = np.argsort(-norms, kind="stable")
    unit = rows[order] / np.maximum(norms[order], 1e-12)[:, None]
    result = np.empty(len(rows))
    for here in _blocks(len(rows)):
        cosines = np.abs(unit[here] @ unit[: here.stop].T)
        before = np.tril(cosines, k=here.start - 1)  # column j was visited before row i
        nearest = np.minimum(before.max(axis=1, initial=0.0), 1.0)
        result[order[here]] = norms[order[here]] * np.sqrt(1.0 - nearest**2)
    return result


def _blocks(size: int) -> list[slice]:
    """Rows of a ``size`` by ``size`` matrix, as many at a time as fit a block."""
    step = max(1, BLOCK // max(size, 1))
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def activation_norm(activity: Activity) -> NDArray[np.float64]:
    """Euclidean norm of what the group's consumers read."""
    return np.sqrt(activity.squares)


def apoz(activity: Activity) -> NDArray[np.float64]:
    """One minus the average percentage of zeros in what consumers read (Hu et al. 2016, arXiv 1607.03250)."""
    return activity.nonzeros / np.maximum(activity.count, 1.0)


def wanda(slices: Slices, norms: NDArray[np.float64]) -> NDArray[np.float64]:
    """``|w| * norm of x``, summed over what an index contributes to (Sun et al. 2024, arXiv 2306.11695)."""
    per_position = Slices(slices.values, slices.axis, [np.arange(len(norms))], len(norms)).power_sums(1)
    return slices.gather(per_position * norms)


def taylor(slopes: Slopes) -> NDArray[np.float64]:
    """Square of the mean magnitude of a sample's first-order change of the loss (Molchanov et al. 2017, 1611.06440).

    The square is that of Molchanov et al. 2019 (arXiv 1906.10771), whose sum of weight times gradient this is as well.
    """
    return np.square(slopes.magnitudes / max(slopes.count, 1.0))


def fisher(slopes: Slopes) -> NDArray[np.float64]:
    """Half the mean square of the slope: the loss of removal to second order (Theis et al. 2018, arXiv 1801.05787).

    Optimal brain damage (LeCun et al. 1990) with the Fisher information for the Hessian.
    """
    return 0.5 * slopes.squares / max(slopes.count, 1.0)


SCORES: dict[str, Score] = {
    "l1": Score(l1),
    "l2": Score(l2),
    "bn_scale": Score(bn_scale, "scales"),
    "geometric_median": Score(geometric_median),
    "redundancy": Score(redundancy),
    "activation_norm": Score(activation_norm, "activations"),
    "apoz": Score(apoz, "activations"),
    "wanda": Score(wanda, "consumers"),
    "taylor": Score(taylor, "gradients"),
    "fisher": Score(fisher, "gradients"),
}

#: Join the scores of a group's tensors, ``[tensors, size]`` with NaN where a tensor does not have an index, to ``[size]``.
REDUCTIONS: dict[str, Callable[[NDArray[np.float64]], NDArray[Any]]] = {
    "mean": lambda scores: np.nanmean(scores, axis=0),
    "max": lambda scores: np.nanmax(scores, axis=0),
    "sum": lambda scores: np.nansum(scores, axis=0),
}
