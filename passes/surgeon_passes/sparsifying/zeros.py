"""Zeros in a whole model: which weights get how many, step by step, and whether what the data say has helped."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.graph.copy import copy_of
from surgeon.graph.save import to_model
from surgeon.refit.settle import Settled
from surgeon.refit.sparse import Score, Sparse
from surgeon.refit.table import OfTable, table_of
from surgeon.stats.compare import Outputs
from surgeon.stats.promises import Promise, promise_of
from surgeon.stats.weight import is_shared, weight_values
from surgeon_passes.sparsifying.curves import Curve, curve_of_sizes, curves
from surgeon_passes.sparsifying.spread import spread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.passes import Graph
    from surgeon.refit.constrained import Constraint
    from surgeon.refit.pattern import Pattern
    from surgeon.stats.linear import Linear
    from surgeon.stats.matrices import Weight
    from surgeon_passes.valuing.material import Material

    Feeds = Sequence[Mapping[str, NDArray[Any]]]

LOOKED_AT = 48  # samples by which it is seen what reaches the outputs


@dataclass
class Job:
    """One weight of a model.

    Attributes:
        weight: Where it is.
        sparsity: The fraction of its numbers that are to be zero in the end.
        allowed: Which may differ from zero, ``[groups, channels, taps, outputs]``.
        promise: What its values promise as it comes; None for nothing.
    """

    weight: Weight
    sparsity: float
    allowed: NDArray[np.bool_] = field(init=False)
    promise: Promise | None = field(init=False)

    def __post_init__(self) -> None:
        values = self.weight.matrices()
        self.promise = promise_of(values)
        kept = self.promise is not None and self.promise.zeros
        self.allowed = np.asarray(values != 0) if kept else np.ones(values.shape, bool)

    @property
    def key(self) -> tuple[int, int]:
        """The identity of its operator, and which input it is."""
        return id(self.weight.node), self.weight.index

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
        material: What weights are fitted to; None to fit nothing.
    """

    pattern: Pattern
    score: Score
    shares: Sequence[float]
    material: Material | None

    def allocate(self, graph: Graph, jobs: Sequence[Job], progress: Callable[[int], None]) -> None:
        """Let those weights have more zeros that lose less by them; of all together there are as many as before.

        Weights of operators that cannot be measured keep their fraction.
        """
        named = {str(number): job for number, job in enumerate(jobs)}
        if self.material is None:
            found = {name: curve_of_sizes(job.weight.matrices(), self.pattern) for name, job in named.items()}
        else:
            measured = self._curves(graph, jobs, self.material, progress)
            found = {name: measured[job.key] for name, job in named.items() if job.key in measured}
        if found:
            zeros = sum(found[name].size * named[name].sparsity for name in found)
            for name, fraction in spread(found, zeros).items():
                named[name].sparsity = fraction

    def _curves(
        self, graph: Graph, jobs: Sequence[Job], material: Material, progress: Callable[[int], None]
    ) -> dict[tuple[int, int], Curve]:
        return curves(
            graph,
            self._constrain(jobs, 1.0),
            material.fitted,
            Outputs.of(to_model(graph), material.held.take(LOOKED_AT)),
            seed=material.seed,
            threads=material.threads,
            limit_bytes=material.limit_bytes,
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
        found = Settled()
        if self.material is not None:
            found = self.material.settle(graph, before, _of_tables(constrain, jobs), progress)
        for job in jobs:
            job.allowed = job.weight.matrices() != 0
        return found

    def _constrain(self, jobs: Sequence[Job], share: float) -> Callable[[Linear], Sparse | str]:
        known = {job.key: (job, weight_values(job.weight.tensor)) for job in jobs}
        shared = {job.key for job in jobs if is_shared(job.weight.tensor)}

        def constrain(view: Linear) -> Sparse | str:
            node = view.op.node
            key = (id(node), view.weight)
            if key not in known:
                return "its weight stays as it is"
            if key in shared:
                return "its weight is shared"
            job, values = known[key]
            sizes = view.matrices(node, np.abs(values.astype(np.float64)))
            allowed = None
            if not job.allowed.all():
                allowed = view.matrices(node, job.weight.outer(job.allowed, values.shape))
            fraction = job.sparsity * share
            return Sparse(self.pattern, fraction, job.weight.taps, self.score, sizes, allowed)

        return constrain


def _of_tables(
    constrain: Callable[[Linear], Sparse | str], jobs: Sequence[Job]
) -> Callable[[Linear], Constraint | str]:
    """The same, and weights with few values keep these."""
    sharing = {job.key: job.promise.sharing for job in jobs if job.promise is not None}

    def whole(view: Linear) -> Constraint | str:
        node, sparse = view.op.node, constrain(view)
        shared = sharing.get((id(node), view.weight), "")
        if isinstance(sparse, str) or not shared:
            return sparse
        values = view.matrices(node, weight_values(node.inputs[view.weight]))
        return OfTable(sparse, table_of(values, per_channel=shared == "channel"), sparse.together)

    return whole


def all_zeros(work: Work, graph: Graph, jobs: Sequence[Job], progress: Callable[[int], None]) -> Settled:
    """Run all steps."""
    result = Settled()
    for share in work.shares:
        found = work.step(graph, jobs, share, progress)
        before = {name: first for name, (first, _) in (result.errors or found.errors).items()}
        errors = {name: (before.get(name, first), last) for name, (first, last) in found.errors.items()}
        result = replace(found, errors=errors, spilled=result.spilled + found.spilled)
    return result
