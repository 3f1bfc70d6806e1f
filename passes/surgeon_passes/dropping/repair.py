"""A graph with gaps, and what is behind them refitted: quickly, to see what a gap costs, or with care."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from surgeon.graph.copy import copy_of
from surgeon.graph.order import readers
from surgeon.graph.save import to_model
from surgeon.refit.keeping import whatever_keeps
from surgeon.refit.sampling import Places
from surgeon.refit.settle import EFFORT, Settled, settle
from surgeon.refit.trial import QUICK, QUICK_PLACES
from surgeon_passes.dropping.aims import aims, makers
from surgeon_passes.dropping.gaps import resolved
from surgeon_passes.dropping.removal import without
from surgeon_passes.dropping.search import replacements

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.passes import Graph
    from surgeon.reference import Reference
    from surgeon.refit.constrained import Constraint
    from surgeon.refit.fit import Effort
    from surgeon.refit.trial import Feeds
    from surgeon.stats.compare import Outputs
    from surgeon.stats.linear import Linear
    from surgeon_passes.dropping.gaps import Gap

    Batch = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Repair:
    """Makes gaps in a graph and refits what is behind.

    Attributes:
        graph: As it was.
        reference: What operators aim at.
        feeds: The data.
        judge: What the outputs should be.
        seed: Seed of the choice of places.
        threads: Threads for onnxruntime.
        limit_bytes: Activations held in memory, per graph.
        excluded: Whether a node or tensor, by name, is to be left alone.
    """

    graph: Graph
    reference: Reference
    feeds: Feeds
    judge: Outputs
    seed: int
    threads: int
    limit_bytes: int
    excluded: Callable[[str], bool]

    def rough(self, gaps: Sequence[Gap]) -> float:
        """The error of the outputs with gaps."""
        return self.error(self.bare(gaps))

    def close(self, gaps: Sequence[Gap]) -> float:
        """The error once what is behind them has been refitted, quickly."""
        graph = self.bare(gaps)
        self._settle(graph, gaps, self.feeds.trial, QUICK_PLACES, QUICK)
        return self.error(graph)

    def error(self, graph: Graph) -> float:
        """The error of the outputs of a graph."""
        return self.judge.distance(to_model(graph), self.threads)

    def bare(self, gaps: Sequence[Gap]) -> Graph:
        """A copy of the graph with gaps."""
        return without(self.graph, replacements(gaps))

    def refit(self, graph: Graph, gaps: Sequence[Gap], progress: Callable[[int], None]) -> Settled:
        """Refit what is behind the gaps of a graph with care, in place."""
        return self._settle(graph, gaps, self.feeds.fit, Places(), EFFORT, progress)

    def _settle(
        self,
        graph: Graph,
        gaps: Sequence[Gap],
        feeds: Sequence[Batch],
        places: Places,
        effort: Effort,
        progress: Callable[[int], None] = lambda _: None,
    ) -> Settled:
        replaced = replacements(gaps)
        behind = readers(graph.nodes, {resolved(gap.tensor, replaced) for gap in gaps})
        known = self.reference.graph.tensors()
        wanted = {name: other for name, other in aims(self.graph, graph, gaps).items() if other in known}
        before = makers(graph, wanted)

        def constrain(view: Linear) -> Constraint | str:
            inside = view.op.node.outputs[0].name in behind or view.output in before
            return whatever_keeps(view) if inside else "nothing before it has changed"

        return settle(
            graph,
            self.reference,
            feeds,
            constrain,
            towards=copy_of(graph),
            instead=wanted,
            seed=self.seed,
            threads=self.threads,
            limit_bytes=self.limit_bytes,
            places=places,
            effort=effort,
            excluded=self.excluded,
            progress=progress,
        )
