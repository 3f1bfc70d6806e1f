"""Even allocation: every group loses the same fraction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from surgeon.allocate.totals import overshoots, total
from surgeon.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from surgeon.allocate.candidate import Candidate
    from surgeon.cost import CostModel


def level(candidates: Sequence[Candidate], cost: CostModel, limits: NDArray[np.float64]) -> list[int] | None:
    """How many indices of each candidate stay; None when the limits (one per kind of cost) cannot be met."""
    kept = _bisect(candidates, [each.step for each in candidates], cost, limits)
    if kept is None or not overshoots(total(candidates, kept, cost), limits):
        return kept
    return _bisect(candidates, [each.fine_step for each in candidates], cost, limits)


def _bisect(
    candidates: Sequence[Candidate], steps: Sequence[int], cost: CostModel, limits: NDArray[np.float64]
) -> list[int] | None:
    """The least ratio of every group that meets the limits, then what of it turns out to be unnecessary."""

    def kept_at(ratio: float) -> list[int]:
        return [each.at_ratio(ratio, step) for each, step in zip(candidates, steps, strict=True)]

    def met(kept: Sequence[int]) -> bool:
        return bool(np.all(total(candidates, kept, cost) <= limits))

    low, high = 0.0, 1.0
    if met(kept_at(low)):
        return kept_at(low)
    if not met(kept_at(high)):
        return None
    while kept_at(low) != kept_at(high) and high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (low, middle) if met(kept_at(middle)) else (middle, high)
    kept, more = kept_at(high), kept_at(low)
    tally = Tally(cost, [each.atom for each in candidates])
    for each, count in zip(candidates, kept, strict=True):
        tally.shrink(each.atom, float(count))
    for k, each in enumerate(candidates):
        if more[k] > kept[k] and np.all(tally.totals - tally.gain(each.atom, float(more[k])) <= limits):
            tally.shrink(each.atom, float(more[k]))
            kept[k] = more[k]
    return kept
