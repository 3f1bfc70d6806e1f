"""Trying a changed graph: batches by what they are for, and how little of a refit is enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from surgeon.refit.fit import Effort
from surgeon.refit.sampling import Places

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]
    Batch = Mapping[str, Array]

QUICK_PLACES = Places(per_input=6, fewest=3000, limit_bytes=2**27)
QUICK = Effort(strengths=(1e-2,), steps=0)
JUDGED = 6  # one batch of so many only judges, where there are that many


@dataclass(frozen=True)
class Feeds:
    """Calibration batches by what they are for.

    Attributes:
        trial: Those that what is behind a gap is quickly refitted to.
        judge: Those that gaps are judged by; others than the trials' where there are several.
        fit: Those of the refit in the end; not the judge's where there are enough others.
    """

    trial: list[Batch]
    judge: list[Batch]
    fit: list[Batch]

    @staticmethod
    def of(batches: Sequence[Batch], trials: int) -> Feeds:
        """Divide batches.

        Args:
            batches: All of them.
            trials: Samples for trials, about half of which judge.
        """
        count, samples = 0, 0
        while count < len(batches) and samples < trials:
            samples += max((len(array) for array in batches[count].values() if array.ndim), default=1)
            count += 1
        count = min(max(count, 2), len(batches))
        judging = min(count // 2, max(1, len(batches) // JUDGED))
        first = count - count // 2
        trial, judge = list(batches[:first]), list(batches[first : first + judging])
        alone = judging * JUDGED <= len(batches)
        fit = [*trial, *batches[first + judging :]] if alone else [*batches]
        return Feeds(trial, judge or trial, fit)
