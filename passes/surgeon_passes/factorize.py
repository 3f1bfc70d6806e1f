"""The pass ``factorize``: operators become two smaller ones with few channels in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from surgeon.errors import UsageError
from surgeon.passes import Pass

if TYPE_CHECKING:
    from surgeon.passes import Context, Graph

DEFAULT_TARGET = 0.67


@dataclass(frozen=True)
class Factorize(Pass):
    """Low-rank and spatial splits: a convolution or matrix product becomes two that cost less together.

    What each split leaves out at each rank is known from second moments of the data, and the ranks are shared out so that
    the target is met with the least error in all. Operators are then fitted in order, each to what the original computes
    there, and reads what those before it now put out.

    Attributes:
        macs: At most this fraction of the multiply-accumulates of the model; by default the run's target, or 0.67.
        kinds: Splits of convolutions that are considered: outputs (k×k to few channels, then 1×1), inputs (1×1 to few
            channels, then k×k), spatial (k×1 to few channels, then 1×k). Matrix products are always considered.
        round_to: Ranks are multiples of this; by default of what onnxruntime's CPU kernels like, 4 to 16.
        refit: Refit what is split, and everything behind it, to what the original computes.
        sensitivity: Weigh each operator's error by what of it is left at the model's outputs after a refit; at most 16 are
            tried, the others count as their neighbours.
        samples: Calibration samples used at most.
        memory: Megabytes of activations held in memory, per model; the rest goes to temporary files.
        exclude: Operators whose name, or that of their weight or output, matches one of these patterns stay as they are.
    """

    name: ClassVar[str] = "factorize"
    requires: ClassVar[frozenset[str]] = frozenset({"float"})
    learns: ClassVar[bool] = True

    macs: float | None = None
    kinds: tuple[Literal["outputs", "inputs", "spatial"], ...] = ("outputs", "inputs", "spatial")
    round_to: int | None = None
    refit: bool = True
    sensitivity: bool = True
    samples: int = 1024
    memory: int = 2048
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.macs is not None and not 0 < self.macs < 1:
            raise UsageError(f"must lie between 0 and 1, got {self.macs}", where="factorize.macs")
        for option in ("round_to", "samples", "memory"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise UsageError(f"must be at least 1, got {value}", where=f"factorize.{option}")

    def run(self, graph: Graph, context: Context) -> Graph:
        """Split operators of ``graph``.

        Raises:
            GateError: There is nothing to split, or the target cannot be met.
        """
        from surgeon_passes.factorizing.split import Splitter
        from surgeon_passes.training.excluded import excluded_by
        from surgeon_passes.valuing.samples import batches

        feeds = batches(context.calibration(), self.samples, graph, context)
        splitter = Splitter(graph, context, feeds, self, excluded_by(context, self.exclude))
        with context.progress(self.name, None) as advance:
            splitter.split(splitter.measured(advance), self.fraction(context), advance)
        return graph

    def fraction(self, context: Context) -> float:
        """The target in force: the pass's own, else the run's, else 0.67."""
        return context.macs_left(self.name, self.macs, DEFAULT_TARGET)
