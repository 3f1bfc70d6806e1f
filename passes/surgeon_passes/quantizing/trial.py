"""Whether a change of values is worth it: the model is quantized with and without it, and the outputs are compared.

The ranges come from one part of the calibration samples, the comparison from the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from surgeon.errors import PassError
from surgeon.graph.copy import copy_of
from surgeon.graph.save import to_model
from surgeon.pipeline import same
from surgeon.stats.compare import is_clearly_less, output_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx
    from numpy.typing import NDArray

    from surgeon.passes import Context, Graph, Pass
    from surgeon.stats.data import Dataset

    Array = NDArray[Any]

SAMPLES = 128  # calibration samples that a trial takes at most
HELD = 0.5  # of them are compared on


@dataclass(frozen=True)
class Step:
    """A pass that changes values and not the function.

    Attributes:
        each: The pass.
        wanted: Whether it is forced (True) or left out (False).
        tried: Where neither was said, whether it is tried.
    """

    each: Pass
    wanted: bool | None
    tried: bool


def take_steps(
    graph: Graph,
    steps: list[Step],
    quantized: Callable[[Graph, Dataset], onnx.ModelProto],
    context: Context,
    samples: int,
) -> tuple[Graph, dict[str, Any]]:
    """Run the steps that are wanted, and those of the others after which the quantized model is closer to the float one.

    Args:
        graph: The float model; it is not changed.
        steps: The passes, in order; a trial of one starts from what those before it left.
        quantized: Quantizes a graph with ranges from a dataset.
        context: What the passes may ask of the run; its record is left as it was, its reference follows what is kept.
        samples: Calibration samples used at most.

    Returns:
        The graph, and for each step by name what the pass recorded, whether it was ``kept``, and the relative ``error`` of the
        quantized outputs without and with it where that was compared.
    """
    facts: dict[str, Any] = {}
    comparison = _Comparison(graph, quantized, context, samples)
    for step in steps:
        if step.wanted is False or (step.wanted is None and not step.tried):
            continue
        reference, record = context.reference, context.record
        context.record = {}
        try:
            changed = step.each.run(copy_of(graph), context)
            noted = dict(context.record)
        except PassError as error:
            if step.wanted:
                raise
            changed, noted = None, {"reason": str(error)}
        context.record = record
        kept = changed is not None and not same(graph, changed)
        kept = kept and (bool(step.wanted) or comparison.is_better(graph, changed, noted))
        facts[step.each.name] = {**noted, "kept": kept}
        if kept:
            graph = changed
        else:
            context.reference = reference
    return graph, facts


class _Comparison:
    """Errors of quantized models against the float one, on held-out samples; what was measured is remembered."""

    def __init__(
        self,
        graph: Graph,
        quantized: Callable[[Graph, Dataset], onnx.ModelProto],
        context: Context,
        samples: int,
    ) -> None:
        self.graph, self.quantized, self.context = graph, quantized, context
        self.samples = min(samples, SAMPLES)
        self.errors: dict[int, tuple[Graph, Array]] = {}

    def is_better(self, before: Graph, after: Graph, noted: dict[str, Any]) -> bool:
        """Compare two graphs; ``noted`` gets the errors, or why there are none."""
        data = self.context.calibration().take(self.samples)
        if data.total() < 2:
            noted["reason"] = "one calibration sample is too few to compare on"
            return False
        fitted, held = data.split(HELD, self.context.seed_for("trial"))
        without, with_it = (self._errors(graph, fitted, held) for graph in (before, after))
        if not len(without) or not len(with_it):
            noted["reason"] = "no output of floats has the same shape before and after quantization"
            return False
        noted["error"] = {"without": float(without.mean()), "with": float(with_it.mean())}
        return is_clearly_less(with_it, without)

    def _errors(self, graph: Graph, fitted: Dataset, held: Dataset) -> Array:
        if id(graph) not in self.errors:
            model = self.quantized(graph, fitted)
            errors = output_errors(to_model(self.graph), model, held, threads=self.context.threads)
            self.errors[id(graph)] = (graph, errors)  # the graph is held, so that its id stays its own
        return self.errors[id(graph)][1]
