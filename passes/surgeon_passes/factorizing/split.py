"""Splitting the operators of a graph: what there is to choose from, the choice, and the split graph with its new weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from surgeon.allocate.choices import choose
from surgeon.cost import one_sample
from surgeon.errors import GateError
from surgeon.graph.copy import copy_of
from surgeon.graph.order import readers
from surgeon.graph.shapes import infer
from surgeon.reference import Reference
from surgeon.refit.constrained import unconstrained
from surgeon.refit.lowrank import LowRank
from surgeon.refit.settle import EFFORT, Settled, settle
from surgeon.refit.twins import Twins, operators
from surgeon_passes.cleaning.wiring import Wiring
from surgeon_passes.factorizing.curves import Curves, Way, measure
from surgeon_passes.factorizing.emit import emit
from surgeon_passes.factorizing.splits import Divisible, divisible

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.passes import Context, Graph
    from surgeon.refit.constrained import Constraint
    from surgeon.stats.linear import Linear
    from surgeon_passes.factorize import Factorize

    Feeds = Sequence[Mapping[str, NDArray[Any]]]

MEGABYTE = 2**20
PROJECTED = replace(EFFORT, strengths=(), steps=0)  # no refit: the nearest weights of the rank


class Splitter:
    """The operators of one graph and what becomes of them.

    Args:
        graph: The graph, which `apply` changes.
        context: Of the run.
        feeds: Calibration batches.
        options: Of the pass.
        excluded: Whether a node or tensor, by name, is to be left alone.

    Attributes:
        work: What can be split, in order.
        left: Weighted operators that cannot be, and why.
    """

    def __init__(
        self,
        graph: Graph,
        context: Context,
        feeds: Feeds,
        options: Factorize,
        excluded: Callable[[str], bool],
    ) -> None:
        self.graph, self.context, self.feeds, self.options = graph, context, feeds, options
        self.excluded = excluded
        self.shapes = infer(graph)
        sample = one_sample(graph) or self.shapes
        self.work: list[Divisible] = []
        self.left: dict[str, str] = {}
        outputs = {tensor.name for tensor in graph.outputs}
        for op in operators(graph, self.shapes):
            found = divisible(op, sample, options.kinds, excluded, outputs)
            if isinstance(found, Divisible):
                self.work.append(found)
            elif found:
                self.left[str(op.node.name or op.node.outputs[0].name)] = found

    def measured(self, progress: Callable[[int], None]) -> Curves:
        """What can become of each operator, and what is lost by it."""
        found = measure(
            self.graph,
            self.shapes.dtypes,
            self.work,
            self.feeds,
            round_to=self.options.round_to,
            seed=self.context.seed_for("factorize/curves"),
            threads=self.context.threads,
            limit_bytes=self.options.memory * MEGABYTE,
            progress=progress,
        )
        found.left = {**self.left, **found.left}
        return found

    def choose(self, curves: Curves, whole: float, limit: float) -> dict[str, Way]:
        """What becomes of each operator, by its first output.

        Args:
            curves: What can become of them.
            whole: Multiply-accumulates of the model.
            limit: Those it may have.

        Raises:
            GateError: It cannot be met.
        """
        names = list(curves.ways)
        rest = whole - sum(ways[0].macs for ways in curves.ways.values())
        taken = choose([[way.choice() for way in curves.ways[name]] for name in names], limit - rest)
        if taken is None:
            least = rest + sum(min(way.macs for way in ways) for ways in curves.ways.values())
            raise GateError(
                f"at most {limit / whole:g} of the multiply-accumulates is asked for, and splitting everything at the "
                f"least rank leaves {least / whole:.4f}{_mostly(curves.left)}",
                where="factorize.macs",
                hint="ask for less, let round_to be smaller, or prune as well",
            )
        return {name: curves.ways[name][k] for name, k in zip(names, taken, strict=True)}

    def apply(self, taken: Mapping[str, Way], progress: Callable[[int], None]) -> Settled:
        """Give operators weights of their ranks, fit what is behind them, and split them."""
        split = {name: way for name, way in taken.items() if way.split is not None}
        behind = readers(self.graph.nodes, split)

        def constrain(view: Linear) -> Constraint | str:
            name = view.op.node.outputs[0].name
            way = split.get(name)
            if way is not None and way.split is not None:
                return LowRank(way.split.order, way.rank)
            if not self.options.refit:
                return "nothing is refitted"
            return unconstrained if name in behind else "nothing before it has changed"

        found = settle(
            self.graph,
            self._reference(),
            self.feeds,
            constrain,
            towards=copy_of(self.graph),
            seed=self.context.seed_for("factorize"),
            threads=self.context.threads,
            limit_bytes=self.options.memory * MEGABYTE,
            effort=EFFORT if self.options.refit else PROJECTED,
            allowed=False,
            excluded=self.excluded,
            progress=progress,
        )
        wiring = Wiring(self.graph)
        names = {node.name for node in self.graph.nodes}
        for each in self.work:
            way = split.get(each.view.op.node.outputs[0].name)
            if way is not None and way.split is not None:
                emit(self.graph, each.view, way.split, way.rank, wiring.fresh, names)
        return found

    def _reference(self) -> Reference:
        """What operators aim at: the original, or the graph as it was given where that has others."""
        original: Reference | None = self.context.reference
        given = Reference(copy_of(self.graph))
        if original is None:
            return given
        missing = Twins.of(self.graph, original).left.keys()
        return given if missing & {each.label for each in self.work} else original


def _mostly(left: Mapping[str, str]) -> str:
    """Why operators stay whole, the most frequent reason."""
    reasons = list(left.values())
    if not reasons:
        return ""
    most = max(sorted(set(reasons)), key=reasons.count)
    return f"; {len(reasons)} operators stay whole, mostly because: {most}"
