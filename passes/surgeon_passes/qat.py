"""The pass ``qat``: a quantized model learns end to end to put out what the float one does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from surgeon_passes.training.options import Training

if TYPE_CHECKING:
    from surgeon.grad.tape import Tape, Value
    from surgeon.passes import Context, Graph
    from surgeon.reference import Reference
    from surgeon.refit.softened import Softened
    from surgeon.refit.whole import Trained

HINTED_BATCHES = 8  # whose outputs the variances are taken from


@dataclass(frozen=True)
class Qat(Training):
    """Quantization-aware training without labels, or with them.

    Weights and biases are rounded in every step as they are in the model, and gradients pass straight through the rounding
    of weights and activations where that cuts nothing off. The model learns, as in the pass ``distill``, to put out what
    the model of before the run's first change does. Scales, zero points and the structure stay. It stays as it was unless
    that is better on held-out samples, rounded.

    Attributes:
        original: The float model that the quantized one was made of; by default what ``quantize`` in the same run was given,
            and what the run started from as the one to learn from.
        samples: Calibration samples used at most; by default all.
        rate: The largest learning rate, relative to the largest number of each weight.
        vary: Whether unlabelled images are moved a little, and mirrored where the original hardly minds.
        labels: Whether the cross entropy with labels is made small, too.
    """

    name: ClassVar[str] = "qat"
    requires: ClassVar[frozenset[str]] = frozenset({"qdq"})

    rate: float = 1e-4
    original: str | None = None
    samples: int | None = None
    vary: bool = True
    labels: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples is not None:
            self.at_least_one("samples")

    def run(self, graph: Graph, context: Context) -> Graph:
        """Train ``graph``; raises UsageError where its float original is not known, or the data do not fit it."""
        from surgeon.refit.distill import Teacher
        from surgeon.refit.softened import soften
        from surgeon.refit.whole import train_whole
        from surgeon.stats.variants import variation_for
        from surgeon_passes.quantizing.values import float_original
        from surgeon_passes.training.excluded import excluded_by
        from surgeon_passes.training.whole import Setting, lesson_of, trained

        origin = float_original(context, self.name, self.original)
        model = self._model(origin, context)
        setting = Setting.of(graph, context, labelled=self.labels, samples=self.samples)
        teacher = Teacher(model, graph, threads=context.threads)
        teacher.look_at([setting.inputs_of(batch) for batch in setting.feeds[:HINTED_BATCHES]])

        def loss(tape: Tape) -> Value:
            terms = [teacher.loss(tape, temperature=1.0, weight=0.0)]
            if setting.labelled:
                terms.append(setting.cross_entropy(tape))
            return tape.total(terms)

        variation = None
        if self.vary and not setting.labelled and (context.data is None or context.data.augment is None):
            variation = variation_for(model.graph, setting.feeds, context.threads)
        context.record["varied"] = variation is not None
        soft = soften(graph, origin, excluded_by(context, self.exclude))
        lesson = lesson_of(context, setting, loss, teacher, variation)

        def train(**how: Any) -> Trained:
            found = train_whole(soft.graph, lesson, parameters=soft.parameters, **how)
            found.stopped = {soft.places[name].constant: why for name, why in found.stopped.items()}
            return found

        _store(trained(self, context, setting, train), soft, graph, context)
        return graph

    def _model(self, origin: Reference, context: Context) -> Reference:
        """Whose outputs are learned: of what is cut the original from before, if it is of this run."""
        if self.original is not None or context.reference is None:
            return origin
        return context.reference


def _store(found: Trained, soft: Softened, graph: Graph, context: Context) -> None:
    """Put what was learned into the graph, and the report."""
    from surgeon_passes.quantizing.values import warn_of_nothing

    warn_of_nothing(soft.places, soft.left, context, "weight was trained")
    if soft.kept:
        context.record["kept"] = soft.kept
    changed, total = soft.store(graph, found.state.best)
    context.record["learned"] = {
        "changed": changed,
        "of": total,
        "left": [{"node": name, "reason": reason} for name, reason in soft.left.items()],
    }
