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
from surgeon.stats.variants import samples_in
from surgeon.stats.weight import is_rounded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.reference import Reference
    from surgeon.refit.target import Target
    from surgeon.stats.linear import Linear

    Array = NDArray[Any]
    Feeds = Sequence[Mapping[str, Array]]

STEPS = 2
AT_ONCE = 32  # samples
LOOKED_AT = 2**22  # numbers of a result at most, as long as a batch has no more


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
    feeds: Iterable[Mapping[str, Array]],
    *,
    threads: int = 1,
    limit_bytes: int = 2**31,
    excluded: Callable[[str], bool] = lambda _: False,
    progress: Callable[[int], None] = lambda _: None,
) -> Corrected:
    """Correct the biases of all operators with rounded weights, in place.

    However many samples there are, activations of a few are held: each few give corrections of their own, and the mean of
    these is taken.

    Args:
        graph: A quantized graph.
        reference: The float graph it was made from.
        feeds: Calibration batches, without labels.
        threads: Threads for onnxruntime.
        limit_bytes: Activations held in memory, per graph.
        excluded: Whether a node or tensor, by name, is to be left alone.
        progress: Called with 1 after each operator of every few samples.
    """
    given = give_biases(graph)
    twins = Twins.of(graph, reference)

    def walked(part: Feeds) -> tuple[int, Corrected, list[tuple[Linear, NDArray[np.float64]]]]:
        walk = _Walk(twins, graph, reference, part, threads, limit_bytes)
        return sum(map(samples_in, part)), walk.run(excluded, progress), walk.undo()

    walks = [walked(part) for part in _parted(feeds)]
    if not walks:
        drop_zero_biases(graph, given)
        return Corrected()
    weights = np.array([samples for samples, _, _ in walks]) / sum(samples for samples, _, _ in walks)
    nodes = {node.outputs[0].name: node for node in graph.nodes if node.outputs}
    for number, (view, _) in enumerate(walks[0][2]):
        biases = [undone[number][1] for _, _, undone in walks]
        write_bias(view, nodes, np.tensordot(weights, biases, 1))
    drop_zero_biases(graph, given)
    return _joined([found for _, found, _ in walks], weights)


def _parted(feeds: Iterable[Mapping[str, Array]]) -> Iterator[list[Mapping[str, Array]]]:
    part: list[Mapping[str, Array]] = []
    for batch in feeds:
        if part and sum(map(samples_in, [*part, batch])) > AT_ONCE:
            yield part
            part = []
        part.append(batch)
    if part:
        yield part


def _joined(found: Sequence[Corrected], weights: NDArray[np.float64]) -> Corrected:
    errors = {
        label: (
            float(sum(w * each.errors[label][0] for w, each in zip(weights, found, strict=True))),
            float(sum(w * each.errors[label][1] for w, each in zip(weights, found, strict=True))),
        )
        for label in found[0].errors
    }
    return Corrected(errors, found[0].left, sum(each.spilled for each in found))


class _Sums:
    """Sums over places for each output; the last ``kept`` axes are those of the outputs."""

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self.error: Any = 0.0
        self.change: Any = 0.0
        self.total: Any = 0.0
        self.square: Any = 0.0
        self.count = 0

    def add(self, result: Array, truth: Array, change: Array) -> None:
        """Add the places of a batch: what is computed, what should be, and what the next step would change."""
        places = tuple(range(truth.ndim - self.kept))
        difference = result - truth
        self.error = self.error + np.square(difference).sum(axis=places, dtype=np.float64)
        self.change = self.change + change.sum(axis=places, dtype=np.float64)
        self.total = self.total + truth.sum(axis=places, dtype=np.float64)
        self.square = self.square + np.square(truth).sum(axis=places, dtype=np.float64)
        self.count += int(np.prod(truth.shape[: len(places)]))


