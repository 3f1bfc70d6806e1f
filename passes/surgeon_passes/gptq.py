"""The pass ``gptq``: weights of a quantized model are rounded anew, so that they make up for one another's errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from surgeon.errors import UsageError
from surgeon.passes import Pass

if TYPE_CHECKING:
    from surgeon.passes import Context, Graph


@dataclass(frozen=True)
class Gptq(Pass):
    """Second-order rounding of the weights of a quantized model.

    Operators are visited in order. Each reads what the quantized ones before it put out and aims at what the float model
    computes there: its best float weights are found in closed form and rounded one by one, the rest making up for what
    each loses. Scales stay as they are. What is not better than plain rounding on held-out places is not taken.

    Attributes:
        original: The float model that the quantized one was made of; by default that of ``quantize`` in the same run.
        samples: Calibration samples used at most.
        ordered: Inputs with the largest mean square are rounded first, so that most can make up for them.
        sweeps: How often all weights are visited again afterwards, each taking the best integer with the others as they are.
        memory: Megabytes of activations held in memory, per model; the rest goes to temporary files.
        exclude: Operators whose name, or that of their weight, matches one of these patterns stay as they are.
    """

    name: ClassVar[str] = "gptq"
    requires: ClassVar[frozenset[str]] = frozenset({"qdq"})
    learns: ClassVar[bool] = True

    original: str | None = None
    samples: int = 512
    ordered: bool = True
    sweeps: int = 2
    memory: int = 2048
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option in ("samples", "memory"):
            if getattr(self, option) < 1:
                raise UsageError(f"must be at least 1, got {getattr(self, option)}", where=f"gptq.{option}")
        if self.sweeps < 0:
            raise UsageError(f"must not be negative, got {self.sweeps}", where="gptq.sweeps")

    def run(self, graph: Graph, context: Context) -> Graph:
        """Round the weights of ``graph``; raises UsageError where its float original is not known."""
        from surgeon.refit.gptq import round_again
        from surgeon_passes.quantizing import values
        from surgeon_passes.training.excluded import excluded_by

        reference = values.float_original(context, self.name, self.original)
        feeds = list(values.batches(context, self.samples))
        with context.progress(self.name, None) as advance:
            found = round_again(
                graph,
                reference,
                feeds,
                ordered=self.ordered,
                sweeps=self.sweeps,
                seed=context.seed_for(self.name),
                threads=context.threads,
                limit_bytes=self.memory * values.MEGABYTE,
                excluded=excluded_by(context, self.exclude),
                progress=advance,
            )
        values.describe(found, context, "rounding", "gptq.memory", self.memory)
        values.warn_of_nothing(found.errors, found.left, context, "weights were rounded anew")
        return graph
