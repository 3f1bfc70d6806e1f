"""Splitting the operators of a graph: what there is to choose from, the choice, and the split graph with its new weights."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from surgeon.allocate.candidate import SLACK
from surgeon.allocate.choices import choose
from surgeon.cost import count, one_sample
from surgeon.errors import GateError
from surgeon.graph.copy import copy_of
from surgeon.graph.order import readers
from surgeon.graph.save import to_model
from surgeon.graph.shapes import infer
from surgeon.reference import Reference
from surgeon.refit.keeping import Promised, whatever_keeps
from surgeon.refit.lowrank import LowRank
from surgeon.refit.sampling import Places
from surgeon.refit.settle import EFFORT, Settled, settle
from surgeon.refit.trial import QUICK, QUICK_PLACES, Feeds
from surgeon.refit.twins import Twins, operators
from surgeon.stats.compare import Outputs
from surgeon_passes.cleaning.wiring import Wiring
from surgeon_passes.factorizing.curves import Curves, Way, measure
from surgeon_passes.factorizing.describe import describe
from surgeon_passes.factorizing.emit import emit
from surgeon_passes.factorizing.probes import SAMPLES, sensitivities
from surgeon_passes.factorizing.splits import Divisible, divisible

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.passes import Context, Graph
    from surgeon.refit.constrained import Constraint
    from surgeon.refit.fit import Effort
    from surgeon.stats.linear import Linear
    from surgeon_passes.factorize import Factorize

    Feed = Sequence[Mapping[str, NDArray[Any]]]

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
        feeds: Feed,
        options: Factorize,
        excluded: Callable[[str], bool],
    ) -> None:
        self.graph, self.context, self.feeds, self.options = graph, context, feeds, options
        self.excluded = excluded
        self.shapes = infer(graph)
        sample = one_sample(graph) or self.shapes
        self.work: list[Divisible] = []
        self.left: dict[str, str] = {}
        outputs, promised = {tensor.name for tensor in graph.outputs}, Promised()
        for op in operators(graph, self.shapes):
            found = divisible(op, sample, options.kinds, excluded, outputs)
            if isinstance(found, Divisible) and promised.of(found.view) is not None:
                found = "it keeps its zeros or its few values, which factors would not have"
            if isinstance(found, Divisible):
                self.work.append(found)
            elif found:
                self.left[str(op.node.name or op.node.outputs[0].name)] = found

    def split(
        self,
        curves: Curves,
        fraction: float,
        progress: Callable[[int], None],
        *,
        context: Context | None = None,
    ) -> None:
        """Split operators so that the graph has at most a fraction of its multiply-accumulates, and report it to a run.

        Raises:
            GateError: There is nothing to split, or the fraction cannot be met.
        """
        before = count(self.graph).macs
        taken = self.choose(curves, before, before * fraction)
        settled = self.apply(taken, progress)
        after = count(self.graph).macs
        if after > before * fraction * (1 + SLACK):
            raise GateError(
                f"has {after / before:.4f} of the multiply-accumulates, not {fraction:g} as was foretold",
                where="factorize.macs",
                hint="please report this",
            )
        told = context or self.context
        told.record["macs"] = {"before": before, "after": after, "asked": fraction}
        self.describe(curves, taken, settled, context=told)

    def describe(
        self,
        curves: Curves,
        taken: Mapping[str, Way],
        settled: Settled | None = None,
        *,
        context: Context | None = None,
    ) -> None:
        """Report what became of the operators; without ``taken`` that all stay whole."""
        every = {name: ways[0] for name, ways in curves.ways.items()} | dict(taken)
        describe(self.work, every, curves, settled or Settled(), context or self.context)

    def measured(self, progress: Callable[[int], None]) -> Curves:
        """What can become of each operator, what is lost by it, and what that counts."""
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
        found.weights = self._weigh(found, progress)
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
        taken = choose([curves.choices(name) for name in names], limit - rest)
        if taken is None:
            least = rest + sum(min(way.macs for way in ways) for ways in curves.ways.values())
            raise GateError(
                f"at most {limit / whole:g} of the multiply-accumulates is asked for, and splitting everything at the "
                f"least rank leaves {least / whole:.4f}{_mostly(curves.left)}",
                where="factorize.macs",
                hint="ask for less, let round_to be smaller, or prune as well",
            )
        return {name: curves.ways[name][k] for name, k in zip(names, taken, strict=True)}

    def _weigh(self, curves: Curves, progress: Callable[[int], None]) -> dict[str, float]:
        """How much of each operator's error arrives at the outputs, by first output; 1 for all where nothing is refitted."""
        if not (self.options.sensitivity and self.options.refit):
            return dict.fromkeys(curves.ways, 1.0)
        feeds = Feeds.of(self.feeds, SAMPLES)
        threads = self.context.threads
        judge = Outputs.on(to_model(self.graph), feeds.judge, threads)

        def outputs(name: str, way: Way) -> float:
            graph = copy_of(self.graph)
            self._settle(graph, {name: way}, feeds.trial, QUICK, QUICK_PLACES, lambda _: None)
            progress(1)
            return judge.distance(to_model(graph), threads)

        return sensitivities(curves.ways, outputs)

    def apply(self, taken: Mapping[str, Way], progress: Callable[[int], None]) -> Settled:
        """Give operators weights of their ranks, fit what is behind them, and split them."""
        split = {name: way for name, way in taken.items() if way.split is not None}
        effort = EFFORT if self.options.refit else PROJECTED
        found = self._settle(self.graph, split, self.feeds, effort, Places(), progress)
        wiring = Wiring(self.graph)
        names = {node.name for node in self.graph.nodes}
        for each in self.work:
            way = split.get(each.view.op.node.outputs[0].name)
            if way is not None and way.split is not None:
                emit(self.graph, each.view, way.split, way.rank, wiring.fresh, names)
        return found

    def _settle(
        self,
        graph: Graph,
        split: Mapping[str, Way],
        feeds: Feed,
        effort: Effort,
        places: Places,
        progress: Callable[[int], None],
    ) -> Settled:
        """Give some operators of a graph weights of their ranks and fit what is behind them, in place."""
        behind = readers(graph.nodes, split)

        def constrain(view: Linear) -> Constraint | str:
            name = view.op.node.outputs[0].name
            way = split.get(name)
            if way is not None and way.split is not None:
                return LowRank(way.split.order, way.rank)
            if not self.options.refit:
                return "nothing is refitted"
            return whatever_keeps(view) if name in behind else "nothing before it has changed"

        return settle(
            graph,
            self.reference,
            feeds,
            constrain,
            towards=copy_of(graph),
            seed=self.context.seed_for("factorize"),
            threads=self.context.threads,
            limit_bytes=self.options.memory * MEGABYTE,
            effort=effort,
            places=places,
            allowed=False,
            excluded=self.excluded,
            progress=progress,
        )

    @cached_property
    def reference(self) -> Reference:
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
