"""The pass ``equalize``: channels of one tensor get ranges of one size, and weights on either side make up for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from surgeon.errors import UsageError
from surgeon.passes import Pass

if TYPE_CHECKING:
    from surgeon.passes import Context, Graph
    from surgeon.scaling.classes import Class


@dataclass(frozen=True)
class Equalize(Pass):
    """Cross-layer equalization: the same function with channels that are easier to round.

    Attributes:
        per_channel: Whether weights will have one scale per output channel. Without, weights that write channels count too.
        samples: Samples that the ranges of activations are taken from, at most.
        exclude: Operators with a node or tensor name that matches one of these patterns stay as they are.
    """

    name: ClassVar[str] = "equalize"
    requires: ClassVar[frozenset[str]] = frozenset({"float"})

    per_channel: bool = True
    samples: int = 128
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UsageError(f"must be at least 1, got {self.samples}", where="equalize.samples")

    def run(self, graph: Graph, context: Context) -> Graph:
        """Scale channels; raises PassError where the outputs would change."""
        from surgeon_passes.scaling.choose import equalized
        from surgeon_passes.scaling.rescale import Rescaling

        rescaling = Rescaling(self.name, graph, context, self.exclude)
        classes = [each for each in rescaling.classes if not _why_not(each)]
        ranges = rescaling.ranges(classes, context.calibration().take(self.samples))
        classes = [each for each in classes if rescaling.known(each, ranges)]
        factors, found = equalized(classes, rescaling.scaling, ranges, per_channel=self.per_channel)
        context.record["equalized"] = [
            {
                "tensor": each.name,
                "channels": len(each.labels),
                "spread_before": found[each.name].spread[0],
                "spread_after": found[each.name].spread[1],
                "error_before": found[each.name].error[0],
                "error_after": found[each.name].error[1],
            }
            for each in classes
            if each.name in found
        ]
        context.record["left"] = rescaling.left(found, _why_not)
        return rescaling.finish(factors)


def _why_not(each: Class) -> str:
    """Why a class is not equalized; '' where it is."""
    return "" if each.readers else "no weights read its channels"
