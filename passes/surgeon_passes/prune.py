"""The pass ``prune``: removes the least useful channels, heads and hidden units, consistently and with a proof."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from surgeon.errors import UsageError
from surgeon.passes import Pass

if TYPE_CHECKING:
    from collections.abc import Mapping

    from surgeon.engine import Model
    from surgeon.passes import Context, Graph

DEFAULT_TARGET = 0.5


@dataclass(frozen=True)
class Prune(Pass):
    """Structural pruning: the result is a smaller dense model.

    Attributes:
        ratio: Fraction removed from every channel axis; without it a target is met by global ranking.
        macs: At most this fraction of the multiply-accumulates (as ``--target macs=``).
        params: At most this fraction of the parameters.
        size: At most this fraction of the weight bytes.
        score: How indices are ranked: l1, l2, bn_scale, geometric_median, redundancy, random, and with data
            activation_norm, apoz, wanda; or a score a plugin registers.
        reduce: How a score is reduced over the tensors of a group: mean, max or sum.
        ranking: local removes the same fraction of every group, global compares groups by score per unit of cost.
        product: Which factor of a product of groups (heads x head_dim, conv groups x channels) shrinks.
        min_keep: Indices every group keeps at least.
        max_ratio: The largest fraction any group may lose.
        multiple_of: What is kept is a multiple of this; default 1 with a ratio, and with a target what
            onnxruntime's CPU kernels like.
        include: Only groups with a node or tensor that matches one of these patterns.
        exclude: No group with a node or tensor that matches one of these patterns.
        keep: Indices that stay, as ``tensor:axis=0-7+12``.
        drop: Indices that go, as ``tensor:axis=0-7+12``; nothing else is removed unless a ratio or target is given.
        allow_structural: Also cut groups that a normalisation runs over, which cannot be exact.
    """

    name: ClassVar[str] = "prune"
    requires: ClassVar[frozenset[str]] = frozenset({"float"})

    ratio: float | None = None
    macs: float | None = None
    params: float | None = None
    size: float | None = None
    score: str = "l2"
    reduce: Literal["mean", "max", "sum"] = "mean"
    ranking: Literal["global", "local"] = "global"
    product: Literal["outer", "inner", "both"] = "outer"
    min_keep: int = 1
    max_ratio: float = 1.0
    multiple_of: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    allow_structural: bool = False

    def __post_init__(self) -> None:
        for option in ("ratio", "macs", "params", "size"):
            value = getattr(self, option)
            if value is not None and not 0 < value < 1:
                raise UsageError(f"must lie between 0 and 1, got {value}", where=f"prune.{option}")
        if self.ratio is not None and (self.macs or self.params or self.size):
            raise UsageError("give either a ratio or a target", where="prune.ratio")
        if not 0 < self.max_ratio <= 1:
            raise UsageError(f"must lie in (0, 1], got {self.max_ratio}", where="prune.max_ratio")
        for option in ("min_keep", "multiple_of"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise UsageError(f"must be at least 1, got {value}", where=f"prune.{option}")

    def run(self, graph: Graph, context: Context) -> Graph:
        """Cut ``graph`` and prove the cut.

        Raises:
            GateError: Nothing can be cut, the target cannot be met, or the proof fails.
        """
        from surgeon.engine import analyse
        from surgeon_passes.pruning.choose import choose
        from surgeon_passes.pruning.proved import Proved, cut_and_prove

        model = analyse(graph)
        refused: dict[str, str] = {}
        while True:
            choice = choose(self, model, context, refused)
            kept = {name: flags for name, flags in choice.kept.items() if not flags.all()}
            context.record["groups"] = _groups(model, kept, choice.reasons)
            if not kept:
                context.record["certificate"] = {"status": "none", "max_rel_err": None, "probes": 0}
                return graph
            outcome = cut_and_prove(model, kept, context)
            if isinstance(outcome, Proved):
                context.record["certificate"] = outcome.certificate.to_json()
                context.plan = outcome.plan
                return outcome.graph
            refused |= outcome

    def targets(self, context: Context) -> dict[str, float]:
        """The targets in force: the pass's own, else the run's, else half the MACs."""
        own = {"macs": self.macs, "params": self.params, "bytes": self.size}
        found = {kind: value for kind, value in own.items() if value is not None}
        if found:
            return found
        names = {"macs": "macs", "params": "params", "size": "bytes"}
        return {names[k]: v for k, v in context.targets.items() if k in names} or {"macs": DEFAULT_TARGET}


def _groups(model: Model, kept: Mapping[str, Any], reasons: Mapping[str, str]) -> dict[str, Any]:
    whole = [
        {"group": g.id, "size": g.size, "reason": reasons.get(g.id, "nothing of it had to go")}
        for g in model.groups
        if g.id not in kept
    ]
    return {"total": len(model.groups), "cut": len(kept), "whole": whole}
