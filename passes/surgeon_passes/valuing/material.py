"""What weights are fitted to, and what judges whether that has helped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from surgeon.graph.copy import copy_of
from surgeon.graph.save import to_model
from surgeon.reference import Reference
from surgeon.refit.fit import Effort
from surgeon.refit.settle import Settled, settle
from surgeon.stats.compare import output_errors
from surgeon_passes.valuing.samples import batches

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.passes import Context, Graph
    from surgeon.refit.constrained import Constraint
    from surgeon.stats.data import Dataset
    from surgeon.stats.linear import Linear

    Feeds = Sequence[Mapping[str, NDArray[Any]]]

MEGABYTE = 2**20
HELD = 0.125  # of the samples judge
EFFORT = Effort(strengths=(1e-2, 1e-1), steps=4)


@dataclass(frozen=True)
class Material:
    """What a pass goes by.

    Attributes:
        fitted: The batches that weights are fitted to, with variants where there are few.
        held: Those that judge.
        reference: What the model should compute.
        seed: Of the choice of places.
        threads: Threads for onnxruntime.
        limit_bytes: Activations held in memory, per model.
    """

    fitted: Feeds
    held: Dataset
    reference: Reference
    seed: int
    threads: int
    limit_bytes: int

    @staticmethod
    def of(graph: Graph, context: Context, name: str, samples: int, memory: int) -> Material:
        """What the run has for a pass.

        Args:
            graph: What the pass was given.
            context: The run.
            name: Of the pass.
            samples: Calibration samples used at most.
            memory: Megabytes of activations held in memory, per model.
        """
        fitted = held = context.calibration().take(samples)
        given = fitted.total()
        if given >= 2:
            fitted, held = fitted.split(HELD, context.seed_for(f"{name} held out"))
        missing = samples - given
        return Material(
            batches(fitted, fitted.total() + missing, graph, context),
            held,
            context.reference or Reference(copy_of(graph)),
            context.seed_for(name),
            context.threads,
            memory * MEGABYTE,
        )

    def settle(
        self,
        graph: Graph,
        before: Graph,
        constrain: Callable[[Linear], Constraint | str],
        progress: Callable[[int], None],
    ) -> Settled:
        """Fit the weights of ``graph``, which keep a constraint already, in place; ``before`` has them without it."""
        return settle(
            graph,
            self.reference,
            self.fitted,
            constrain,
            towards=before,
            seed=self.seed,
            threads=self.threads,
            limit_bytes=self.limit_bytes,
            effort=EFFORT,
            progress=progress,
        )

    def errors(self, graph: Graph, plain: Graph) -> tuple[float, float] | None:
        """The mean errors of the outputs of two graphs on the samples that judge; None where they cannot be compared."""
        original = to_model(self.reference.graph)
        found = [
            output_errors(original, to_model(each), self.held, threads=self.threads)
            for each in (graph, plain)
        ]
        return None if not all(map(len, found)) else (float(found[0].mean()), float(found[1].mean()))
