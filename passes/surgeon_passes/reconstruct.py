"""The pass ``reconstruct``: blocks of a cut model are trained, without labels, towards what the original has there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from surgeon.errors import UsageError
from surgeon.passes import Pass

if TYPE_CHECKING:
    from surgeon.passes import Context, Graph
    from surgeon.refit.block import Reconstructed

    Feeds: TypeAlias = dict[str, Any]

TENSORS = 4  # what a block reads and what it should make, of the model and of the original
VARIANTS = 3
PATIENCE = 2  # evaluations, of four, after which what is no better yet is given up
STEPS = {"fast": 100, "default": 300, "thorough": 1000}


@dataclass(frozen=True)
class Reconstruct(Pass):
    """Block-wise training: unlabelled, by gradients that onnxruntime computes.

    Each block, between places that as few tensors as possible cross, learns to put out what the original does, from what
    the blocks before it, as trained, put out. No block is kept unless it is better on held-out samples, and of all that is
    kept only as much as the model's outputs are not worse for.

    Attributes:
        effort: Steps at a time: fast (100), default (300) or thorough (1000). A block that is trained once more with its
            neighbours takes half of them before; the last ones take all.
        steps: So many steps instead of ``effort``.
        batch: Samples per step; of large images fewer, down to 8.
        rate: The largest learning rate of Adam; it falls along half a cosine.
        neighbours: So many blocks in a row are trained as one, after each of them was; 1 for each block alone.
        variants: Variants of every sample that are learned from as well; by default three, as long as memory holds them, of
            images that the original puts out nearly the same for when they are mirrored (one mirrored, two moved a
            little), and of what a function ``augment`` in the data file varies.
        memory: Megabytes of activations held in memory, per model; the rest goes to temporary files.
        exclude: Weights whose name, or whose operator's, matches one of these patterns stay as they are.
    """

    name: ClassVar[str] = "reconstruct"
    requires: ClassVar[frozenset[str]] = frozenset({"float"})
    learns: ClassVar[bool] = True
    trains: ClassVar[bool] = True

    effort: Literal["fast", "default", "thorough"] = "default"
    steps: int | None = None
    batch: int = 64
    rate: float = 1e-3
    neighbours: int = 3
    variants: int | None = None
    memory: int = 2048
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.variants is not None and self.variants < 0:
            raise UsageError(f"must not be negative, got {self.variants}", where="reconstruct.variants")
        for option in ("steps", "batch", "neighbours", "memory"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise UsageError(f"must be at least 1, got {value}", where=f"reconstruct.{option}")
        if not self.rate > 0:
            raise UsageError(f"must be above 0, got {self.rate}", where="reconstruct.rate")

    def run(self, graph: Graph, context: Context) -> Graph:
        """Train the blocks of ``graph``; raises UsageError where the data do not fit it."""
        import time

        from surgeon.grad.train import Course
        from surgeon.refit.block import reconstruct
        from surgeon.refit.turns import turns_of
        from surgeon.stats.promises import noted
        from surgeon_passes.training.excluded import excluded_by

        if context.reference is None:
            raise UsageError("there is no original to learn from", where="pass reconstruct")
        if context.plan is not None and context.plan.interface:
            context.warn("inputs of the model were cut, which the data do not fit: nothing was reconstructed")
            return graph
        steps = STEPS[self.effort] if self.steps is None else self.steps
        course = Course(
            steps,
            self.batch,
            self.rate,
            patience=PATIENCE,
            seed=context.seed_for("reconstruct"),
            split=context.seed_for("held out"),
        )
        feeds = [batch[0] for batch in context.calibration()]
        more = self._variants(graph, feeds, context)
        started = time.perf_counter()
        with context.progress("reconstruct", steps * len(turns_of(graph, self.neighbours))) as advance:
            found = reconstruct(
                graph,
                context.reference,
                [*feeds, *more],
                course,
                neighbours=self.neighbours,
                variants=len(more) // len(feeds),
                threads=context.threads,
                limit_bytes=self.memory * 2**20,
                excluded=excluded_by(context, self.exclude),
                progress=advance,
            )
        context.record["variants"] = len(more) // len(feeds)
        _describe(found, context, self.memory, time.perf_counter() - started)
        if kept := noted(graph):
            context.record["kept"] = kept
        return graph

    def _variants(self, graph: Graph, feeds: list[Feeds], context: Context) -> list[Feeds]:
        """Batches of varied samples, variant by variant."""
        import numpy as np

        from surgeon.stats.variants import ImageVariation, variants_of, variation_for

        reference: Any = context.reference
        augment = None if context.data is None else context.data.augment
        vary = augment or variation_for(reference.graph, feeds, context.threads)
        if vary is None:
            if self.variants:
                raise UsageError(
                    "only images can be varied",
                    where="reconstruct.variants",
                    hint="let the data file have a function augment(feeds, random)",
                )
            return []
        count = self.variants
        if count is None:
            samples = sum(max((np.shape(array) or (1,))[0] for array in batch.values()) for batch in feeds)
            wanted = not isinstance(vary, ImageVariation) or vary.mirror
            count = min(VARIANTS, self._held(graph, samples)) if wanted else 0
        return variants_of(feeds, vary, count, context.seed_for("variants"))

    def _held(self, graph: Graph, samples: int) -> int:
        """How many variants keep four of the largest tensors within the memory."""
        from surgeon.graph.shapes import infer

        shapes = infer(graph)
        first = (shapes.dims.get(graph.inputs[0].name) or (1,))[0]
        largest = max(
            4 * math.prod(dims) / max(first, 1) for dims in shapes.dims.values() if dims is not None
        )
        return int(self.memory * 2**20 / (TENSORS * largest * samples)) - 1


def _describe(found: Reconstructed, context: Context, memory: int, seconds: float) -> None:
    from surgeon_passes.training.blocks import described

    if not (found.errors or found.stopped):
        context.warn("no block has both weights to train and results that differ from the original's")
    if found.errors and not found.kept and found.outcome is None:
        context.warn("reconstruct made no block better on held-out samples: the model stays as it was")
    unknown = [name for name, (before, _) in found.errors.items() if not math.isfinite(before)]
    if unknown:
        context.warn(
            f"infinite values cannot be learned from: {len(unknown)} blocks stay, the first: {unknown[0]}"
        )
    if found.spilled:
        context.warn(
            f"activations took more than reconstruct.memory ({memory} MB) and went to temporary files, "
            "which takes longer; fewer samples or more memory avoid it"
        )
    context.record["changed"] = bool(found.kept)
    context.record["training"] = {"seconds": seconds, **described(found, context)}
