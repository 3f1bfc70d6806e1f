"""Costs of a cut as vectors, in the order of `surgeon.tally.KINDS`, against limits of which some are infinite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from surgeon.tally import KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from surgeon.allocate.candidate import Candidate
    from surgeon.cost import CostModel

OVERSHOOT = 0.02


def total(candidates: Sequence[Candidate], kept: Sequence[int], cost: CostModel) -> NDArray[np.float64]:
    """The cost when so many indices of each candidate are kept."""
    after = cost.evaluate({each.atom: float(count) for each, count in zip(candidates, kept, strict=True)})
    return np.array([getattr(after, kind) for kind in KINDS])


def overshoots(totals: NDArray[np.float64], limits: NDArray[np.float64]) -> bool:
    """Whether more has gone than any target asks for."""
    bounded = np.isfinite(limits)
    return bool(np.all(totals[bounded] < limits[bounded] * (1 - OVERSHOOT)))
