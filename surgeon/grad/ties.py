"""Parameters not all of whose numbers are free: some stay zero, some are one value in many places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

FIXED = 0


@dataclass(frozen=True)
class Tie:
    """What of a parameter stays as it is, and what moves together.

    Attributes:
        free: Which numbers may change, in the shape of the parameter.
        labels: In the same shape, the same number for what is one value, `FIXED` for what is not free; None where everything
            that is free moves by itself.
    """

    free: NDArray[np.bool_]
    labels: NDArray[np.int64] | None = None

    @staticmethod
    def of(values: Array, channels: Array | None = None, *, shared: bool) -> Tie:
        """What is zero stays so.

        Args:
            values: Of the parameter, or what its numbers stand for.
            channels: The channel of each number, broadcastable, where each has values of its own.
            shared: Whether equal numbers stay equal.
        """
        free = np.asarray(values != 0)
        if not shared:
            return Tie(free)
        _, labels = np.unique(np.asarray(values, np.float64), return_inverse=True)
        labels = labels.reshape(values.shape)
        if channels is not None:
            pairs = labels + (int(labels.max(initial=0)) + 1) * np.broadcast_to(channels, values.shape)
            labels = np.unique(pairs, return_inverse=True)[1].reshape(values.shape)
        return Tie(free, np.where(free, labels + 1, FIXED))

    def together(self, gradient: Array) -> Array:
        """The gradient with nothing for what stays as it is, and its mean over what is one value for each place of that."""
        if self.labels is None:
            return np.where(self.free, gradient, gradient.dtype.type(0))
        flat = self.labels.ravel()
        sums = np.bincount(flat, gradient.ravel())
        sums[FIXED] = 0
        means = sums / np.maximum(np.bincount(flat), 1)
        return np.asarray(means.astype(gradient.dtype)[self.labels])

    def same(self, values: Array) -> Array:
        """What is one value as the first of its places has it."""
        if self.labels is None:
            return values
        flat = self.labels.ravel()
        table = np.zeros(int(flat.max(initial=0)) + 1, values.dtype)
        table[flat[::-1]] = values.ravel()[::-1]
        return np.where(self.free, table[self.labels], values)

    def arranged(self, places: Array, shape: tuple[int, ...]) -> Tie:
        """The same for a parameter that is stored otherwise.

        Args:
            places: Where each number is among those that are stored, in the shape of these.
            shape: In which they are stored.
        """
        free = np.zeros(places.size, bool)
        free[places.ravel()] = self.free.ravel()
        if self.labels is None:
            return Tie(free.reshape(shape))
        labels = np.zeros(places.size, np.int64)
        labels[places.ravel()] = self.labels.ravel()
        return Tie(free.reshape(shape), labels.reshape(shape))
