"""The pass ``shrink``: channels are deleted, folded into others, or operators are split, whichever costs least."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from surgeon.errors import UsageError
from surgeon.passes import Pass
from surgeon_passes.factorize import Factorize
from surgeon_passes.prune import Prune

if TYPE_CHECKING:
    from surgeon.passes import Context, Graph
    from surgeon_passes.factorizing.curves import Curves
    from surgeon_passes.factorizing.split import Splitter
    from surgeon_passes.pruning.cutting import Cut, Cutting
    from surgeon_passes.shrinking.share import Compared

DEFAULT_TARGET = 0.5
FEWEST = 2  # samples


@dataclass(frozen=True)
class Shrink(Pass):
    """Deletion, merging and factorizing, compared group by group at equal cost.

    For each group of channels it is known from the data what deleting some of them does to the outputs, and what splitting
    the operators around it does that saves as much. One price for a multiply-accumulate decides everywhere. Groups are cut
    first, with the proof that `Prune` gives; where folding similar channels is better than deleting them, they are folded.
    Operators of what is left are split as `Factorize` does until the target is met.

    Attributes:
        macs: At most this fraction of the multiply-accumulates of the model; by default the run's target, or half.
        merge: Fold similar channels into their means where that is better on held-out samples than deleting some.
        kinds: Splits of convolutions that are considered, as for `Factorize`.
        round_to: Ranks are multiples of this; by default of what onnxruntime's CPU kernels like.
        multiple_of: What is kept of a group is a multiple of this; by default of what these kernels like.
        samples: Calibration samples used at most for splits.
        memory: Megabytes of activations held in memory, per model; the rest goes to temporary files.
        exclude: Groups and operators with a node or tensor that matches one of these patterns stay as they are.
    """

    name: ClassVar[str] = "shrink"
    requires: ClassVar[frozenset[str]] = frozenset({"float", "prunable"})
    learns: ClassVar[bool] = True

    macs: float | None = None
    merge: bool = True
    kinds: tuple[Literal["outputs", "inputs", "spatial"], ...] = ("outputs", "inputs", "spatial")
    round_to: int | None = None
    multiple_of: int | None = None
    samples: int = 1024
    memory: int = 2048
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.macs is not None and not 0 < self.macs < 1:
            raise UsageError(f"must lie between 0 and 1, got {self.macs}", where="shrink.macs")
        for option in ("round_to", "multiple_of", "samples", "memory"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise UsageError(f"must be at least 1, got {value}", where=f"shrink.{option}")

    def run(self, graph: Graph, context: Context) -> Graph:
        """Cut and split.

        Raises:
            GateError: The target cannot be met, or the proof of a cut fails.
            UsageError: There is one sample, and nothing that its outputs could be told from.
        """
        from surgeon.cost import count
        from surgeon.engine import analyse
        from surgeon.stats.variants import samples_in
        from surgeon_passes.factorizing.split import Splitter
        from surgeon_passes.pruning.cutting import Cutting
        from surgeon_passes.shrinking.attempts import Attempts
        from surgeon_passes.training.excluded import excluded_by
        from surgeon_passes.valuing.samples import batches

        feeds = batches(context.calibration(), self.samples, graph, context)
        if sum(map(samples_in, feeds)) < FEWEST:
            raise UsageError(
                "errors count by how far the outputs of samples are apart, and there is one sample",
                where="pass shrink",
                hint="give some more, or use prune or factorize",
            )
        fraction = self.fraction(context)
        before = count(graph).macs
        cutting = Cutting(self.pruning(fraction), analyse(graph), graph, context)
        splitter = Splitter(
            graph, context, feeds, self.factorizing(fraction), excluded_by(context, self.exclude)
        )
        with context.progress(self.name, None) as advance:
            curves = splitter.measured(advance)
        found, compared = self._cut(cutting, splitter, curves, fraction)
        result = Attempts(self, cutting, splitter, curves, fraction).best(found)
        context.record["compared"] = [{"group": name, **asdict(each)} for name, each in compared.items()]
        context.record["macs"] = {"before": before, "after": count(result).macs, "asked": fraction}
        context.record["changed"] = True
        return result

    def _cut(
        self, cutting: Cutting, splitter: Splitter, curves: Curves, fraction: float
    ) -> tuple[Cut, dict[str, Compared]]:
        """What is deleted; groups whose cut cannot be proved are left to be split."""
        from surgeon_passes.pruning.choose import Choice
        from surgeon_passes.pruning.cutting import Cut
        from surgeon_passes.shrinking.field import comparable, operators
        from surgeon_passes.shrinking.share import Sharer

        while True:
            candidates, reasons = comparable(cutting)
            work = operators(cutting.model.analysis, splitter.work, curves)
            sharer = Sharer(candidates, cutting.model.cost, work)
            sharing = sharer.to(fraction)
            kept = {each.id: each.mask(sharing.kept[each.id]) for each in candidates}
            found = cutting.of(Choice(kept, reasons))
            if isinstance(found, Cut):
                return found, sharer.compare(sharing)
            cutting.refused |= found

    def fraction(self, context: Context) -> float:
        """The target in force: the pass's own, else the run's, else half."""
        return context.macs_left(self.name, self.macs, DEFAULT_TARGET)

    def pruning(self, fraction: float) -> Prune:
        """What deletes."""
        return Prune(
            macs=fraction,
            merge=self.merge,
            multiple_of=self.multiple_of,
            memory=self.memory,
            exclude=self.exclude,
        )

    def factorizing(self, fraction: float) -> Factorize:
        """What splits."""
        return Factorize(
            macs=fraction,
            kinds=self.kinds,
            round_to=self.round_to,
            samples=self.samples,
            memory=self.memory,
            exclude=self.exclude,
        )
