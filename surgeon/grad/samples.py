"""Samples to learn from: rows of several tensors at once, drawn anew for every step, whatever batches they came in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]
    Feeds = dict[str, Array]


@dataclass(frozen=True)
class Samples:
    """Some tensors of a dataset.

    Attributes:
        names: Of the tensors.
        get: Gives one batch of a tensor.
        sizes: How many samples each batch has. A batch whose samples cannot be told apart counts as one.
        rows: Whether the first axis of every tensor is that of the samples.
    """

    names: tuple[str, ...]
    get: Callable[[str, int], Array]
    sizes: tuple[int, ...]
    rows: bool

    @staticmethod
    def of(names: Sequence[str], get: Callable[[str, int], Array], batches: int, *, rows: bool) -> Samples:
        """Look at what there is.

        Args:
            names: Of the tensors.
            get: Gives one batch of a tensor.
            batches: How many there are.
            rows: Whether the graph keeps samples apart along the first axis of each of these tensors.
        """
        first = [get(name, 0).shape for name in names]
        sizes = []
        for batch in range(batches):
            shapes = [get(name, batch).shape for name in names]
            rows = rows and all(
                len(shape) > 0 and shape[0] == shapes[0][0] and shape[1:] == other[1:]
                for shape, other in zip(shapes, first, strict=True)
            )
            sizes.append(shapes[0][0] if shapes[0] else 1)
        return Samples(tuple(names), get, tuple(sizes) if rows else (1,) * batches, rows)

    def __len__(self) -> int:
        return sum(self.sizes)

    def split(self, share: float, random: np.random.Generator) -> tuple[Array, Array]:
        """Numbers of samples to learn from, and of a share to hold out; at least one each where there are two."""
        order = random.permutation(len(self))
        held = min(max(round(share * len(self)), 1), len(self) - 1)
        return np.sort(order[held:]), np.sort(order[:held])

    def take(self, numbers: Sequence[int] | Array, most: int) -> Iterator[tuple[int, Feeds]]:
        """Samples by number, in pieces of at most ``most``, each with how many it has."""
        chosen = np.asarray(numbers)
        if not self.rows:
            for number in chosen:
                yield 1, {name: self.get(name, int(number)) for name in self.names}
            return
        starts = np.cumsum((0, *self.sizes))
        for begin in range(0, len(chosen), most):
            part = np.sort(chosen[begin : begin + most])
            batches = np.searchsorted(starts, part, side="right") - 1
            piece = {}
            for name in self.names:
                rows = [
                    self.get(name, int(batch))[part[batches == batch] - starts[batch]]
                    for batch in np.unique(batches)
                ]
                piece[name] = rows[0] if len(rows) == 1 else np.concatenate(rows)
            yield len(part), piece


def drawn(numbers: Array, batch: int, seed: int, step: int) -> Array:
    """The samples of one step: every epoch goes through all of them in an order of its own.

    A batch that is not full when an epoch ends is filled from the next. Depends on nothing but its arguments, so that a
    run can be taken up at any step.
    """
    batch = min(batch, len(numbers))
    epoch, place = divmod(step * batch, len(numbers))
    chosen = _order(numbers, seed, epoch)[place : place + batch]
    if len(chosen) < batch:
        chosen = np.concatenate([chosen, _order(numbers, seed, epoch + 1)[: batch - len(chosen)]])
    return chosen


def _order(numbers: Array, seed: int, epoch: int) -> Array:
    return np.random.default_rng((seed, epoch)).permutation(numbers)
