"""Biases of a quantized graph that make up for the mean error of what they are added to.

Rounding shifts the mean of what an operator computes; the shift goes into its bias: Banner et al., arXiv 1810.05723, and
Nagel et al., arXiv 1906.04721. Operators are visited in topological order, each with the corrected ones before it. Behind
an activation the best shift is not the mean error, but what the mean error of a few least-squares steps leads to, see
`surgeon.refit.through`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.refit.biases import drop_zero_biases, give_biases
from surgeon.refit.fit import TINY
from surgeon.refit.twins import Twin, Twins
from surgeon.stats.bias import read_bias, write_bias
from surgeon.stats.replay import Replay
from surgeon.stats.weight import is_rounded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.reference import Reference
    from surgeon.refit.target import Target

    Array = NDArray[Any]
    Feeds = Sequence[Mapping[str, Array]]

STEPS = 4


@dataclass
class Corrected:
    """What was done.

    Attributes:
        errors: For each operator its squared error before and after, behind its activation, relative to the variance.
        left: Operators whose bias stays as it is, and why.
        spilled: How many arrays went to temporary files for lack of memory.
    """

    errors: dict[str, tuple[float, float]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    spilled: int = 0


def correct_biases(
    graph: gs.Graph,
    reference: Reference,
    feeds: Feeds,
    *,
    threads: int = 1,
    limit_bytes: int = 2**31,
    excluded: Callable[[str], bool] = lambda _: False,
    progress: Callable[[int], None] = lambda _: None,
) -> Corrected:
    """Correct the biases of all operators with rounded weights, in place.

    Args:
        graph: A quantized graph.
        reference: The float graph it was made from.
        feeds: Calibration batches, without labels.
        threads: Threads for onnxruntime.
        limit_bytes: Activations held in memory, per graph.
        excluded: Whether a node or tensor, by name, is to be left alone.
        progress: Called with 1 after each operator.
    """
    given = give_biases(graph)
    result = _Walk(graph, reference, feeds, threads, limit_bytes).run(excluded, progress)
    drop_zero_biases(graph, given)
    return result


class _Walk:
    def __init__(
        self, graph: gs.Graph, reference: Reference, feeds: Feeds, threads: int, limit_bytes: int
    ) -> None:
        self.reference = reference
        self.twins = Twins.of(graph, reference)
        options: dict[str, Any] = {"threads": threads, "limit_bytes": limit_bytes}
        self.old = Replay(reference.graph, self.twins.original_shapes.dtypes, feeds, **options)
        self.new = Replay(graph, self.twins.shapes.dtypes, feeds, **options)
        self.nodes = {node.outputs[0].name: node for node in graph.nodes if node.outputs}
        self.outputs = {tensor.name for tensor in graph.outputs}
        self.batches = len(feeds)
        self.pending: set[str] = set()

    def run(self, excluded: Callable[[str], bool], progress: Callable[[int], None]) -> Corrected:
        result = Corrected(left=dict(self.twins.left))
        work = []
        for twin in self.twins.found:
            reason = self._why_not(twin, excluded)
            if reason:
                result.left[twin.label] = reason
            else:
                work.append(twin)
        self.pending = {twin.node.outputs[0].name for twin in work}
        held = [sorted(self.twins.may_read(twin)) for twin in work]
        for name in (name for names in held for name in names):
            self.old.hold(name)
        for twin, names in zip(work, held, strict=True):
            result.errors[twin.label] = self._correct(twin)
            self.pending.discard(twin.node.outputs[0].name)
            for name in names:
                self.old.release(name)
            progress(1)
        result.spilled = self.old.store.spilled + self.new.store.spilled
        return result

    def _why_not(self, twin: Twin, excluded: Callable[[str], bool]) -> str:
        node, bias = twin.node, twin.view.bias
        if any(excluded(name) for name in (node.name, *(t.name for t in node.outputs)) if name):
            return "excluded"
        if not is_rounded(node.inputs[twin.view.weight]):
            return "its weight is not rounded"
        if bias is None:
            return "nothing is added to it"
        if twin.view.output != node.outputs[0].name and node.outputs[0].name in self.outputs:
            return "the model puts out its result before the bias is added"
        return ""

    def _correct(self, twin: Twin) -> tuple[float, float]:
        view = twin.view
        target = self.twins.target(twin, lambda name: not self.new.runs([name]) & self.pending)
        wanted = {*view.reads, view.output, *((target.other,) if target.other else ())}
        for name in wanted:
            self.new.hold(name)
        self.old.advance([target.tensor])
        self.new.advance(sorted(wanted))
        before = read_bias(view, self.nodes)
        shift, errors = self._best(twin, target, before.shape)
        if shift.any():
            write_bias(view, self.nodes, before + shift)
            self.new.again(self._makers(twin), view.output)
        for name in wanted:
            self.new.release(name)
        return errors

    def _best(
        self, twin: Twin, target: Target, shape: tuple[int, ...]
    ) -> tuple[NDArray[np.float64], tuple[float, float]]:
        """For each output the shift that does best, and the squared errors with none and with it."""
        shift = best = np.zeros(shape)
        first = least = np.full(shape, np.inf)
        energy = TINY
        for step in range(1 + (STEPS if target.through else 1)):
            error, change, total, square, count = (np.zeros(shape) for _ in range(5))
            for made, wished, other in self._parts(twin, target, shape[0]):
                moved = made + shift.astype(np.float32)
                result, truth = moved, wished
                towards = wished - moved - (0.0 if other is None else other)
                if target.through is not None:
                    whole = moved if other is None else moved + other
                    result, truth = target.through.function(whole), target.through.function(wished)
                    towards = target.through.towards(whole, wished) - whole
                elif other is not None:
                    result = moved + other
                error += np.square(result - truth, dtype=np.float64).sum(axis=1, keepdims=True)
                change += towards.sum(axis=1, keepdims=True, dtype=np.float64)
                total += truth.sum(axis=1, keepdims=True, dtype=np.float64)
                square += np.square(truth, dtype=np.float64).sum(axis=1, keepdims=True)
                count += made.shape[1]
            if not step:
                first = error
                energy = max(float((square - total**2 / np.maximum(count, 1)).sum()), TINY)
            better = error < least
            best, least = np.where(better, shift, best), np.where(better, error, least)
            shift = shift + change / np.maximum(count, 1)
        finite = np.isfinite(best) & np.isfinite(first)
        return np.where(finite, best, 0.0), (float(first.sum()) / energy, float(least.sum()) / energy)

    def _parts(self, twin: Twin, target: Target, groups: int) -> Iterator[tuple[Array, Array, Array | None]]:
        """Per batch what is made, what is wanted with what is added, and what is added: ``[groups, places, outputs]``."""
        view = twin.view
        for batch in range(self.batches):

            def read(name: str, batch: int = batch) -> Array:
                return self.new.get(name, batch)

            places = np.arange(view.count(read))
            wished = self.reference.left(target.tensor, self.old.get(target.tensor, batch))
            yield (
                view.results(read(view.output), places, groups),
                view.results(wished, places, groups),
                view.results(read(target.other), places, groups) if target.other else None,
            )

    def _makers(self, twin: Twin) -> list[gs.Node]:
        """The nodes that compute the result from what is stored: those of weights and bias among them."""
        found: dict[int, gs.Node] = {}
        left = [self.nodes[twin.view.output]]
        stored = set(twin.view.reads)
        while left:
            node = left.pop()
            found[id(node)] = node
            for tensor in node.inputs:
                if not isinstance(tensor, gs.Constant) and tensor.name and tensor.name not in stored:
                    left += tensor.inputs
        return list(found.values())
