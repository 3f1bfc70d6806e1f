"""The pass ``distill``: a smaller model is trained end to end towards what the original puts out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from surgeon.errors import UsageError
from surgeon.passes import Pass

if TYPE_CHECKING:
    from surgeon.grad.tape import Tape, Value
    from surgeon.passes import Context, Graph

HINTED_BATCHES = 8  # whose outputs the variances are taken from


@dataclass(frozen=True)
class Distill(Pass):
    """Self-distillation: unlabelled, end to end, by gradients that onnxruntime computes.

    The model learns to put out what the original does: probabilities by their divergence, everything else, scores before
    a softmax among it, by the squared error relative to its variance. It stays as it was unless that is better on
    held-out samples. A function ``augment`` in the data file varies the samples.

    Attributes:
        steps: Steps of the optimizer at most.
        batch: Samples per step.
        rate: The largest learning rate.
        schedule: How it changes: cosine, one_cycle or constant.
        temperature: Softens probabilities that are compared.
        hints: Weight of what is compared inside, where blocks end; 0 for outputs alone.
        labels: Weight of the cross entropy with labels, where the data have any; 0 reads none.
        decay: Weight decay of matrices and kernels.
        patience: Training ends after so many evaluations, of twenty, without a better one.
        memory: Megabytes for the activations of a step; samples that do not fit run one part after the other.
        checkpoint: A file to take the training up from, written after every evaluation.
        exclude: Weights whose name, or whose operator's, matches one of these patterns stay as they are.
    """

    name: ClassVar[str] = "distill"
    requires: ClassVar[frozenset[str]] = frozenset({"float"})

    steps: int = 1000
    batch: int = 64
    rate: float = 3e-4
    schedule: Literal["cosine", "one_cycle", "constant"] = "cosine"
    temperature: float = 1.0
    hints: float = 0.0
    labels: float = 0.0
    decay: float = 0.0
    patience: int = 6
    memory: int = 2048
    checkpoint: str | None = None
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option in ("steps", "batch", "patience", "memory"):
            if getattr(self, option) < 1:
                raise UsageError(
                    f"must be at least 1, got {getattr(self, option)}", where=f"distill.{option}"
                )
        for option in ("rate", "temperature"):
            if not getattr(self, option) > 0:
                raise UsageError(f"must be above 0, got {getattr(self, option)}", where=f"distill.{option}")
        for option in ("hints", "labels", "decay"):
            if not getattr(self, option) >= 0:
                raise UsageError(
                    f"must not be negative, got {getattr(self, option)}", where=f"distill.{option}"
                )

    def run(self, graph: Graph, context: Context) -> Graph:
        """Train ``graph``; raises UsageError where the data do not fit it."""
        from surgeon.refit.block import find_trainable
        from surgeon.refit.distill import Teacher
        from surgeon_passes.training.whole import Setting, learn

        if context.reference is None:
            raise UsageError("there is no original to learn from", where="pass distill")
        hints = [name for block in find_trainable(graph)[:-1] for name in block.makes] if self.hints else []
        teacher = Teacher(context.reference, graph, hints, context.threads)
        setting = Setting.of(graph, context, labelled=self.labels > 0)
        teacher.look_at([setting.inputs_of(batch) for batch in setting.feeds[:HINTED_BATCHES]])

        def loss(tape: Tape) -> Value:
            terms = [teacher.loss(tape, temperature=self.temperature, weight=self.hints)]
            if setting.labelled:
                terms.append(setting.cross_entropy(tape) * self.labels)
            return tape.total(terms)

        return learn(self, graph, context, setting, loss, teacher)
