"""The pass ``smooth``: outliers of activations that matrix products read move into their weights (SmoothQuant)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from surgeon.errors import UsageError
from surgeon.passes import Pass

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from surgeon.passes import Context, Graph
    from surgeon.scaling.classes import Class
    from surgeon_passes.scaling.rescale import Rescaling

PRODUCTS = ("Gemm", "MatMul")


@dataclass(frozen=True)
class Smooth(Pass):
    """Activation smoothing for matrix products: the same function with fewer outliers.

    Attributes:
        alpha: How much of the ranges moves from activations into weights, from 0 to 1; by default what loses least to 8 bits
            on the data, for each tensor.
        per_channel: Whether weights will have one scale per output channel.
        samples: Samples that ranges and errors are taken from, at most.
        exclude: Operators with a node or tensor name that matches one of these patterns stay as they are.
    """

    name: ClassVar[str] = "smooth"
    requires: ClassVar[frozenset[str]] = frozenset({"float"})

    alpha: float | None = None
    per_channel: bool = True
    samples: int = 128
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise UsageError(f"must lie in [0, 1], got {self.alpha}", where="smooth.alpha")
        if self.samples < 1:
            raise UsageError(f"must be at least 1, got {self.samples}", where="smooth.samples")

    def run(self, graph: Graph, context: Context) -> Graph:
        """Move outliers; raises PassError where the outputs would change."""
        from surgeon_passes.scaling.rescale import Rescaling

        rescaling = Rescaling(self.name, graph, context, self.exclude)
        chosen = [each for each in rescaling.classes if not _why_not(each)]
        factors, smoothed = self._factors(rescaling, chosen, context)
        context.record["smoothed"] = smoothed
        context.record["left"] = rescaling.left({entry["tensor"] for entry in smoothed}, _why_not)
        return rescaling.finish(factors)

    def _factors(
        self, rescaling: Rescaling, chosen: list[Class], context: Context
    ) -> tuple[NDArray[np.float64], list[dict[str, Any]]]:
        import numpy as np

        from surgeon_passes.scaling.smoothing import ALPHAS, products_of, samples_of, smoothed

        factors, facts = np.ones(rescaling.scaling.size), []
        data = context.calibration().take(self.samples)
        ranges = rescaling.ranges(chosen, data)
        chosen = [each for each in chosen if rescaling.known(each, ranges)]
        names = list(dict.fromkeys(d.op.node.inputs[0].name for each in chosen for d in each.readers))
        if not names:
            return factors, []
        graph, seed = rescaling.model.analysis.graph, context.seed_for("smooth")
        rows = samples_of(graph, names, data, threads=context.threads, seed=seed)
        with context.progress("smooth", len(chosen)) as advance:
            for each in chosen:
                alphas = ALPHAS if self.alpha is None else (self.alpha,)
                found, before, after, alpha = smoothed(
                    each,
                    products_of(each, rows, ranges),
                    alphas,
                    rescaling.scaling.size,
                    per_channel=self.per_channel,
                )
                advance(1)
                if alpha is not None:
                    factors *= found
                    facts.append(
                        {
                            "tensor": each.name,
                            "channels": len(each.labels),
                            "alpha": alpha,
                            "error_before": before,
                            "error_after": after,
                        }
                    )
        return factors, facts


def _why_not(each: Class) -> str:
    """Why a class is not smoothed; '' where it is."""
    if not each.readers:
        return "no weights read its channels"
    other = next(
        (d.op for d in each.readers if d.op.node.op not in PRODUCTS or d.op.attribute("transA", 0)), None
    )
    return f"{other.name}: is no matrix product of rows; equalize has it" if other is not None else ""
