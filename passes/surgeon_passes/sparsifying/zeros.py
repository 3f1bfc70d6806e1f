"""Zeros in a whole model: which weights get how many, step by step, and whether what the data say has helped."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.graph.copy import copy_of
from surgeon.graph.save import to_model
from surgeon.refit.fit import Effort
from surgeon.refit.settle import Settled, settle
from surgeon.refit.sparse import Score, Sparse
from surgeon.stats.compare import Outputs, output_errors
from surgeon.stats.weight import weight_values
from surgeon_passes.sparsifying.curves import Curve, curve_of_sizes, curves
from surgeon_passes.sparsifying.spread import spread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.passes import Graph
    from surgeon.reference import Reference
    from surgeon.refit.pattern import Pattern
    from surgeon.stats.data import Dataset
    from surgeon.stats.linear import Linear
    from surgeon.stats.matrices import Weight

    Feeds = Sequence[Mapping[str, NDArray[Any]]]

HELD = 0.125  # of the samples judge
EFFORT = Effort(strengths=(1e-3, 1e-2, 1e-1), steps=4)
RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
LOOKED_AT = 96  # samples by which it is seen what reaches the outputs


@dataclass
class Job:
    """One weight of a model.

    Attributes:
        weight: Where it is.
        sparsity: The fraction of its numbers that are to be zero in the end.
        allowed: Which may differ from zero, ``[groups, channels, taps, outputs]``.
    """

    weight: Weight
    sparsity: float
    allowed: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self.allowed = np.ones(self.weight.matrices().shape, bool)

    @property
    def key(self) -> tuple[int, int]:
        """The identity of its operator, and which input it is."""
        return id(self.weight.node), self.weight.index

    @property
    def label(self) -> str:
        """What reports call the operator; recurrent ones have two weights."""
        name = str(self.weight.node.name or self.weight.node.outputs[0].name)
        return f"{name}[{self.weight.index}]" if self.weight.node.op in RECURRENT else name

    def shrink(self, pattern: Pattern, share: float) -> None:
        """Set the smallest numbers to zero, as many as after a share of the steps."""
        values = self.weight.matrices()
        sizes = np.where(self.allowed, np.abs(values.astype(np.float64)), -1.0)
        self.weight.set(np.where(pattern.kept(sizes, self.sparsity * share) & self.allowed, values, 0))


@dataclass(frozen=True)
class Work:
    """What does not change from step to step.

    Attributes:
        pattern: Where zeros may be.
        score: How it is chosen which weights stay.
        shares: Which part of the zeros there are after each step.
        fitted: The samples that weights are fitted to; None to fit nothing.
        held: Those that judge.
        reference: What the model should compute.
        seed: Of the choice of places.
        threads: Threads for onnxruntime.
        limit_bytes: Activations held in memory, per model.
    """

    pattern: Pattern
    score: Score
    shares: Sequence[float]
    fitted: Dataset | None
    held: Dataset | None
    reference: Reference
    seed: int
    threads: int
    limit_bytes: int

    def feeds(self) -> Feeds:
        """The batches that weights are fitted to."""
        return [] if self.fitted is None else [feeds for feeds, _ in self.fitted]

    def allocate(self, graph: Graph, jobs: Sequence[Job], progress: Callable[[int], None]) -> None:
        """Let those weights have more zeros that lose less by them; of all together there are as many as before.

        Weights of operators that cannot be measured keep their fraction.
        """
        named = {str(number): job for number, job in enumerate(jobs)}
        if self.held is None:
            found = {name: curve_of_sizes(job.weight.matrices(), self.pattern) for name, job in named.items()}
        else:
            outputs = Outputs.of(to_model(graph), self.held.take(LOOKED_AT))
            measured = self._curves(graph, jobs, outputs, progress)
            found = {name: measured[job.key] for name, job in named.items() if job.key in measured}
        if found:
            zeros = sum(found[name].size * named[name].sparsity for name in found)
            for name, fraction in spread(found, zeros).items():
                named[name].sparsity = fraction

    def _curves(
        self, graph: Graph, jobs: Sequence[Job], outputs: Outputs, progress: Callable[[int], None]
    ) -> dict[tuple[int, int], Curve]:
        return curves(
            graph,
            self._constrain(jobs, 1.0),
            self.feeds(),
            outputs,
            seed=self.seed,
            threads=self.threads,
            limit_bytes=self.limit_bytes,
            progress=progress,
        )

    def step(
        self, graph: Graph, jobs: Sequence[Job], share: float, progress: Callable[[int], None]
    ) -> Settled:
        """Make zeros as after a share of the steps, and let the other weights make up for them."""
        before = copy_of(graph)
        constrain = self._constrain(jobs, share)  # knows the weights as they were
        for job in jobs:
            job.shrink(self.pattern, share)
        if self.fitted is None:
            result = Settled()
        else:
            result = settle(
                graph,
                self.reference,
                self.feeds(),
                constrain,
                towards=before,
                seed=self.seed,
                threads=self.threads,
                limit_bytes=self.limit_bytes,
                effort=EFFORT,
                progress=progress,
            )
        for job in jobs:
            job.allowed = job.weight.matrices() != 0
        return result

    def _constrain(self, jobs: Sequence[Job], share: float) -> Callable[[Linear], Sparse | str]:
        known = {job.key: (job, weight_values(job.weight.tensor)) for job in jobs}

        def constrain(view: Linear) -> Sparse | str:
            node = view.op.node
            found = known.get((id(node), view.weight))
            if found is None:
                return "its weight stays as it is"
            job, values = found
            sizes = view.matrices(node, np.abs(values.astype(np.float64)))
            allowed = None
            if not job.allowed.all():
                allowed = view.matrices(node, job.weight.outer(job.allowed, values.shape))
            fraction = job.sparsity * share
            return Sparse(self.pattern, fraction, job.weight.taps, self.score, sizes, allowed)

        return constrain

    def errors(self, graph: Graph, plain: Graph) -> tuple[float, float] | None:
        """The mean errors of the outputs of two graphs on the samples that judge; None where they cannot be compared."""
        if self.held is None:
            return None
        original = to_model(self.reference.graph)
        found = [
            output_errors(original, to_model(each), self.held, threads=self.threads)
            for each in (graph, plain)
        ]
        return (
            None if not all(len(each) for each in found) else (float(found[0].mean()), float(found[1].mean()))
        )


def all_zeros(work: Work, graph: Graph, jobs: Sequence[Job], progress: Callable[[int], None]) -> Settled:
    """Run all steps."""
    result = Settled()
    for share in work.shares:
        found = work.step(graph, jobs, share, progress)
        before = {name: first for name, (first, _) in (result.errors or found.errors).items()}
        errors = {name: (before.get(name, first), last) for name, (first, last) in found.errors.items()}
        result = replace(found, errors=errors, spilled=result.spilled + found.spilled)
    return result
