"""Which gaps to make: the one with the least error for what it saves, again and again, until a target is met.

The error of a gap as it is ranks all of them; those that look best are then measured closely, with what is behind them
refitted. A close measurement mostly only grows with what else is left out, so before each choice only those that still look
best are measured again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon_passes.dropping.gaps import Gap, Wires

    Array = NDArray[Any]
    Measure = Callable[[Sequence["Gap"]], float]
    Feeds = Sequence[Mapping[str, Array]]

TINY = 1e-12
SHORTLIST = 24  # gaps that are measured closely at a time


@dataclass
class Search:
    """A greedy search.

    Args:
        wires: Of the graph as it was.
        gaps: What can be left out.
        rough: The error of the outputs without some of them.
        close: The same, with what is behind them refitted.
        progress: Called with 1 after each measurement.

    Attributes:
        alone: The rough error of each gap alone.
        refitted: The first close error of those that were measured, with what had been chosen by then.
        chosen: Those that are made, in the order they were chosen.
        error: The close error with all of them.
    """

    wires: Wires
    gaps: Sequence[Gap]
    rough: Measure
    close: Measure
    progress: Callable[[int], None] = lambda _: None
    alone: dict[Gap, float] = field(default_factory=dict)
    refitted: dict[Gap, float] = field(default_factory=dict)
    chosen: list[Gap] = field(default_factory=list)
    error: float = 0.0

    def run(self, needed: float) -> bool:
        """Leave out until so many multiply-accumulates are saved; False where there is nothing left to leave out."""
        for gap in self.gaps:
            self.alone[gap] = self.rough([gap])
            self.progress(1)
        waiting = sorted(
            (gap for gap in self.gaps if np.isfinite(self.alone[gap])),
            key=lambda gap: self.alone[gap] / min(gap.macs, needed),
        )
        known: dict[Gap, float] = {}
        pool: list[Gap] = []
        while (missing := needed - self._saved(self.chosen)) > TINY * needed:
            fresh: set[Gap] = set()
            pool = self._useful(pool, needed - missing)
            while not pool:
                if not waiting:
                    return False
                pool, waiting = self._useful(waiting[:SHORTLIST], needed - missing), waiting[SHORTLIST:]
                known.update({gap: self._measured(gap) for gap in pool})
                pool = [gap for gap in pool if np.isfinite(known[gap])]
                fresh = set(pool)
            best = self._best(pool, known, fresh, missing)
            self.chosen.append(best)
            self.error = known[best]
        self._restore(needed)
        return True

    def _useful(self, gaps: Sequence[Gap], saved: float) -> list[Gap]:
        """Those that still save something, and whose tensor is still computed."""
        gone = {gap.tensor for gap in self.chosen}
        return [
            gap
            for gap in gaps
            if gap.tensor not in gone and self._saved([*self.chosen, gap]) - saved > TINY * gap.macs
        ]

    def _best(self, pool: Sequence[Gap], known: dict[Gap, float], fresh: set[Gap], missing: float) -> Gap:
        """The cheapest for what it saves of what is missing, measured with what has been left out already."""
        saved = self._saved(self.chosen)
        worth = {gap: self._saved([*self.chosen, gap]) - saved for gap in pool}

        def price(gap: Gap) -> float:
            return max(known[gap] - self.error, 0.0) / min(worth[gap], missing)

        while True:
            best = min(pool, key=price)
            if best in fresh:
                return best
            known[best] = self._measured(best)
            fresh.add(best)

    def _restore(self, needed: float) -> None:
        """Take back what turns out not to be necessary, the last ones first."""
        for gap in list(self.chosen[::-1]):
            others = [each for each in self.chosen if each is not gap]
            if others and self._saved(others) >= needed * (1 - TINY):
                self.chosen = others
                self.error = self.close(others)

    def _saved(self, gaps: Sequence[Gap]) -> float:
        return self.wires.saved(replacements(gaps))

    def _measured(self, gap: Gap) -> float:
        self.progress(1)
        error = self.close([*self.chosen, gap])
        self.refitted.setdefault(gap, error)
        return error


def replacements(gaps: Sequence[Gap]) -> dict[str, str]:
    """What stands for each tensor that is not computed any more."""
    return {gap.tensor: gap.source for gap in gaps}
