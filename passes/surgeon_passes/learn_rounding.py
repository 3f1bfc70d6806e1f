"""The pass ``learn_rounding``: integers of a quantized model's weights are learned, block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from surgeon.errors import UsageError
from surgeon.passes import Pass

if TYPE_CHECKING:
    from surgeon.passes import Context, Graph
    from surgeon.reference import Reference
    from surgeon.refit.learn import Learned


@dataclass(frozen=True)
class LearnRounding(Pass):
    """Rounding that is learned by gradients, without labels.

    Each block learns which integers its weights should be, to put out what the float model does, from what the quantized
    blocks before it put out. Scales stay as they are. What is not better on held-out samples, rounded as it is then, is
    not taken.

    Attributes:
        original: The float model that the quantized one was made of; by default that of ``quantize`` in the same run.
        samples: Calibration samples used at most.
        steps: Steps per block.
        batch: Samples per step.
        rate: The largest learning rate of Adam, in steps of the grid; it falls along half a cosine.
        memory: Megabytes of activations held in memory, per model; the rest goes to temporary files.
        exclude: Operators whose name, or that of their weight, matches one of these patterns stay as they are.
    """

    name: ClassVar[str] = "learn_rounding"
    requires: ClassVar[frozenset[str]] = frozenset({"qdq"})
    learns: ClassVar[bool] = True

    original: str | None = None
    samples: int = 512
    steps: int = 200
    batch: int = 64
    rate: float = 0.01
    memory: int = 2048
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option in ("samples", "steps", "batch", "memory"):
            if getattr(self, option) < 1:
                raise UsageError(
                    f"must be at least 1, got {getattr(self, option)}", where=f"learn_rounding.{option}"
                )
        if not self.rate > 0:
            raise UsageError(f"must be above 0, got {self.rate}", where="learn_rounding.rate")

    def run(self, graph: Graph, context: Context) -> Graph:
        """Learn the weights of ``graph``; raises UsageError where its float original is not known."""
        from surgeon_passes.quantizing import values

        self.learn(graph, values.float_original(context, self.name, self.original), context)
        return graph

    def learn(self, graph: Graph, reference: Reference, context: Context) -> None:
        """Learn the weights of ``graph``, in place.

        Args:
            graph: A quantized graph.
            reference: The float graph it was made of.
            context: Of the run.
        """
        from surgeon.grad.train import Course
        from surgeon.refit.learn import learn_rounding
        from surgeon_passes.quantizing import values
        from surgeon_passes.training.excluded import excluded_by

        feeds = list(values.batches(context, self.samples))
        course = Course(
            self.steps,
            self.batch,
            self.rate,
            seed=context.seed_for(self.name),
            split=context.seed_for("held out"),
        )
        with context.progress(self.name, None) as advance:
            found = learn_rounding(
                graph,
                reference,
                feeds,
                course,
                threads=context.threads,
                limit_bytes=self.memory * values.MEGABYTE,
                excluded=excluded_by(context, self.exclude),
                progress=advance,
            )
        describe(found, context)


def describe(found: Learned, context: Context) -> None:
    """Put what was learned into the report."""
    from surgeon_passes.quantizing.values import warn_of_nothing
    from surgeon_passes.training.blocks import described

    warn_of_nothing(found.blocks.errors, found.left, context, "block was trained")
    context.record["learned"] = {
        **described(found.blocks, context),
        "changed": found.changed[0],
        "of": found.changed[1],
        "left": [{"node": name, "reason": reason} for name, reason in found.left.items()],
    }
