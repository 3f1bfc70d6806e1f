"""What targets mean for the cut at hand: fractions of the model's own parameters, MACs and weight bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx
import onnx_graphsurgeon as gs

from surgeon.errors import GateError
from surgeon.graph.weights import data_type, packed_bytes
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
    copies = _copies(model)
    found = []
    for name, fraction in asked.items():
        if name in ("macs", "latency"):
            goal = Goal(name, "macs", now.macs, now.macs * fraction, 0.0)
        elif name == "params":
            whole = float(parameters(model.original))
            known = now.params - sum(elements for elements, _ in copies)
            goal = Goal(name, "params", whole, whole * fraction, max(0.0, whole - known))
        elif name == "size":
            goal = Goal(name, "bytes", now.bytes, now.bytes * fraction, 0.0)
        else:
            goal = _file_goal(model, context, fraction, now.bytes, copies)
        if goal.limit <= goal.fixed:
            raise GateError(
                f"{goal.fixed / max(goal.whole, 1):.3f} of the original is no weight that could be removed",
                where=f"target {name}={fraction:g}",
            )
        found.append(goal)
    return found


def _file_goal(
    model: Model, context: Context, fraction: float, weights: float, copies: list[tuple[int, int]]
) -> Goal:
    """Of a file, names and nodes do not shrink; a cut adds a few constants of its own."""
    shared = sum(size for _, size in copies)
    on_disk = (
        float(file_bytes(context.source_path, model.analysis.graph))
        if context.source_path.is_file()
        else weights - shared
    )
    overhead = max(0.0, on_disk - (weights - shared))
    added = PER_CONSTANT * (len(copies) + sum(bool(op.facts.emit) for op in model.analysis.ops))
    return Goal("size", "bytes", on_disk, on_disk * fraction, overhead + added)


def _copies(model: Model) -> list[tuple[int, int]]:
    """Elements and bytes of each constant that is a further copy of one the file holds once."""
    seen: set[str] = set()
    names: set[str] = set()
    result = []
    for op in model.analysis.ops:
        for tensor in op.node.inputs:
            if not isinstance(tensor, gs.Constant) or tensor.name in names or not len(tensor.shape):
                continue
            names.add(tensor.name)
            origin = getattr(tensor, "origin", tensor.name)
            element = data_type(tensor)
            if origin in seen and element != onnx.TensorProto.INT64:
                elements = 1
                for size in tensor.shape:
                    elements *= int(size)
                result.append((elements, packed_bytes(element, tuple(tensor.shape))))
            seen.add(origin)
    return result
