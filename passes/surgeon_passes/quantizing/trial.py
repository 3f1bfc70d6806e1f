"""Whether a change of values is worth it: the model is quantized with and without it, and the outputs are compared.

The ranges come from one part of the calibration samples, the comparison from the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.errors import PassError
from surgeon.graph import sessions
from surgeon.graph.copy import copy_of
from surgeon.graph.save import to_model
from surgeon.pipeline import same
from surgeon.stats.data import runnable

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx
    from numpy.typing import NDArray

    from surgeon.passes import Context, Graph, Pass
    from surgeon.stats.data import Dataset

    Array = NDArray[Any]

SAMPLES = 128  # calibration samples that a trial takes at most
HELD = 0.5  # of them are compared on

TINY = 1e-12


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


def is_clearly_less(found: Array, than: Array) -> bool:
    """Whether errors of the same samples are smaller by more than the standard error of the mean difference."""
    gain = than - found
    doubt = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else 0.0
    return bool(gain.mean() > doubt)


def output_errors(expected: onnx.ModelProto, found: onnx.ModelProto, data: Dataset, *, threads: int) -> Array:
    """How far the outputs of one model are from those of another.

    Args:
        expected: The model to be like.
        found: The other model.
        data: Samples; one batch is in memory at a time.
        threads: Threads for onnxruntime.

    Returns:
        For each sample (or batch, where outputs are not per sample) the squared difference, relative to the mean square of
        that output over all samples, on average over the outputs of floats; empty where no such output has the same shape in
        both models.
    """
    first, second = (sessions.session(model, threads=threads) for model in (expected, found))
    wrong: list[list[Array | None]] = []
    whole: list[list[Array | None]] = []
    for feeds, _ in runnable(data, first):
        size = len(next(iter(feeds.values()))) if feeds and np.ndim(next(iter(feeds.values()))) else 1
        pairs = list(zip(sessions.run(first, feeds), sessions.run(second, feeds), strict=True))
        same = [x.dtype.kind == "f" and x.shape == y.shape for x, y in pairs]
        parts = (
            size
            if all(x.ndim and len(x) == size for (x, _), ok in zip(pairs, same, strict=True) if ok)
            else 1
        )
        wrong.append([_squares(x, y, parts) if ok else None for (x, y), ok in zip(pairs, same, strict=True)])
        whole.append(
            [_squares(x, 0.0, parts) if ok else None for (x, _), ok in zip(pairs, same, strict=True)]
        )
    errors = []
    for index in range(len(wrong[0])):
        parts_of = [batch[index] for batch in wrong]
        if any(part is None for part in parts_of):  # decisions, and lists of what was found
            continue
        energy = max(float(np.concatenate([batch[index] for batch in whole]).mean()), TINY)
        errors.append(np.concatenate(parts_of) / energy)  # type: ignore[arg-type]  # none is None
    lengths = {len(each) for each in errors}
    return np.mean(errors, axis=0) if len(lengths) == 1 else np.zeros(0)


def _squares(x: Array, y: Array | float, parts: int) -> Array:
    """The squared differences, summed over each of so many parts."""
    difference: Array = np.square(np.subtract(x, y, dtype=np.float64)).reshape(parts, -1).sum(axis=1)
    return difference
