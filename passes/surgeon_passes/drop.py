"""The pass ``drop``: residual blocks and layers go whole, and what is left makes up for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from surgeon.errors import GateError, UsageError
from surgeon.passes import Pass

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from surgeon.passes import Context, Graph
    from surgeon.refit.settle import Settled
    from surgeon_passes.dropping.gaps import Candidates, Gap
    from surgeon_passes.dropping.repair import Repair
    from surgeon_passes.dropping.search import Search

DEFAULT_TARGET = 0.8
MEGABYTE = 2**20


@dataclass(frozen=True)
class Drop(Pass):
    """Depth pruning: branches of residual sums, and layers whose input and output have one shape, go whole.

    Candidates are left out, what is behind is quickly refitted, and the error of the model's outputs measured; the cheapest for
    what it saves goes, and so on until the target is met. Everything behind the gaps is then fitted with care, in order, to
    what the original computes there.

    Attributes:
        macs: At most this fraction of the multiply-accumulates of the model; by default the run's target, or 0.8.
        refit: Refit everything behind a gap to what the original computes.
        samples: Calibration samples used at most for the refit.
        trials: Samples of these that candidates are tried on; half of them judge.
        memory: Megabytes of activations held in memory, per model; the rest goes to temporary files.
        exclude: Nothing goes with a node, weight or tensor whose name matches one of these patterns.
    """

    name: ClassVar[str] = "drop"
    requires: ClassVar[frozenset[str]] = frozenset({"float"})
    learns: ClassVar[bool] = True

    macs: float | None = None
    refit: bool = True
    samples: int = 1024
    trials: int = 128
    memory: int = 2048
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.macs is not None and not 0 < self.macs < 1:
            raise UsageError(f"must lie between 0 and 1, got {self.macs}", where="drop.macs")
        for option in ("samples", "trials", "memory"):
            if getattr(self, option) < 1:
                raise UsageError(f"must be at least 1, got {getattr(self, option)}", where=f"drop.{option}")

    def run(self, graph: Graph, context: Context) -> Graph:
        """Leave out blocks and layers of ``graph``.

        Raises:
            GateError: Nothing can be left out, or the target cannot be met.
        """
        from surgeon.cost import count, macs_of_nodes
        from surgeon.graph.save import to_model
        from surgeon.graph.shapes import infer
        from surgeon.reference import Reference
        from surgeon.refit.trial import Feeds
        from surgeon.stats.compare import Outputs
        from surgeon_passes.dropping.gaps import Wires, find_gaps
        from surgeon_passes.dropping.repair import Repair
        from surgeon_passes.dropping.search import Search, replacements
        from surgeon_passes.training.excluded import excluded_by

        excluded = excluded_by(context, self.exclude)
        fraction = self.fraction(context)
        wires = Wires(graph, macs_of_nodes(graph))
        whole = count(graph).macs
        found = find_gaps(wires, infer(graph), excluded)
        most = wires.saved(replacements(found.gaps))
        if whole - most > whole * fraction:
            raise _out_of_reach(found, fraction, 1 - most / max(whole, 1.0))
        feeds = Feeds.of([batch for batch, _ in context.calibration().take(self.samples)], self.trials)
        repair = Repair(
            graph,
            context.reference or Reference(graph),
            feeds,
            Outputs.on(to_model(graph), feeds.judge, context.threads),
            context.seed_for(self.name),
            context.threads,
            self.memory * MEGABYTE,
            excluded,
        )
        with context.progress(self.name, None) as advance:
            close = repair.close if self.refit else repair.rough
            search = Search(wires, found.gaps, repair.rough, close, advance)
            if not search.run(whole * (1 - fraction)):
                raise _out_of_reach(found, fraction, 1 - wires.saved(replacements(search.chosen)) / whole)
            smaller, settled = self._refitted(repair, search.chosen, context, advance)
        context.record["macs"] = {"before": whole, "after": count(smaller).macs, "asked": fraction}
        _describe(found, search, settled, context, refit=self.refit)
        return smaller

    def fraction(self, context: Context) -> float:
        """The target in force: the pass's own, else the run's, else 0.8."""
        return context.macs_left(self.name, self.macs, DEFAULT_TARGET)

    def _refitted(
        self, repair: Repair, chosen: Sequence[Gap], context: Context, progress: Callable[[int], None]
    ) -> tuple[Graph, Settled]:
        """The graph with gaps, refitted where that makes its outputs better."""
        from surgeon.refit.settle import Settled

        smaller, before = repair.bare(chosen), repair.rough(chosen)
        if not self.refit:
            context.record["error"] = {"dropped": before, "refitted": before, "taken": False}
            return smaller, Settled()
        settled = repair.refit(smaller, chosen, progress)
        after = repair.error(smaller) if settled.errors else before
        taken = bool(settled.errors) and after <= before
        context.record["error"] = {"dropped": before, "refitted": after, "taken": taken}
        if not taken and settled.errors:
            context.warn("the refit behind the gaps made the outputs no better and was not taken")
            smaller = repair.bare(chosen)
        return smaller, settled


def _out_of_reach(found: Candidates, fraction: float, least: float) -> GateError:
    if not found.gaps:
        why = next(iter(found.left.items()), None)
        more = f": {why[0]}: {why[1]}" if why else ", for no sum and no layer has an input of its own shape"
        return GateError(f"nothing can be left out{more}", where="pass drop")
    return GateError(
        f"at most {fraction:g} of the multiply-accumulates is asked for, and leaving out all of {len(found.gaps)} blocks "
        f"and layers that can go leaves {least:.4f}",
        where="drop.macs",
        hint="ask for less, or prune or factorize as well",
    )


def _describe(found: Candidates, search: Search, settled: Settled, context: Context, *, refit: bool) -> None:
    gone = set(search.chosen)
    context.record["candidates"] = [
        {
            "kind": gap.kind,
            "tensor": gap.tensor,
            "source": gap.source,
            "nodes": len(gap.gone),
            "macs": gap.macs,
            "error": search.alone[gap],
            "refitted": search.refitted.get(gap) if refit else None,
            "dropped": gap in gone,
        }
        for gap in found.gaps
    ]
    context.record["left"] = [{"tensor": name, "reason": why} for name, why in found.left.items()]
    context.record["refit"] = {
        "operators": [
            {"node": name, "error_before": before, "error_after": after}
            for name, (before, after) in settled.errors.items()
        ],
        "left": [{"node": name, "reason": why} for name, why in settled.left.items()],
    }
    if settled.spilled:
        context.warn(
            "activations took more than drop.memory and went to temporary files, which takes longer; "
            "fewer samples or more memory avoid it"
        )
