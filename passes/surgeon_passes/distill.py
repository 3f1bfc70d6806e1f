"""The pass ``distill``: a smaller model is trained end to end towards what the original puts out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from surgeon.errors import UsageError
from surgeon_passes.training.options import EndToEnd

if TYPE_CHECKING:
    from surgeon.grad.tape import Tape, Value
    from surgeon.passes import Context, Graph

HINTED_BATCHES = 8  # whose outputs the variances are taken from


@dataclass(frozen=True)
class Distill(EndToEnd):
    """Self-distillation: unlabelled, end to end, by gradients that onnxruntime computes.

    The model learns to put out what the original does: probabilities by their divergence, everything else, scores before
    a softmax among it, by the squared error relative to its variance. It stays as it was unless that is better on
    held-out samples. A function ``augment`` in the data file varies the samples; without one images are varied, and
    those to judge by are mirrored, for what was fitted before would look too good on samples it has seen.

    Attributes:
        temperature: Softens probabilities that are compared.
        hints: Weight of what is compared inside, where blocks end; 0 for outputs alone.
        vary: Whether unlabelled images are moved a little, and mirrored where the original hardly minds.
        labels: Weight of the cross entropy with labels, where the data have any; 0 reads none.
    """

    name: ClassVar[str] = "distill"

    temperature: float = 1.0
    hints: float = 0.0
    vary: bool = True
    labels: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise UsageError(f"must be above 0, got {self.temperature}", where="distill.temperature")
        self.not_negative("hints", "labels")

    def run(self, graph: Graph, context: Context) -> Graph:
        """Train ``graph``; raises UsageError where the data do not fit it."""
        from surgeon.refit.distill import Teacher
        from surgeon.refit.turns import find_trainable
        from surgeon.stats.variants import variation_for
        from surgeon_passes.training.whole import Setting, as_reference, learn

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

        variation = None
        if self.vary and not setting.labelled and (context.data is None or context.data.augment is None):
            variation = variation_for(context.reference.graph, setting.feeds, context.threads)
        context.record["varied"] = variation is not None
        learned = learn(self, graph, context, setting, loss, teacher, variation=variation)
        return as_reference(learned, context) if self.labels else learned
