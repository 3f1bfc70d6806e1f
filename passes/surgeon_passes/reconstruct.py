"""The pass ``reconstruct``: blocks of a cut model are trained, without labels, towards what the original has there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from surgeon.errors import UsageError
from surgeon.passes import Pass

if TYPE_CHECKING:
    from surgeon.passes import Context, Graph
    from surgeon.refit.block import Reconstructed

STEPS = {"fast": 100, "default": 300, "thorough": 1000}


@dataclass(frozen=True)
class Reconstruct(Pass):
    """Block-wise training: unlabelled, by gradients that onnxruntime computes.

    Each block, between places that as few tensors as possible cross, learns to put out what the original does, from what
    the blocks before it, as trained, put out. It stays as it was unless that is better on held-out samples.

    Attributes:
        effort: Steps per block: fast (100), default (300) or thorough (1000).
        steps: Steps per block, instead of ``effort``.
        batch: Samples per step.
        rate: The largest learning rate of Adam; it falls along half a cosine.
        memory: Megabytes of activations held in memory, per model; the rest goes to temporary files.
        exclude: Weights whose name, or whose operator's, matches one of these patterns stay as they are.
    """

    name: ClassVar[str] = "reconstruct"
    requires: ClassVar[frozenset[str]] = frozenset({"float"})

    effort: Literal["fast", "default", "thorough"] = "default"
    steps: int | None = None
    batch: int = 64
    rate: float = 1e-3
    memory: int = 2048
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option in ("steps", "batch", "memory"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise UsageError(f"must be at least 1, got {value}", where=f"reconstruct.{option}")
        if not self.rate > 0:
            raise UsageError(f"must be above 0, got {self.rate}", where="reconstruct.rate")

    def run(self, graph: Graph, context: Context) -> Graph:
        """Train the blocks of ``graph``; raises UsageError where the data do not fit it."""
        import time

        from surgeon.grad.train import Course
        from surgeon.refit.block import find_trainable, reconstruct
        from surgeon_passes.training.excluded import excluded_by

        if context.reference is None:
            raise UsageError("there is no original to learn from", where="pass reconstruct")
        if context.plan is not None and context.plan.interface:
            context.warn("inputs of the model were cut, which the data do not fit: nothing was reconstructed")
            return graph
        steps = STEPS[self.effort] if self.steps is None else self.steps
        course = Course(steps, self.batch, self.rate, seed=context.seed_for("reconstruct"))
        feeds = [batch[0] for batch in context.calibration()]
        started = time.perf_counter()
        with context.progress("reconstruct", steps * len(find_trainable(graph))) as advance:
            found = reconstruct(
                graph,
                context.reference,
                feeds,
                course,
                threads=context.threads,
                limit_bytes=self.memory * 2**20,
                excluded=excluded_by(context, self.exclude),
                progress=advance,
            )
        _describe(found, context, self.memory, time.perf_counter() - started)
        return graph


def _describe(found: Reconstructed, context: Context, memory: int, seconds: float) -> None:
    if found.stopped:
        name, why = next(iter(found.stopped.items()))
        context.warn(f"{len(found.stopped)} weights cannot be trained, the first: {name}: {why}")
    if not found.errors:
        context.warn("no block has anything to learn: the model already computes what the original does")
    if found.spilled:
        context.warn(
            f"activations took more than reconstruct.memory ({memory} MB) and went to temporary files, "
            "which takes longer; fewer samples or more memory avoid it"
        )
    context.record["changed"] = bool(found.kept)
    context.record["training"] = {
        "seconds": seconds,
        "blocks": [
            {"block": name, "error_before": before, "error_after": after, "kept": name in found.kept}
            for name, (before, after) in found.errors.items()
        ],
        "stopped": dict(found.stopped),
    }
