"""Trying a changed graph: batches by what they are for, a quick refit, and what of a change arrives at the outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.refit.fit import Effort
from surgeon.refit.sampling import Places

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Batch = Mapping[str, Array]

QUICK_PLACES = Places(per_input=6, fewest=3000, limit_bytes=2**27)
QUICK = Effort(strengths=(1e-2,), steps=0)
JUDGED = 6  # one batch of so many only judges, where there are that many
TINY = 1e-12


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


class Comparison:
    """The error of the outputs of changed graphs.

    Args:
        graph: The graph as it was.
        feeds: Batches to compare on.
        threads: Threads for onnxruntime.
    """

    def __init__(self, graph: gs.Graph, feeds: Sequence[Batch], threads: int) -> None:
        self.feeds, self.threads = feeds, threads
        self.truth = self._run(graph)

    def __call__(self, graph: gs.Graph) -> float:
        """The squared error of the outputs over their variance, the mean of all outputs; for integers how many differ."""
        pairs = zip(zip(*self.truth, strict=True), zip(*self._run(graph), strict=True), strict=True)
        errors = [_error(theirs, ours) for theirs, ours in pairs]
        return float(np.mean(errors)) if errors else 0.0

    def _run(self, graph: gs.Graph) -> list[list[Array]]:
        runner = session(to_model(graph), threads=self.threads)
        return [run(runner, batch) for batch in self.feeds]


def _error(theirs: Sequence[Array], ours: Sequence[Array]) -> float:
    """Of one output in all batches; infinite where it is not what it was in kind."""
    if any(a.shape != b.shape for a, b in zip(theirs, ours, strict=True)):
        return float("inf")
    if theirs[0].dtype.kind != "f":
        same = [np.asarray(a == b).ravel() for a, b in zip(theirs, ours, strict=True)]
        return 1.0 - float(np.concatenate(same).mean())
    first, second = (
        np.concatenate([each.ravel() for each in some]).astype(np.float64) for some in (theirs, ours)
    )
    there = np.isfinite(first)
    if not np.isfinite(second[there]).all():
        return float("inf")
    spread = np.square(first[there] - _means(theirs).ravel()[there]).sum()
    return float(np.square(first[there] - second[there]).sum() / max(float(spread), TINY))


def _means(arrays: Sequence[Array]) -> Array:
    """The mean over samples of each element, where all samples have one shape; else that of everything."""
    if arrays[0].ndim and len({each.shape[1:] for each in arrays}) == 1:
        whole = np.concatenate(arrays).astype(np.float64)
        mean = whole.mean(axis=0, keepdims=True) if len(whole) > 1 else whole.mean()
        return np.asarray(np.broadcast_to(mean, whole.shape))
    flat = np.concatenate([each.ravel() for each in arrays]).astype(np.float64)
    return np.full(flat.shape, flat.mean())
