"""What is looked at: places of an operator's output, those held out, and the arrays found there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.refit.fit import Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from surgeon.refit.through import Activation
    from surgeon.stats.linear import Linear, Read

    Array = NDArray[Any]

HELD_OUT = 0.15
RUN = 64
VARIED = 97  # seeds what is held out of batches with variants
COPIES = 4  # of the results at each place: wanted, added, predicted, judged


@dataclass(frozen=True)
class Places:
    """How many places of an operator's output are looked at.

    Attributes:
        per_input: For each input of its product ...
        fewest: ... and at least these; where there are groups, each has its own few weights to find, so fewer do ...
        entries: ... as long as they are no more numbers than these.
        limit_bytes: Never more than fit in this.
    """

    per_input: int = 60
    fewest: int = 120_000
    entries: int = 18_000_000
    limit_bytes: int = 2**29

    def wanted(self, groups: int, inputs: int, outputs: int) -> int:
        """Places for one operator in all batches; results are held in several forms."""
        few = min(self.fewest, self.entries // inputs)
        asked = max(few // min(groups, 20), self.per_input * inputs)
        return max(2, min(asked, self.limit_bytes // (4 * groups * (inputs + COPIES * outputs))))

    def times(self, factor: int) -> Places:
        """So many times as many places, and numbers."""
        return replace(
            self,
            per_input=factor * self.per_input,
            fewest=factor * self.fewest,
            entries=factor * self.entries,
        )

    def limited(self, limit_bytes: int) -> Places:
        """The same, within a quarter of what activations may take."""
        return replace(self, limit_bytes=min(self.limit_bytes, max(limit_bytes // 4, 2**20)))


@dataclass
class Draw:
    """Random places, batch by batch; the same for the same seed, whatever happens to other operators.

    Attributes:
        random: Draws them.
        places: How many.
        batches: Of how many batches.
        more: How many further ones there are that are variants of these, in the same order, over and over. Places are drawn of
            them only where the first have too few; what is held out is so with all its variants, place by place.
    """

    random: np.random.Generator
    places: Places
    batches: int
    more: int = 0

    def places_of(self, batch: int, total: int, width: tuple[int, int, int]) -> NDArray[np.int64]:
        """Some of the places of one batch, ascending.

        Args:
            batch: Its number.
            total: How many places it has.
            width: Groups, inputs and outputs of the operator.
        """
        chosen: NDArray[Any] = self.random.choice(total, self._share(batch, total, width), replace=False)
        return np.sort(chosen).astype(np.int64)

    def runs_of(self, batch: int, total: int, width: tuple[int, int, int]) -> NDArray[np.int64]:
        """As `places_of`, in runs: neighbours are made of the same places of the operator before."""
        wanted, runs = self._share(batch, total, width), -(-total // RUN)
        chosen = np.sort(self.random.choice(runs, min(-(-wanted // RUN), runs), replace=False))
        places: NDArray[Any] = (chosen[:, None] * RUN + np.arange(RUN)).ravel()
        return places[places < total].astype(np.int64)

    def visits(
        self, width: tuple[int, int, int], count: Callable[[int], int]
    ) -> Iterator[tuple[int, int, int]]:
        """The batches that are looked at; variants only where what they are variants of has too few places.

        Args:
            width: Groups, inputs and outputs of the operator.
            count: How many places a batch has.

        Yields:
            The number of a batch, the places of the one that it is, or is a variant of, and its own.
        """
        totals = [count(batch) for batch in range(self.batches)]
        for batch in range(self.batches + self.more):
            total = totals[batch % self.batches]
            if batch < self.batches:
                yield batch, total, total
            elif self._share(batch, total, width):
                yield batch, total, count(batch)

    def _share(self, batch: int, total: int, width: tuple[int, int, int]) -> int:
        """How many places of a batch are looked at."""
        wanted = self.places.wanted(*width) // self.batches + 1
        return max(0, min(wanted - batch // self.batches * total, total))

    def held_out(self, batch: int, places: NDArray[np.int64], total: int) -> NDArray[np.bool_]:
        """Whole batches where there are enough of them, else single places; never none or all of several.

        Args:
            batch: The number of a batch.
            places: Those that are looked at of it.
            total: How many the batch has that it is, or is a variant of.
        """
        batch, count = batch % self.batches, len(places)
        if self.batches >= 1 / HELD_OUT:
            every = int(1 / HELD_OUT)
            return np.full(count, batch % every == every - 1)
        if (total if self.more else count) < 2:
            return np.full(count, batch % 2 == 1)
        if self.more:
            chosen = np.random.default_rng((VARIED, batch)).permutation(total)
            return np.isin(places, chosen[: max(1, round(HELD_OUT * total))])
        flags = np.zeros(count, bool)
        flags[self.random.choice(count, max(1, round(HELD_OUT * count)), replace=False)] = True
        return flags


def gather(
    view: Linear,
    node: gs.Node,
    draw: Draw,
    width: tuple[int, int, int],
    read: Callable[[int], Read],
    wish: Callable[[int, NDArray[np.int64]], Array],
    *,
    other: str = "",
    through: Activation | None = None,
) -> Sample:
    """The arrays at drawn places of all batches.

    Args:
        view: The product.
        node: Its node in the graph that is being fitted.
        draw: Draws the places.
        width: Groups, inputs (the bias among them) and outputs.
        read: For each batch what reads the tensors of that graph.
        wish: What is wanted of a batch at some places, ``[groups, places, outputs]``, what is added included.
        other: The tensor that is added to the result, or ''.
        through: The activation behind.
    """
    xs, wishes, others, held = [], [], [], []
    for batch, total, count in draw.visits(width, lambda batch: view.count(read(batch))):
        places = draw.places_of(batch, count, width)
        rows = view.rows(node, read(batch), places).astype(np.float32)
        last = np.full((*rows.shape[:2], 1), view.bias is not None, rows.dtype)  # zeros: no bias to find
        xs.append(np.concatenate([rows, last], axis=2))
        wishes.append(wish(batch, places).astype(np.float32))
        if other:
            others.append(view.results(read(batch)(other), places, width[0]).astype(np.float32))
        held.append(draw.held_out(batch, places, total))
    whole = np.concatenate(wishes, axis=1)
    added = np.concatenate(others, axis=1) if others else None
    return Sample(
        np.concatenate(xs, axis=1),
        whole if added is None else whole - added,
        added,
        np.concatenate(held),
        through,
    )
