"""Tables of values as what weights may be, for a whole weight or for each of its outputs, and zeros that stay."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.refit.rounding import near
from surgeon.refit.support import on_support, with_bias

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from surgeon.refit.constrained import Constraint
    from surgeon.refit.rounding import Allowed

    Array = NDArray[Any]
    Matrix = NDArray[np.float64]
    Places = NDArray[np.int64]
    Flags = NDArray[np.bool_]

SWEEPS = 2


@dataclass(frozen=True)
class Table:
    """Values as what weights may be; see `surgeon.refit.rounding.Allowed`.

    Attributes:
        values: ``[groups or 1, outputs or 1, values]``, ascending.
    """

    values: Matrix

    def nearest(self, weights: Matrix, rows: Any = slice(None)) -> Matrix:
        """The nearest values, ``[groups, rows, outputs]``."""
        del rows
        places = self.places(weights)
        if self.values.shape[:2] == (1, 1):
            return np.asarray(self.values[0, 0][places])
        whole = np.broadcast_to(self.values, (weights.shape[0], weights.shape[2], self.values.shape[2]))
        return np.take_along_axis(whole.swapaxes(1, 2), places, axis=1)

    def places(self, weights: Matrix) -> Places:
        """Which value of its table is nearest to each weight, ``[groups, rows, outputs]``."""
        middle = (self.values[..., 1:] + self.values[..., :-1]) / 2
        if middle.shape[:2] == (1, 1):
            return np.asarray(np.searchsorted(middle[0, 0], weights))
        found = np.zeros(weights.shape, np.int64)
        for k in range(middle.shape[2]):
            found += weights > middle[:, None, :, k]
        return found

    def arranged(self, order: NDArray[np.int64]) -> Table:
        """The same: all rows have the same values."""
        del order
        return self


@dataclass(frozen=True)
class Keeping:
    """The constraint that weights are allowed numbers, and zero in given places; see `surgeon.refit.constrained.Constraint`.

    Attributes:
        inner: The numbers; None for any.
        support: Where weights may differ from zero, ``[groups, inputs, outputs]``; None for everywhere.
        ordered: Whether the inputs with the largest mean square come first.
        sweeps: How often all weights are visited again.
    """

    inner: Allowed | None
    support: Flags | None
    ordered: bool = True
    sweeps: int = SWEEPS

    @property
    def together(self) -> bool:
        """Each group may be taken alone."""
        return False

    def nearest(self, weights: Matrix, rows: Any = slice(None)) -> Matrix:
        """The allowed numbers nearest to some rows of the weights, ``[groups, rows, outputs]``."""
        found = weights if self.inner is None else self.inner.nearest(weights, rows)
        return found if self.support is None else np.where(self.support[:, rows], found, 0.0)

    def arranged(self, order: NDArray[np.int64]) -> Keeping:
        """The same for rows in another order, ``[groups, rows]``."""
        support = self.support
        if support is not None:
            support = np.take_along_axis(support, order[:, :, None], axis=1)
        inner = None if self.inner is None else self.inner.arranged(order)
        return replace(self, inner=inner, support=support)

    def __call__(self, ideal: Matrix, hessian: Matrix) -> Matrix:
        """Allowed weights near to ``ideal``, ``[groups, inputs + 1, outputs]``, the bias last, which is free."""
        if self.support is not None:
            ideal = on_support(ideal, hessian, with_bias(self.support), ideal)
        if self.inner is None:
            return ideal
        return near(self, ideal, hessian, ordered=self.ordered, sweeps=self.sweeps)


@dataclass(frozen=True)
class OfTable:
    """A constraint on where weights are zero, and what is not zero is a value of a table.

    Attributes:
        zeros: Finds the zeros.
        table: ``[groups or 1, outputs or 1, values]``, ascending.
        together: Whether zeros are counted over all groups.
    """

    zeros: Constraint
    table: Matrix
    together: bool

    def __call__(self, ideal: Matrix, hessian: Matrix) -> Matrix:
        """Weights near to ``ideal``, ``[groups, inputs + 1, outputs]``, the bias last, which is free."""
        support = self.zeros(ideal, hessian)[:, :-1] != 0
        return Keeping(Table(self.table), support)(ideal, hessian)


def table_of(values: Array, *, per_channel: bool) -> Matrix:
    """The different values of weights ``[groups, inputs, outputs]``, for `Table`."""
    exact = values.astype(np.float64)
    if not per_channel:
        return np.unique(exact)[None, None]
    groups, _, outputs = exact.shape
    columns = [[np.unique(exact[g, :, o]) for o in range(outputs)] for g in range(groups)]
    longest = max(len(each) for row in columns for each in row)
    return np.array([[np.pad(each, (0, longest - len(each)), "edge") for each in row] for row in columns])
