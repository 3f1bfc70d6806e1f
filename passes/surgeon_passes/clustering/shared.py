"""Which weights of a model share values, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.refit.codebook import Codebook
from surgeon.stats.weight import is_shared, sortable, weight_values

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from surgeon.refit.kmeans import Start
    from surgeon.stats.linear import Linear
    from surgeon.stats.matrices import Weight


@dataclass(frozen=True)
class Shared:
    """The weights of one graph.

    Attributes:
        weights: Where they are.
        values: How many different ones there may be.
        per_channel: Whether for each output channel.
        keep_zeros: Whether zeros stay.
        start: How k-means starts.
        seed: Of what is random in that.
    """

    weights: Sequence[Weight]
    values: int
    per_channel: bool
    keep_zeros: bool
    start: Start
    seed: int

    def share(self) -> None:
        """Give every weight the nearest of the values that k-means finds."""
        for weight in self.weights:
            whole = weight.matrices()
            flat = whole.reshape(whole.shape[0], -1, whole.shape[3]).astype(np.float64)
            book = self._book(flat)
            found = book.allowed(book.table(flat, np.ones_like(flat))).nearest(flat)
            weight.set(found.reshape(whole.shape))

    def constrain(self) -> Callable[[Linear], Codebook | str]:
        """The constraint on each product; it goes by the zeros that there are now."""
        known = {(id(weight.node), weight.index): weight_values(weight.tensor) for weight in self.weights}

        shared = {(id(each.node), each.index) for each in self.weights if is_shared(each.tensor)}

        def constraint(view: Linear) -> Codebook | str:
            key = (id(view.op.node), view.weight)
            values = known.get(key)
            if values is None:
                return "its weight stays as it is"
            if key in shared:
                return "its weight is shared"
            return self._book(view.matrices(view.op.node, values))

        return constraint

    def counted(self) -> list[tuple[Weight, int]]:
        """The weights with the number of their different values, or of the output channel that has most."""
        return [(weight, self._count(weight.matrices())) for weight in self.weights]

    def _count(self, values: NDArray[Any]) -> int:
        values = sortable(values)
        if not self.per_channel:
            return len(np.unique(values))
        channels = np.moveaxis(values, 3, 1).reshape(values.shape[0] * values.shape[3], -1)
        ordered = np.sort(channels, axis=1)
        return int((np.diff(ordered, axis=1) != 0).sum(axis=1).max()) + 1

    def _book(self, values: NDArray[Any]) -> Codebook:
        zeros = (values == 0) if self.keep_zeros else np.zeros(values.shape, bool)
        return Codebook(self.values, self.per_channel, zeros, self.start, self.seed)
