"""Bringing the weights of a graph under a constraint, operator by operator, in one sweep.

Operators are visited in topological order. Each reads what the operators before it, with the weights they have been
given, put out, and aims at what the original computes there; where its result goes straight into a residual sum it aims
at the sum less what the other branch now is. So each makes up for what those before it have lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.refit.carry import get_weight, set_weight
from surgeon.refit.constrained import Constraint, fit_constrained
from surgeon.refit.fit import Effort
from surgeon.refit.sampling import Draw, Places, gather
from surgeon.refit.through import activation_after
from surgeon.refit.twins import Twin, Twins
from surgeon.stats.replay import Replay
from surgeon.stats.sequences import naming_sequences, rerun
from surgeon.stats.weight import is_shared, weight_chain, weight_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.reference import Reference
    from surgeon.refit.target import Target
    from surgeon.stats.linear import Linear, Read

    Array = NDArray[Any]
    Constrain = Callable[[Linear], Constraint | str]
    Feeds = Sequence[Mapping[str, Array]]

EFFORT = Effort(strengths=(1e-4, 1e-3, 1e-2, 1e-1, 1.0), steps=4)


@dataclass
class Settled:
    """What a sweep did.

    Attributes:
        errors: For each operator its squared error before and after, relative to the variance, on held-out places.
        left: Operators whose weights stay as they are, and why.
        spilled: How many arrays went to temporary files for lack of memory.
    """

    errors: dict[str, tuple[float, float]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    spilled: int = 0


def settle(
    graph: gs.Graph,
    reference: Reference,
    feeds: Feeds,
    constrain: Constrain,
    *,
    towards: gs.Graph | None = None,
    instead: Mapping[str, str] | None = None,
    into: gs.Graph | None = None,
    seed: int = 0,
    threads: int = 1,
    limit_bytes: int = 2**31,
    places: Places = Places(),  # noqa: B008 - frozen
    effort: Effort = EFFORT,
    allowed: bool = True,
    excluded: Callable[[str], bool] = lambda _: False,
    progress: Callable[[int], None] = lambda _: None,
) -> Settled:
    """Give the products of a graph weights that a constraint allows, in place.

    Args:
        graph: Topologically sorted.
        reference: What it came from, and what is aimed at.
        feeds: Calibration batches, without labels.
        constrain: The constraint on the weights of a product, or why there is none and they stay as they are.
        towards: The graph before its weights were brought under the constraint, which the regression is pulled towards; by
            default the reference, or the weights as they are where that was cut.
        instead: For tensors of the original that operators would aim at, others of it that are wanted there.
        into: Another graph with the same operators, which gets the weights; then none makes up for what others lose.
        seed: Seed of the choice of places.
        threads: Threads for onnxruntime.
        limit_bytes: Activations held in memory, per graph.
        places: How many places of each operator are looked at.
        effort: How hard each operator is fitted.
        allowed: Whether the weights are already; if not, what is near to them is the first that counts.
        excluded: Whether a node or tensor, by name, is to be left alone.
        progress: Called with 1 after each operator.
    """
    with naming_sequences(graph, reference.graph):
        sweep = _Sweep(graph, reference, feeds, towards, seed, threads, limit_bytes, places, effort, allowed)
        sweep.instead = instead or {}
        if into is not None:
            sweep.taking = {node.outputs[0].name: node for node in into.nodes if node.outputs}
        return sweep.run(constrain, excluded, progress)


class _Sweep:
    def __init__(
        self,
        graph: gs.Graph,
        reference: Reference,
        feeds: Feeds,
        towards: gs.Graph | None,
        seed: int,
        threads: int,
        limit_bytes: int,
        places: Places,
        effort: Effort,
        allowed: bool,
    ) -> None:
        self.graph, self.reference, self.effort, self.allowed = graph, reference, effort, allowed
        self.twins = Twins.of(graph, reference)
        options: dict[str, Any] = {"threads": threads, "limit_bytes": limit_bytes}
        self.old = Replay(reference.graph, self.twins.original_shapes.dtypes, feeds, **options)
        self.new = Replay(graph, self.twins.shapes.dtypes, feeds, **options)
        self.nodes = {node.outputs[0].name: node for node in graph.nodes if node.outputs}
        self.originals = {node.outputs[0].name: node for node in reference.graph.nodes if node.outputs}
        aims = [] if towards is None else towards.nodes
        self.aims = {node.outputs[0].name: node for node in aims if node.outputs}
        self.draw = Draw(np.random.default_rng(seed), places.limited(limit_bytes), len(feeds))
        self.pending: set[str] = set()
        self.instead: Mapping[str, str] = {}
        self.taking = self.nodes

    def run(
        self, constrain: Constrain, excluded: Callable[[str], bool], progress: Callable[[int], None]
    ) -> Settled:
        result = Settled(left=dict(self.twins.left))
        work: list[tuple[Twin, Constraint]] = []
        for twin in self.twins.found:
            allowed = self._why_not(twin, excluded) or constrain(twin.view)
            if isinstance(allowed, str):
                result.left[twin.label] = allowed
            else:
                work.append((twin, allowed))
        self.pending = {twin.node.outputs[0].name for twin, _ in work}
        reads = [self.twins.may_read(twin) for twin, _ in work]
        held = [sorted(names | {self.instead[n] for n in names if n in self.instead}) for names in reads]
        for name in (name for names in held for name in names):
            self.old.hold(name)
        for (twin, allowed), names in zip(work, held, strict=True):
            errors = self._settle(twin, allowed)
            if np.isfinite(errors).all():
                result.errors[twin.label] = errors
            else:
                result.left[twin.label] = "what it reads or should make is not finite"
            self.pending.discard(twin.node.outputs[0].name)
            for name in names:
                self.old.release(name)
            progress(1)
        result.spilled = self.old.store.spilled + self.new.store.spilled
        return result

    def _why_not(self, twin: Twin, excluded: Callable[[str], bool]) -> str:
        node, tensor = twin.node, twin.node.inputs[twin.view.weight]
        if any(excluded(name) for name in (node.name, tensor.name, *(t.name for t in node.outputs)) if name):
            return "excluded"
        if is_shared(tensor):
            return "its weight is shared"
        outside = {each.name for each in self.graph.outputs}
        if twin.view.output != node.outputs[0].name and node.outputs[0].name in outside:
            return "the model puts out its result before the bias is added"
        if not twin.view.output and weight_shape(tensor) != weight_shape(self._original(twin)):
            return "its products are no tensors, and it was cut"
        return ""

    def _original(self, twin: Twin) -> gs.Tensor:
        return self.originals[twin.original.op.node.outputs[0].name].inputs[twin.original.weight]

    def _settle(self, twin: Twin, allowed: Constraint) -> tuple[float, float]:
        view, node = twin.view, twin.node
        target = None
        if view.output:
            target = self._target(twin)
        wanted = self._reads(twin) | ({target.other} if target is not None and target.other else set())
        for name in wanted:
            self.new.hold(name)
        self.old.advance([target.tensor] if target is not None else sorted(twin.original.target_reads))
        self.new.advance(sorted(wanted))
        start = get_weight(view, self.nodes)
        states = None if view.output else rerun(node, self.graph, threads=self.new.threads)

        def reader(batch: int) -> Read:
            def read(name: str) -> Array:
                if states is not None and name == node.outputs[0].name:
                    return states(lambda other: self.new.get(other, batch))
                return self.new.get(name, batch)

            return read

        sample = gather(
            view,
            node,
            self.draw,
            (len(start), start.shape[1], start.shape[2]),
            reader,
            lambda batch, places: self._wish(twin, target, batch, places, len(start)),
            other="" if target is None else target.other,
            through=None if target is None else target.through,
        )
        anchor = self._anchor(twin, start)
        found = fit_constrained(sample, start, anchor, allowed, self.effort, allowed=self.allowed)
        if found.after < found.before or not self.allowed:
            set_weight(view, self.taking, found.weights)
        for name in wanted:
            self.new.release(name)
        return found.before, found.after

    def _target(self, twin: Twin) -> Target:
        found = self.twins.target(twin, lambda name: not self.new.runs([name]) & self.pending)
        if found.tensor not in self.instead:
            return found
        wanted = self.reference.graph.tensors()[self.instead[found.tensor]]
        outputs = {tensor.name for tensor in self.reference.graph.outputs}
        return replace(found, tensor=wanted.name, through=activation_after(wanted, outputs))

    def _reads(self, twin: Twin) -> set[str]:
        """What has to be known of the graph; states are computed anew, from everything the operator reads."""
        names = set(twin.view.reads)
        if not twin.view.output:
            names |= {t.name for t in twin.node.inputs if t.name and weight_chain(t) is None}
            names -= {
                twin.node.outputs[0].name,
                *(t.name for t in twin.node.inputs if isinstance(t, gs.Constant)),
            }
        return names

    def _wish(
        self, twin: Twin, target: Target | None, batch: int, places: NDArray[np.int64], groups: int
    ) -> Array:
        """What the original has at some places."""
        if target is None:
            original = twin.original
            return original.target(original.op.node, lambda name: self.old.get(name, batch), places)
        whole = self.reference.left(target.tensor, self.old.get(target.tensor, batch))
        return twin.view.results(whole, places, groups)

    def _anchor(self, twin: Twin, start: NDArray[np.float64]) -> NDArray[np.float64]:
        """The weights that are aimed at, if given; else those of the original, or of the graph where it was cut."""
        if twin.node.outputs[0].name in self.aims:
            return get_weight(twin.view, self.aims)
        if twin.is_folded:
            return start
        theirs = self.originals[twin.original.op.node.outputs[0].name]
        shapes = [
            weight_shape(n.inputs[v.weight]) for n, v in ((twin.node, twin.view), (theirs, twin.original))
        ]
        return get_weight(twin.original, self.originals) if shapes[0] == shapes[1] else start
