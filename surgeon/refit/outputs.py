"""How far a graph's outputs are from the original's on held-out samples: what better blocks are worth in the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from surgeon.grad.rows import for_any_shape, rows_are_apart
from surgeon.grad.samples import Samples
from surgeon.graph.copy import copy_of
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.graph.shapes import infer
from surgeon.refit.turns import depending

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from surgeon.reference import Reference

    Array = NDArray[Any]

SHARES = (1.0, 1 / 2, 1 / 4)  # of the way from where weights were to where they are
FLOOR = 1e-2  # of the mean square: the variance of few samples may be next to nothing
TINY = 1e-12


@dataclass(frozen=True)
class Outcome:
    """What was made of all that was learned.

    Attributes:
        before: The error of the outputs at the start, as :meth:`Outputs.error` has it; NaN where it cannot be told.
        after: At the end.
        share: How much of the way weights went; 0 where the outputs would be worse even after a quarter of it.
    """

    before: float
    after: float
    share: float


class Outputs:
    """The outputs of a graph, whose weights change, beside the original's.

    Args:
        graph: The smaller graph; it is looked at anew every time.
        reference: What it should compute.
        feeds: Batches of inputs.
        held: Says which of the samples were held out.
        threads: Threads for onnxruntime.
    """

    def __init__(
        self,
        graph: gs.Graph,
        reference: Reference,
        feeds: Sequence[Mapping[str, Array]],
        held: Callable[[Samples], Array],
        threads: int = 1,
    ) -> None:
        self.graph, self.reference, self.threads = graph, reference, threads
        graphs = (graph, reference.graph)
        inputs = sorted({tensor.name for each in graphs for tensor in each.inputs})
        numbers = set.intersection(*(_numbers(each) for each in graphs))
        self.names = [tensor.name for tensor in graph.outputs if tensor.name in numbers]
        self.held = np.zeros(0, np.int64)
        if not self.names:
            return

        def get(name: str, batch: int) -> Array:
            return feeds[batch][name]

        samples = Samples.of(inputs, get, len(feeds), rows=True)
        if not all(rows_are_apart(each, samples, threads) for each in self._graphs()):
            samples = Samples.of(inputs, get, len(feeds), rows=False)
        self.samples = samples
        self.held = held(samples)

    def error(self) -> float:
        """The squared distance from the original's outputs, relative to their variance; of integers, the share that differ.

        The mean over outputs that can be compared, which depend on the inputs and are tensors of a type that numpy has; NaN if
        there are none, or no samples were held out.
        """
        if not len(self.held):
            return float("nan")
        runs = [
            session(to_model(for_any_shape(each, self.samples)), threads=self.threads)
            for each in self._graphs()
        ]
        sums: list[Array] = [np.zeros(6)] * len(self.names)
        for _, feeds in self.samples.take(self.held, max(self.samples.sizes)):
            both = zip(*(run(each, feeds) for each in runs), strict=True)
            sums = [total + _compared(*each) for total, each in zip(sums, both, strict=True)]
        errors = [
            distance / max(square - total**2 / max(count, 1), FLOOR * square, TINY) + wrong / size
            for distance, count, total, square, wrong, size in sums
            if size
        ]
        return float(np.mean(errors)) if errors else float("nan")

    def _graphs(self) -> list[gs.Graph]:
        """Both as they are now, with what can be compared as outputs, in the same order."""
        copies = [copy_of(graph) for graph in (self.graph, self.reference.graph)]
        for each in copies:
            made = {tensor.name: tensor for tensor in each.outputs}
            each.outputs = [made[name] for name in self.names]
        return copies

    def settle(self, before: float, start: Sequence[tuple[gs.Constant, Array]]) -> Outcome:
        """Let weights go as far as the outputs are no worse than before: all of the way, half, a quarter, or back.

        Args:
            before: The error before.
            start: Constants that were changed, and what they were.
        """
        if not np.isfinite(before):
            return Outcome(before, self.error(), 1.0)
        ends = [constant.values for constant, _ in start]
        for share in SHARES:
            if share < 1:
                for (constant, old), end in zip(start, ends, strict=True):
                    constant.values = (old + share * (end - old)).astype(old.dtype)
            after = self.error()
            if after < before or (
                after == before and share == 1
            ):  # of rounded weights part of the way may be none
                return Outcome(before, after, share)
        for constant, old in start:
            constant.values = old
        return Outcome(before, before, 0.0)


def _numbers(graph: gs.Graph) -> set[str]:
    """Names of the outputs that are tensors of numbers, or of flags, as numpy knows them."""
    kinds = infer(graph).dtypes
    named = {tensor.name for tensor in graph.outputs} & depending(graph) & kinds.keys()
    return {
        name for name in named if np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kinds[name])).kind in "fiub"
    }


def _compared(ours: Array, theirs: Array) -> Array:
    """What two arrays have to do with each other.

    Returns:
        Of numbers that are finite in both: the squared distance, how many, their sum and that of their squares. Of all: how
        many differ that are integers, or that are finite in one alone, or infinite in another way, and how many there are. All
        of them differ where there are more or fewer, as of boxes that were found.
    """
    size = theirs.size
    if ours.shape != theirs.shape:
        return np.array([0, 0, 0, 0, size, size], float)
    if theirs.dtype.kind != "f":
        return np.array([0, 0, 0, 0, (ours != theirs).sum(), size], float)
    finite = np.isfinite(ours) & np.isfinite(theirs)
    same = finite | (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    one, two = ours[finite].astype(np.float64), theirs[finite].astype(np.float64)
    sums = [np.square(one - two).sum(), two.size, two.sum(), np.square(two).sum()]
    return np.array([*sums, size - same.sum(), size], float)
