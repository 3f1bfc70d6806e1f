"""What targets mean for the cut at hand: fractions of the model's own parameters, MACs and weight bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from surgeon.errors import GateError
from surgeon.measure import file_bytes, parameters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from surgeon.engine import Model
    from surgeon.passes import Context

PER_CONSTANT = (
    128  # bytes a constant takes in a file besides its values, and a rewritten node besides its constants
)


@dataclass(frozen=True)
class Goal:
    """One target: ``kind`` of the cut may cost ``limit`` in all, of which ``fixed`` does not shrink.

    Attributes:
        name: What the user calls it.
        whole: What the model costs before the cut.
    """

    name: str
    kind: str
    whole: float
    limit: float
    fixed: float

    def fraction(self, scale: float) -> float:
        """The limit as a fraction of ``scale``, the part of the cost that the polynomial knows."""
        return (self.limit - self.fixed) / max(scale, 1.0)


def goals(asked: Mapping[str, float], model: Model, context: Context) -> list[Goal]:
    """Translate targets.

    Args:
        asked: Fractions not to be exceeded: ``macs``, ``params``, ``size`` (bytes of the weights), ``file`` (bytes on
            disk) and ``latency``, for which MACs stand in.
        model: The analysed model.
        context: Where the model file is.

    Raises:
        GateError: What does not shrink is more than a target alone.
    """
    now = model.cost.evaluate()
    found = []
    for name, fraction in asked.items():
        if name in ("macs", "latency"):
            goal = Goal(name, "macs", now.macs, now.macs * fraction, 0.0)
        elif name == "params":
            whole = float(parameters(model.original))
            known = now.params - model.cost.copies.params
            goal = Goal(name, "params", whole, whole * fraction, max(0.0, whole - known))
        elif name == "size":
            whole = now.bytes - model.cost.copies.bytes
            goal = Goal(name, "bytes", whole, whole * fraction, 0.0)
        else:
            goal = _file_goal(model, context, fraction)
        if goal.limit <= goal.fixed:
            raise GateError(
                f"{goal.fixed / max(goal.whole, 1):.3f} of the original is no weight that could be removed",
                where=f"target {name}={fraction:g}",
            )
        found.append(goal)
    return found


def _file_goal(model: Model, context: Context, fraction: float) -> Goal:
    """Of a file, names and nodes do not shrink; a cut adds a few constants of its own."""
    weights = model.cost.evaluate().bytes - model.cost.copies.bytes
    on_disk = (
        float(file_bytes(context.source_path, model.analysis.graph))
        if context.source_path.is_file()
        else weights
    )
    overhead = max(0.0, on_disk - weights)
    added = PER_CONSTANT * sum(bool(op.facts.emit) for op in model.analysis.ops)
    return Goal("size", "bytes", on_disk, on_disk * fraction, overhead + added)
