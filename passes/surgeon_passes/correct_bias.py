"""The pass ``correct_bias``: biases of a quantized model make up for the mean errors of its operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from surgeon.errors import UsageError
from surgeon.passes import Pass

if TYPE_CHECKING:
    from surgeon.passes import Context, Graph


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Correction of the biases of a quantized model.

    What rounding shifts an operator's result by, in the mean over the data, goes into its bias. Where an activation
    follows, the shift is the one that is best behind it. New biases are stored so that onnxruntime still fuses them.

    Attributes:
        original: The float model that the quantized one was made of; by default that of ``quantize`` in the same run.
        samples: Calibration samples used at most.
        memory: Megabytes of activations held in memory, per model; the rest goes to temporary files.
        exclude: Operators whose name, or that of their result, matches one of these patterns stay as they are.
    """

    name: ClassVar[str] = "correct_bias"
    requires: ClassVar[frozenset[str]] = frozenset({"qdq"})
    learns: ClassVar[bool] = True

    original: str | None = None
    samples: int = 512
    memory: int = 2048
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option in ("samples", "memory"):
            if getattr(self, option) < 1:
                raise UsageError(
                    f"must be at least 1, got {getattr(self, option)}", where=f"correct_bias.{option}"
                )

    def run(self, graph: Graph, context: Context) -> Graph:
        """Correct the biases of ``graph``; raises UsageError where its float original is not known."""
        from surgeon.refit.correct import correct_biases
        from surgeon_passes.quantizing import values
        from surgeon_passes.training.excluded import excluded_by

        reference = values.float_original(context, self.name, self.original)
        feeds = values.batches(context, self.samples)
        with context.progress(self.name, None) as advance:
            found = correct_biases(
                graph,
                reference,
                feeds,
                threads=context.threads,
                limit_bytes=self.memory * values.MEGABYTE,
                excluded=excluded_by(context, self.exclude),
                progress=advance,
            )
        values.describe(found, context, "biases", "correct_bias.memory", self.memory)
        values.warn_of_nothing(found.errors, found.left, context, "bias was corrected")
        return graph