class _Walk:
    def __init__(
        self,
        twins: Twins,
        graph: gs.Graph,
        reference: Reference,
        feeds: Feeds,
        threads: int,
        limit_bytes: int,
    ) -> None:
        self.reference = reference
        self.twins = twins
        options: dict[str, Any] = {"threads": threads, "limit_bytes": limit_bytes}
        self.old = Replay(reference.graph, self.twins.original_shapes.dtypes, feeds, **options)
        self.new = Replay(graph, self.twins.shapes.dtypes, feeds, **options)
        self.nodes = {node.outputs[0].name: node for node in graph.nodes if node.outputs}
        self.outputs = {tensor.name for tensor in graph.outputs}
        self.batches = len(feeds)
        self.pending: set[str] = set()
        self.biases: list[tuple[Linear, NDArray[np.float64]]] = []

    def undo(self) -> list[tuple[Linear, NDArray[np.float64]]]:
        """Put the biases back that there were; returns those that there would be, in order."""
        result = [(view, read_bias(view, self.nodes)) for view, _ in self.biases]
        for view, before in reversed(self.biases):
            write_bias(view, self.nodes, before)
        return result

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
        if not twin.view.output:
            return "its products are no tensors"
        if bias is None:
            return "nothing is added to it"
        if twin.view.output != node.outputs[0].name and node.outputs[0].name in self.outputs:
            return "the model puts out its result before the bias is added"
        return ""

    def _correct(self, twin: Twin) -> tuple[float, float]:
        view = twin.view
        target = self.twins.target(twin, lambda name: not self.new.runs([name]) & self.pending)
        wanted = {view.output, *((target.other,) if target.other else ())}
        for name in wanted:
            self.new.hold(name)
        self.old.advance([target.tensor])
        self.new.advance(sorted(wanted))
        before = read_bias(view, self.nodes)
        self.biases.append((view, before))
        shift, errors = self._best(twin, target)
        if shift.any():
            write_bias(view, self.nodes, before + shift.reshape(before.shape))
            moved = (read_bias(view, self.nodes) - before).reshape(shift.shape)
            self.new.change(view.output, lambda array: _moved(view, array, moved))
        for name in wanted:
            self.new.release(name)
        return errors

    def _best(self, twin: Twin, target: Target) -> tuple[NDArray[np.float64], tuple[float, float]]:
        """For each output the shift that does best, and the squared errors with none and with it."""
        first = self._sums(twin, target, None)
        energy = max(float((first.square - first.total**2 / max(first.count, 1)).sum()), TINY)
        shift = first.change / max(first.count, 1)
        best, least = np.zeros_like(shift), first.error
        for _ in range(STEPS if target.through else 1):
            found = self._sums(twin, target, shift)
            better = found.error < least
            best, least = np.where(better, shift, best), np.where(better, found.error, least)
            shift = shift + found.change / max(found.count, 1)
        return best, (float(first.error.sum()) / energy, float(least.sum()) / energy)

    def _sums(self, twin: Twin, target: Target, shift: NDArray[np.float64] | None) -> _Sums:
        """Sums over all places, with the result moved by ``shift``."""
        sums = _Sums(max(len(twin.view.group_axes) + (twin.view.channel_axis is not None), 1))
        for made, wished, other in self._parts(twin, target):
            moved = made if shift is None else made + shift.astype(made.dtype)
            whole = moved if other is None else moved + other
            result, truth, change = whole, wished, wished - whole
            if target.through is not None:
                result, truth = target.through.function(whole), target.through.function(wished)
                change = target.through.towards(whole, wished) - whole
            sums.add(result, truth, change)
        return sums

    def _parts(self, twin: Twin, target: Target) -> Iterator[tuple[Array, Array, Array | None]]:
        """Per batch what is made, what is wanted with what is added, and what is added, channels last."""
        view = twin.view
        sizes = [self.new.get(view.output, batch).size for batch in range(self.batches)]
        every = max(sum(sizes) // LOOKED_AT, 1)
        for batch in range(0, self.batches, min(every, self.batches)):
            wished = self.reference.left(target.tensor, self.old.get(target.tensor, batch))
            yield (
                _last(view, self.new.get(view.output, batch)),
                _last(view, wished),
                _last(view, self.new.get(target.other, batch)) if target.other else None,
            )


def _last(view: Linear, array: Array) -> Array:
    """A result with its channels last, groups before them."""
    axes = (*view.group_axes, *(() if view.channel_axis is None else (view.channel_axis,)))
    return np.moveaxis(array, axes, range(-len(axes), 0))[(..., *([None] * (not axes)))]


def _moved(view: Linear, array: Array, shift: Array) -> Array:
    """A result whose channels are moved."""
    result = np.array(array)
    _last(view, result)[...] += shift.astype(result.dtype)
    return result
