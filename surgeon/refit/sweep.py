"""Refitting a cut graph: every weighted operator behind a cut learns again, in closed form, what it used to compute.

Operators are visited in topological order. Each sees its inputs as the already refitted prefix computes them, and its
target is what it computed in the original; where its output goes straight into a residual sum the target is the
original sum minus what the other branch now contributes, so that errors do not pile up along the stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.axes import Keep, mask
from surgeon.graph.shapes import infer
from surgeon.graph.weights import peek
from surgeon.refit.solve import Moments, best_ridge
from surgeon.stats.former import Linear, linear_view
from surgeon.stats.replay import Replay

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.analysis import Analysis

HELD_OUT = 0.15
PLACES_PER_INPUT = 40  # positions collected per input of an operator ...
FEWEST_PLACES = 20_000  # ... and at least these


@dataclass
class Refitted:
    """What a sweep did: for each operator its relative error before and after, on held-out positions."""

    errors: dict[str, tuple[float, float]] = field(default_factory=dict)


def refit(
    analysis: Analysis,
    smaller: gs.Graph,
    keep: Keep,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    *,
    seed: int = 0,
    threads: int = 1,
    limit_bytes: int = 2**31,
    progress: Callable[[int], None] | None = None,
) -> Refitted:
    """Refit the weights of ``smaller`` in place.

    Args:
        analysis: The original.
        smaller: The original cut to ``keep``.
        keep: What was kept, by atom.
        feeds: Calibration batches, without labels.
        seed: Seed of the choice of positions.
        threads: Threads for onnxruntime.
        limit_bytes: Activations held in memory, per graph.
        progress: Called with 1 after each operator.
    """
    return _Sweep(analysis, smaller, keep, feeds, seed, threads, limit_bytes).run(
        progress or (lambda _: None)
    )


class _Sweep:
    def __init__(
        self,
        analysis: Analysis,
        smaller: gs.Graph,
        keep: Keep,
        feeds: Sequence[Mapping[str, NDArray[Any]]],
        seed: int,
        threads: int,
        limit_bytes: int,
    ) -> None:
        self.analysis, self.keep = analysis, keep
        self.old = Replay(
            analysis.graph, analysis.shapes.dtypes, feeds, threads=threads, limit_bytes=limit_bytes
        )
        self.new = Replay(smaller, infer(smaller).dtypes, feeds, threads=threads, limit_bytes=limit_bytes)
        self.random = np.random.default_rng(seed)
        self.nodes = {node.outputs[0].name: node for node in smaller.nodes if node.outputs}
        self.pending = {view.op.node.outputs[0].name for view in self._views()}

    def _views(self) -> list[Linear]:
        dirty = self._dirty()
        found = []
        for op in self.analysis.ops:
            view = linear_view(op) if op.node.outputs and op.node.outputs[0].name in dirty else None
            if view is not None:
                found.append(view)
        return found

    def _dirty(self) -> set[str]:
        """Tensors whose kept part differs from the original's: everything behind a cut contraction."""
        dirty: set[str] = set()
        for op in self.analysis.ops:
            lost = any(not mask(a, self.keep).all() for axes in op.facts.contracted.values() for a in axes)
            if lost or any(tensor.name in dirty for tensor in op.node.inputs):
                dirty |= {tensor.name for tensor in op.node.outputs}
        return dirty

    def run(self, progress: Callable[[int], None]) -> Refitted:
        result = Refitted()
        views = self._views()
        for view in views:  # a target may lie behind operators whose turn comes later
            for target in self._targets(view):
                self.old.hold(target)
        for view in views:
            name = view.op.node.outputs[0].name
            if (
                name in self.nodes and len(self.nodes[name].inputs[1].outputs) == 1
            ):  # a shared weight stays one
                result.errors[view.op.node.name or name] = self._refit(view)
            self.pending.discard(name)
            for target in self._targets(view):
                self.old.release(target)
            progress(1)
        return result

    def _targets(self, view: Linear) -> list[str]:
        """Tensors of the original that may become the operator's target: its output, or the sum that goes into."""
        users = self.nodes[view.output].outputs[0].outputs if view.output in self.nodes else []
        return [view.output, *(user.outputs[0].name for user in users if user.op == "Add")]

    def _refit(self, view: Linear) -> tuple[float, float]:
        node = self.nodes[view.op.node.outputs[0].name]
        target, other = self._target(view)
        source = node.inputs[0].name
        needed = [name for name in (source, other) if name]
        for name in needed:
            self.new.hold(name)
        self.old.advance([target])
        self.new.advance(needed)
        values = peek(node.inputs[1])
        start = self._start(view, node, values)
        moments = self._moments(view, node, start, target, other)
        solved, before, after = [], 0.0, 0.0
        for (fit, held_out), first in zip(moments, start, strict=True):
            best = best_ridge(fit, held_out, first) if fit.count else first
            solved.append(best)
            before += held_out.error(first) / held_out.energy() / len(start)
            after += held_out.error(best) / held_out.energy() / len(start)
        self._assign(view, node, np.stack(solved), values)
        for name in needed:
            self.new.release(name)
        return before, after

    def _target(self, view: Linear) -> tuple[str, str]:
        """The original tensor to reproduce, and the tensor of the new graph to subtract from it (or '')."""
        users = self.nodes[view.output].outputs[0].outputs if view.output in self.nodes else []
        if len(users) == 1 and users[0].op == "Add" and len(self.nodes[view.output].outputs[0].outputs) == 1:
            add = users[0]
            others = [t for t in add.inputs if t.name != view.output]
            same = len(others) == 1 and not isinstance(others[0], gs.Constant)
            if same and self._same_shape(view.output, others[0].name):
                blocked = self.new.runs([others[0].name]) & self.pending
                if not blocked:
                    return add.outputs[0].name, others[0].name
        return view.output, ""

    def _same_shape(self, first: str, second: str) -> bool:
        dims = self.analysis.shapes.dims
        return dims.get(first) is not None and dims.get(first) == dims.get(second)

    def _start(self, view: Linear, node: gs.Node, values: NDArray[Any]) -> NDArray[np.float64]:
        """The weights as they are, with the bias as last row: ``[groups, inputs + 1, outputs]``."""
        matrices = view.matrices(node, values).astype(np.float64)
        bias = np.zeros((matrices.shape[0], 1, matrices.shape[2]))
        holder, index = view.bias or ("", 0)
        owner = self.nodes.get(holder)
        if owner is not None and index < len(owner.inputs) and isinstance(owner.inputs[index], gs.Constant):
            given = peek(owner.inputs[index]).astype(np.float64).reshape(-1)
            bias = np.broadcast_to(given, (bias.size,)).reshape(bias.shape)  # Gemm takes one number for all
        return np.concatenate([matrices, bias], axis=1)

    def _moments(
        self, view: Linear, node: gs.Node, start: NDArray[np.float64], target: str, other: str
    ) -> list[tuple[Moments, Moments]]:
        groups, inputs, outputs = start.shape
        result = [
            (Moments.empty(inputs - 1, outputs), Moments.empty(inputs - 1, outputs)) for _ in range(groups)
        ]
        wanted = max(FEWEST_PLACES, PLACES_PER_INPUT * inputs) // self.old.batches + 1
        axes = self.analysis.axes[target] or []
        for batch in range(self.old.batches):
            t = self.old.store.get(target, batch)
            for k, axis in enumerate(axes):
                kept = mask(axis, self.keep)
                if not kept.all() and t.shape[k] == len(kept):
                    t = np.compress(kept, t, axis=k)
            if other:
                t = t - self.new.store.get(other, batch)
            x = self.new.store.get(node.inputs[0].name, batch)
            total = view.count(t.shape)
            places = np.sort(self.random.choice(total, min(wanted, total), replace=False))
            rows, wishes = view.rows(node, x, t.shape, places), view.results(t, places, groups)
            held = self._held_out(batch, len(places))
            for k in range(groups):
                fit, held_out = result[k]
                fit.add(rows[k][~held], wishes[k][~held])
                held_out.add(rows[k][held], wishes[k][held])
        return result

    def _held_out(self, batch: int, count: int) -> NDArray[np.bool_]:
        """Whole batches where there are enough of them, else single positions."""
        if self.old.batches >= 1 / HELD_OUT:
            every = int(1 / HELD_OUT)
            return np.full(count, batch % every == every - 1)
        return self.random.random(count) < HELD_OUT

    def _assign(self, view: Linear, node: gs.Node, solved: NDArray[np.float64], old: NDArray[Any]) -> None:
        weights = view.weights(solved[:, :-1], old.shape).astype(old.dtype)
        node.inputs[1] = gs.Constant(node.inputs[1].name, np.ascontiguousarray(weights))
        if view.bias is None:
            return
        owner, index = self.nodes[view.bias[0]], view.bias[1]
        values = np.ascontiguousarray(solved[:, -1].reshape(-1).astype(old.dtype))
        given = owner.inputs[index] if index < len(owner.inputs) else None
        if given is not None and given.name and len(given.outputs) == 1:
            owner.inputs[index] = gs.Constant(owner.inputs[index].name, values)
        else:
            name = f"{node.outputs[0].name}/surgeon/bias"
            while len(owner.inputs) <= index:
                owner.inputs.append(gs.Variable.empty())
            owner.inputs[index] = gs.Constant(name, values)
