"""What is looked at: places of an operator's output, those held out, and the arrays found there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

HELD_OUT = 0.15
RUN = 64
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
    fewest: int = 80_000
    entries: int = 12_000_000
    limit_bytes: int = 2**29

    def wanted(self, groups: int, inputs: int, outputs: int) -> int:
        """Places for one operator in all batches; results are held in several forms."""
        few = min(self.fewest, self.entries // inputs)
        asked = max(few // min(groups, 20), self.per_input * inputs)
        return max(2, min(asked, self.limit_bytes // (4 * groups * (inputs + COPIES * outputs))))

    def limited(self, limit_bytes: int) -> Places:
        """The same, within a quarter of what activations may take."""
        return replace(self, limit_bytes=min(self.limit_bytes, max(limit_bytes // 4, 2**20)))


@dataclass
class Draw:
    """Random places, batch by batch; the same for the same seed, whatever happens to other operators."""

    random: np.random.Generator
    places: Places
    batches: int

    def places_of(self, total: int, groups: int, inputs: int, outputs: int) -> NDArray[np.int64]:
        """Some of the ``total`` places of one batch, ascending."""
        wanted = self.places.wanted(groups, inputs, outputs) // self.batches + 1
        chosen: NDArray[Any] = self.random.choice(total, min(wanted, total), replace=False)
        return np.sort(chosen).astype(np.int64)

    def runs_of(self, total: int, groups: int, inputs: int, outputs: int) -> NDArray[np.int64]:
        """As `places_of`, in runs: neighbours are made of the same places of the operator before."""
        wanted = self.places.wanted(groups, inputs, outputs) // self.batches + 1
        runs = -(-total // RUN)
        chosen = np.sort(self.random.choice(runs, min(-(-wanted // RUN), runs), replace=False))
        places: NDArray[Any] = (chosen[:, None] * RUN + np.arange(RUN)).ravel()
        return places[places < total].astype(np.int64)

    def held_out(self, batch: int, count: int) -> NDArray[np.bool_]:
        """Whole batches where there are enough of them, else single places; never none or all of several."""
        if self.batches >= 1 / HELD_OUT:
            every = int(1 / HELD_OUT)
            return np.full(count, batch % every == every - 1)
        if count < 2:
            return np.full(count, batch % 2 == 1)
        flags = np.zeros(count, bool)
        flags[self.random.choice(count, max(1, round(HELD_OUT * count)), replace=False)] = True
        return flags
