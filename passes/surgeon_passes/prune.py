"""The pass ``prune``: removes the least useful channels, heads and hidden units, consistently and with a proof."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from surgeon import entries
from surgeon.errors import UsageError
from surgeon.passes import Pass
from surgeon.suggest import did_you_mean
from surgeon_passes.pruning.positions import parse
from surgeon_passes.pruning.schedule import ConstantSparsity, PolynomialDecay, check_schedule

if TYPE_CHECKING:
    from collections.abc import Collection

    from surgeon.passes import Context, Graph
    from surgeon_passes.pruning.cutting import Cut, Cutting

DEFAULT_TARGET = 0.5
# what surgeon.scores defines, named here so that options are checked without importing numpy
SCORES = (
    "auto",
    "obs",
    "l1",
    "l2",
    "bn_scale",
    "geometric_median",
    "redundancy",
    "random",
    "activation_norm",
    "apoz",
    "wanda",
    "taylor",
    "fisher",
)
REDUCTIONS = ("mean", "max", "sum")


@dataclass(frozen=True)
class Prune(Pass):
    """Structural pruning: the result is a smaller dense model.

    Attributes:
        ratio: Fraction removed from every channel axis (rounded so that never more goes); it is always per axis,
            whatever the ranking. Without it a target is met; without one the model becomes as small as ``--max-drop``
            allows, and without that has half of the MACs.
        macs: At most this fraction of the multiply-accumulates (as ``--target macs=``).
        params: At most this fraction of the parameters.
        size: At most this fraction of the weight bytes.
        max_drop: Find the smallest model that loses at most this of the metric, whatever later passes lose; by default the
            run's ``--max-drop``, which a cut has to keep with the later passes of the run behind it.
        by: What is to be smallest within ``max_drop``: macs, params, or size (the weight bytes).
        tries: How many cuts, refitted in haste, are measured at most to find the smallest within ``max_drop``; what is found
            is refitted for good, and measured, on top of these.
        score: How indices are ranked: auto (obs with data, given or made up for reconstruct, else l2); obs, the error that is
            left at the consumers once the others make up for the removal (optimal brain surgeon, needs data); l1, l2, bn_scale, geometric_median, redundancy, random, and with data
            activation_norm, apoz, wanda, and by gradients taylor, fisher; or a score that a plugin registers as ``surgeon.scores``.
        reduce: How a score is reduced over the tensors of a group: mean, max, sum, or a reduction that a plugin
            registers as ``surgeon.reductions``. What wanda, taylor and fisher say of several consumers is always
            added up.
        ranking: With a target, global compares groups by score per unit of cost, local removes the same fraction of
            every group.
        product: Which factor of a product of groups (heads x head_dim, conv groups x channels) shrinks. An axis loses
            the share of exactly one factor; with both, the shares multiply.
        min_keep: Indices every group keeps at least.
        max_ratio: The largest fraction any group may lose.
        multiple_of: What is kept is a multiple of this; default 1 with a ratio, and with a target what
            onnxruntime's CPU kernels like: 4 to 16 channels, growing with the group.
        include: Only groups with a node or tensor that matches one of these patterns.
        exclude: No group with a node or tensor that matches one of these patterns.
        keep: Indices that stay, as ``tensor:axis=0-7+12``.
        drop: Indices that go, as ``tensor:axis=0-7+12``, whatever the limits; nothing else is removed unless a ratio or
            target is given.
        reconstruct: Refit the weights that are left, in closed form, to what the original computes on the data; without
            any, for a target and with score auto or obs, on inputs that are made up to suit the model, where that beats
            magnitude alone.
        merge: With data, fold similar channels into their means instead of deleting some of them where that is better on
            held-out samples.
        steps: With data, cut and refit in so many steps, measuring anew what is left before each.
        schedule: How the cut is spread over the steps: polynomial, 1 - (1 - initial) * (1 - t)^power of it after the part
            t of the steps (PolynomialDecay); constant, all of it in the first (ConstantSparsity).
        initial: The share of the cut that a polynomial schedule starts from.
        power: The power of a polynomial schedule: 1 for equal steps.
        sensitivity: With score obs, weigh each group's error by what of it is left at the model's outputs after a refit.
        memory: Megabytes of activations held in memory by measuring and refitting, per model; the rest goes to
            temporary files.
        allow_structural: Also cut groups that a normalisation runs over, which cannot be exact.
        cut_cache: Also cut caches and recurrent states, which are inputs and outputs of the model: their shapes change.
    """

    name: ClassVar[str] = "prune"
    requires: ClassVar[frozenset[str]] = frozenset({"prunable"})

    ratio: float | None = None
    macs: float | None = None
    params: float | None = None
    size: float | None = None
    max_drop: float | None = None
    by: Literal["macs", "params", "size"] = "macs"
    tries: int = 7
    score: str = "auto"
    reduce: str = "mean"
    ranking: Literal["global", "local"] = "global"
    product: Literal["outer", "inner", "both"] = "outer"
    min_keep: int = 1
    max_ratio: float = 1.0
    multiple_of: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    reconstruct: bool = True
    merge: bool = False
    steps: int = 1
    schedule: Literal["polynomial", "constant"] = "polynomial"
    initial: float = 0.0
    power: float = 3.0
    sensitivity: bool = True
    memory: int = 2048
    allow_structural: bool = False
    cut_cache: bool = False

    def __post_init__(self) -> None:
        for option in ("ratio", "macs", "params", "size"):
            value = getattr(self, option)
            if value is not None and not 0 < value < 1:
                raise UsageError(f"must lie between 0 and 1, got {value}", where=f"prune.{option}")
        if self.ratio is not None and (self.macs or self.params or self.size):
            raise UsageError("give either a ratio or a target", where="prune.ratio")
        if self.max_drop is not None:
            self._check_budget(self.max_drop)
        if not 0 < self.max_ratio <= 1:
            raise UsageError(f"must lie in (0, 1], got {self.max_ratio}", where="prune.max_ratio")
        for option in ("min_keep", "multiple_of", "memory", "steps", "tries"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise UsageError(f"must be at least 1, got {value}", where=f"prune.{option}")
        check_schedule(self.initial, self.power, "prune")
        for option in ("keep", "drop"):
            for entry in getattr(self, option):
                parse(entry, f"prune.{option}")
        check_named(self.score, SCORES, entries.SCORES, "score")
        check_named(self.reduce, REDUCTIONS, entries.REDUCTIONS, "reduce")

    def check_names(self, known: Collection[str]) -> None:
        """Names are checked once it is known which of them belong to groups."""

    def run(self, graph: Graph, context: Context) -> Graph:
        """Cut ``graph`` and prove the cut.

        Raises:
            GateError: Nothing can be cut, the target or the accuracy budget cannot be met, or the proof fails.
            UsageError: There are no data to hold the accuracy budget against.
        """
        from surgeon.engine import analyse
        from surgeon_passes.pruning.cutting import Cutting
        from surgeon_passes.pruning.describe import note

        model = analyse(graph, cut_cache=self.cut_cache)
        cutting = Cutting(self, model, graph, context)
        found = self._cut(cutting, context)
        note(found, cutting, context)
        return found.graph

    def _cut(self, cutting: Cutting, context: Context) -> Cut:
        from surgeon_passes.pruning.budget import cut_within
        from surgeon_passes.pruning.datafree import cut_checked

        targeted = self.has_targets(context)
        if self.ratio is not None or (self.drop and not targeted):
            return cut_checked(cutting, None)
        if targeted and self.max_drop is not None:
            raise UsageError("give either a target or a budget", where="prune.max_drop")
        allowed = context.max_drop if self.max_drop is None else self.max_drop
        if targeted or allowed is None:
            return cut_checked(cutting, self.targets(context))
        return cut_within(cutting, allowed)

    def _check_budget(self, allowed: float) -> None:
        if not 0 <= allowed <= 1:
            raise UsageError(f"must lie in [0, 1], got {allowed}", where="prune.max_drop")
        if self.ratio is not None or self.drop or self.macs or self.params or self.size:
            raise UsageError("give either a ratio, target or drop, or a budget", where="prune.max_drop")

    def schedule_of(self) -> ConstantSparsity | PolynomialDecay:
        """The schedule that spreads the cut over the steps."""
        if self.schedule == "constant":
            return ConstantSparsity()
        return PolynomialDecay(self.initial, self.power)

    def has_targets(self, context: Context) -> bool:
        """Whether a target was given, to the pass or to the run."""
        return any(value is not None for value in (self.macs, self.params, self.size)) or bool(
            context.targets
        )

    def targets(self, context: Context) -> dict[str, float]:
        """The targets in force: the pass's own, else the run's, else half the MACs.

        The run's ``size`` is that of the file and is called ``file`` here.
        """
        own = {"macs": self.macs, "params": self.params, "size": self.size}
        found = {kind: value for kind, value in own.items() if value is not None}
        if found:
            return found
        return {"file" if kind == "size" else kind: value for kind, value in context.targets.items()} or {
            "macs": DEFAULT_TARGET
        }


def check_named(name: str, known: tuple[str, ...], group: str, option: str) -> None:
    """Refuse a name that neither comes with the pass nor is registered by a plugin, before anything heavy starts.

    Raises:
        UsageError: There is no such name.
    """
    if name in known:
        return
    others = entries.available(group)
    if name not in others:
        every = [*known, *others]
        raise UsageError(
            f"no such {option} {name!r}",
            where=f"prune.{option}",
            hint=did_you_mean(name, every, what="known"),
        )
