"""Refitting a cut graph: every weighted operator behind a cut learns again, in closed form, what it used to compute.

Operators are visited in topological order. Each sees its inputs as the already refitted prefix computes them, and its
target is what it computed in the original; where its output goes straight into a residual sum the target is the
original sum minus what the other branch now contributes, so that errors do not pile up along the stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.axes import Keep, mask
from surgeon.refit.behind import beside, changed, kept_part, kept_weight, touched
from surgeon.refit.carry import get_weight, set_weight
from surgeon.refit.definite import has_inverse
from surgeon.refit.fit import Effort, Sample
from surgeon.refit.joint import Wanted, fit_both
from surgeon.refit.keeping import Promised, best
from surgeon.refit.merge import Folding, Merges
from surgeon.refit.norms import is_norm, refit_norm, thinned
from surgeon.refit.pair import Layout, Linked, Pair, pair_before
from surgeon.refit.project import Outcome, Projections
from surgeon.refit.sampling import Draw, Places, gather
from surgeon.refit.target import Target, sums_into, target_of
from surgeon.stats.linear import Linear, linear_views
from surgeon.stats.replay import Replay
from surgeon.stats.sequences import named_sequences, rerun
from surgeon.stats.weight import FLOATS, is_shared, weight_chain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.analysis import Analysis
    from surgeon.ops import Op

    Array = NDArray[Any]
    Feeds = Sequence[Mapping[str, Array]]


@dataclass
class Refitted:
    """What a sweep did.

    Attributes:
        errors: For each operator its relative error before and after, on held-out positions.
        folded: For each operator whose channels could be folded, how that does.
        products: For each product of two activations that lost dimensions, and could be projected, how that does.
        spilled: How many arrays went to temporary files for lack of memory.
    """

    errors: dict[str, tuple[float, float]] = field(default_factory=dict)
    products: dict[str, Outcome] = field(default_factory=dict)
    folded: dict[str, Folding] = field(default_factory=dict)
    spilled: int = 0


def refit(
    analysis: Analysis,
    smaller: gs.Graph,
    keep: Keep,
    feeds: Feeds,
    *,
    seed: int = 0,
    threads: int = 1,
    limit_bytes: int = 2**31,
    progress: Callable[[int], None] = lambda _: None,
    places: Places = Places(),  # noqa: B008 - frozen
    effort: Effort = Effort(),  # noqa: B008 - frozen
    merge: bool = False,
    more: Feeds = (),
) -> Refitted:
    """Refit the weights of ``smaller`` in place.

    Args:
        analysis: The original.
        smaller: The original cut to ``keep``, perhaps with other weights.
        keep: What was kept, by atom.
        feeds: Calibration batches, without labels.
        seed: Seed of the choice of positions.
        threads: Threads for onnxruntime.
        limit_bytes: Activations held in memory, per graph.
        progress: Called with 1 after each operator.
        places: How many places of each operator are looked at.
        effort: How hard each operator is fitted.
        merge: Whether similar channels are folded where that is better than deleting some.
        more: Variants of the batches, see `surgeon.refit.sampling.Draw`, for operators that have few places.
    """
    with named_sequences(analysis, smaller):
        graph, dtypes = analysis.graph, analysis.shapes.dtypes
        share = limit_bytes // 4 if more else 0  # of variants little is held at a time
        later = Replay(graph, dtypes, more, threads=threads, limit_bytes=share) if more else None
        original = Replay(graph, dtypes, feeds, threads=threads, limit_bytes=limit_bytes - share, more=later)
        draw = Draw(np.random.default_rng(seed), places.limited(limit_bytes), len(feeds), len(more))
        return Sweep(analysis, smaller, keep, original, draw, effort, merge=merge).run(progress)


class Sweep:
    """One walk through a cut graph; see `refit`.

    Args:
        analysis: The original.
        smaller: The cut graph.
        keep: What was kept.
        original: The run of the original.
        draw: Which places are looked at, of its first batches.
        effort: How hard each operator is fitted.
        merge: Whether similar channels may be folded.
    """

    def __init__(
        self,
        analysis: Analysis,
        smaller: gs.Graph,
        keep: Keep,
        original: Replay,
        draw: Draw,
        effort: Effort,
        *,
        merge: bool = False,
    ) -> None:
        self.analysis, self.graph, self.keep, self.old = analysis, smaller, keep, original
        self.draw, self.effort = draw, effort
        self.outputs = {tensor.name for tensor in smaller.outputs}
        self.promised = Promised()
        self.nodes = {node.outputs[0].name: node for node in smaller.nodes if node.outputs}
        self.dirty = changed(analysis, keep)
        self.projections = Projections(analysis, keep, self.nodes, self._may_mix)
        self.merges = Merges(analysis, keep if merge else {}, self.nodes, self._may_mix)
        visited = self.dirty | self.projections.makers | self.merges.makers
        self.work = [
            (op, views)
            for op in analysis.ops
            if op.node.outputs
            and op.node.outputs[0].name in visited
            and op.node.outputs[0].name in self.nodes
            if (views := [view for view in linear_views(op) if self._is_free(view)]) or is_norm(op)
        ]
        self.new = beside(original, analysis, smaller, touched(analysis, keep))
        self.pending = {op.node.outputs[0].name for op, _ in self.work}
        self.pairs = self._pairs() if effort.joint else {}

    def _pairs(self) -> dict[int, Pair]:
        """The pairs of operators that may be fitted together, by the identity of the second one's product."""
        makers = {
            view.output: view
            for op in self.analysis.ops
            if op.node.outputs and op.node.outputs[0].name in self.nodes
            for view in linear_views(op)
            if view.output and self._is_free(view)
        }
        found = {}
        dirty = [views for op, views in self.work if op.node.outputs[0].name in self.dirty]
        for view in (view for views in dirty for view in views):
            pair = pair_before(view, makers, self.nodes, self.outputs)
            if pair is not None and pair.first.op.node.outputs[0].name in self.new.made:
                found[id(view)] = pair
        return {key: pair for key, pair in found.items() if not self.promised.share(pair.first, pair.second)}

    def _may_mix(self, view: Linear) -> bool:
        """Whether channels may be mixed: of weights with zeros, or few values, neither would be left."""
        return self._is_free(view) and self.promised.of(view) is None

    def _is_free(self, view: Linear) -> bool:
        """A shared weight, one with too many inputs, and what is given out before its bias is added stay what they are."""
        node = self.nodes[view.op.node.outputs[0].name]
        inside = view.output in ("", node.outputs[0].name) or node.outputs[0].name not in self.outputs
        return inside and not is_shared(node.inputs[view.weight]) and has_inverse(view, node)

    def run(self, progress: Callable[[int], None]) -> Refitted:
        """Refit everything that is behind a cut."""
        result = Refitted(products=self.projections.outcomes, folded=self.merges.outcomes)
        held = [(op, self._may_read(op, views)) for op, views in self.work]
        for _, names in held:  # a target may lie behind operators whose turn comes later
            for name in names:
                self.old.hold(name)
        for pair in self.pairs.values():
            self.new.hold(pair.first.reads[0])
        for (op, views), (_, names) in zip(self.work, held, strict=True):
            label = op.node.name or op.node.outputs[0].name
            dirty = self._prepare(op.node.outputs[0].name)
            if is_norm(op) and dirty:
                result.errors[label] = self._refit_norm(op)
            for view in views if dirty else ():
                result.errors[label if len(views) == 1 else f"{label}[{view.weight}]"] = self._refit(view)
            self.pending.discard(op.node.outputs[0].name)
            for name in names:
                self.old.release(name)
            progress(1)
        result.spilled = self.old.spilled + self.new.spilled
        return result

    def judged(self) -> list[str]:
        """The graph's outputs that are floats, and what the others (decisions, such as ArgMax) are computed from."""
        dtypes, found, left = self.analysis.shapes.dtypes, [], list(self.graph.outputs)
        seen: set[str] = set()
        while left:
            tensor = left.pop(0)
            if isinstance(tensor, gs.Constant) or tensor.name in seen:
                continue
            seen.add(tensor.name)
            if dtypes.get(tensor.name) in FLOATS:
                found.append(tensor.name)
            else:
                left += [t for n in tensor.inputs for t in n.inputs]
        return list(dict.fromkeys(name for name in found if name in self.analysis.axes))

    def divergence(self, names: Sequence[str], batches: Iterable[int]) -> float | None:
        """The mean over some tensors of their squared error relative to their variance.

        Args:
            names: Tensors of both graphs, of the same shapes, that have been held.
            batches: Which batches to compare.

        Returns:
            None without tensors.
        """
        self.old.advance(names)
        self.new.advance(names)
        chosen, found = list(batches), []
        for name in names:
            mean = self._mean(name, chosen)
            error = energy = 0.0
            for batch in chosen:
                theirs = np.asarray(self._kept(name, batch), np.float64)
                there = np.isfinite(theirs)  # masks may be infinite
                ours, theirs = np.asarray(self.new.get(name, batch))[there], theirs[there]
                spread = np.broadcast_to(mean, there.shape)[there]
                error += float(np.square(ours - theirs, dtype=np.float64).sum())
                energy += float(np.square(theirs - spread).sum())
            found.append(error / max(energy, 1e-12))
        return float(np.mean(found)) if found else None

    def _mean(self, name: str, batches: Sequence[int]) -> Array | float:
        """The mean of the original's samples, 0 where they have not all one shape."""
        shapes = {self.old.get(name, batch).shape[1:] for batch in batches}
        if len(shapes) > 1 or not self.old.get(name, batches[0]).ndim:
            return 0.0
        total, count = 0.0, 0
        for batch in batches:
            theirs = self._kept(name, batch)
            total, count = total + theirs.sum(axis=0, dtype=np.float64), count + len(theirs)
        return np.asarray(total / count)

    def _may_read(self, op: Op, views: Sequence[Linear]) -> list[str]:
        """Tensors of the original that may be asked for when the operator's turn comes."""
        maker = op.node.outputs[0].name
        names = {*self.projections.reads(maker), *self.merges.reads(maker), *([maker] if is_norm(op) else [])}
        for view in views:
            names |= set(view.target_reads)
            if view.output in self.nodes:
                names |= set(sums_into(self.nodes[view.output].outputs[0]))
        return sorted(names)

    def _prepare(self, maker: str) -> bool:
        """Let an operator make other channels where that pays; whether it has to be refitted, besides."""
        self.projections.project(maker, self.old, self.draw)
        self.projections.transforms |= self.merges.merge(maker, self.old, self.draw.batches)
        return maker in self.dirty or maker in self.merges.stale

    def _ready(self, name: str) -> bool:
        return not self.new.runs([name]) & self.pending

    def _refit(self, view: Linear) -> tuple[float, float]:
        node = self.nodes[view.op.node.outputs[0].name]
        target = None
        if view.output:
            target = target_of(
                self.nodes[view.output].outputs[0], self.analysis.shapes.dims, self._ready, self.outputs
            )
        fed_back = node.outputs[0].name
        wanted = {*view.reads, *((target.other,) if target is not None else ())} - {"", fed_back}
        if not view.output:  # states are computed anew, from everything the operator reads
            wanted |= {
                t.name
                for t in node.inputs
                if t.name and not isinstance(t, gs.Constant) and weight_chain(t) is None
            }
        for name in wanted:
            self.new.hold(name)
        self.old.advance(sorted({target.tensor} if target is not None else view.target_reads))
        self.new.advance(sorted(wanted))
        start = get_weight(view, self.nodes)
        sample = self._sample(view, node, start, target)
        found = best(sample, start, self.promised.kept(view, start), self.effort)
        set_weight(view, self.nodes, found.weights)
        after = found.after
        if id(view) in self.pairs and target is not None:
            after *= self._refit_pair(self.pairs[id(view)], target)
            self.new.release(self.pairs[id(view)].first.reads[0])
        for name in wanted:
            self.new.release(name)
        return found.before, after

    def _refit_pair(self, pair: Pair, target: Target) -> float:
        """Fit an operator once more, together with the one before it; returns what is left of its error, 1 for all."""
        first, second = get_weight(pair.first, self.nodes), get_weight(pair.second, self.nodes)
        groups, inputs = len(second), max(first.shape[1], second.shape[1])
        parts, wishes, others, held = [], [], [], []
        known: dict[tuple[int, ...], Layout] = {}
        width = (groups, inputs, sum(second.shape[1:]))
        get, of = self.new.get, pair.second.count
        for batch, total, count in self.draw.visits(width, lambda k: of(partial(get, batch=k))):
            read = partial(get, batch=batch)
            places = self.draw.runs_of(batch, count, width)
            parts.append(Linked.of_batch(pair, self.nodes, read, places, known))
            wishes.append(self._wish(pair.second, groups, target, batch, places))
            if target.other:
                others.append(pair.second.results(read(target.other), places, groups).astype(np.float32))
            held.append(self.draw.held_out(batch, places, total))
        wish = np.concatenate(wishes, axis=1)
        other = np.concatenate(others, axis=1) if others else None
        wanted = Wanted(
            wish if other is None else wish - other,
            other,
            np.concatenate(held),
            target.through,
            biased=pair.second.bias is not None,
        )
        supports = (self.promised.places(pair.first, first), self.promised.places(pair.second, second))
        linked, steps = Linked.joined(parts), self.effort.joint
        start, found = fit_both(linked, pair.through, wanted, first, second, steps, supports)
        if not found.error < start.error:
            return 1.0
        set_weight(pair.first, self.nodes, found.first)
        set_weight(pair.second, self.nodes, found.second)
        self.new.again(pair.nodes)
        return found.error / start.error

    def _sample(
        self, view: Linear, node: gs.Node, start: NDArray[np.float64], target: Target | None
    ) -> Sample:
        states = rerun(node, self.graph, threads=self.new.threads) if not view.output else None

        def reader(batch: int) -> Callable[[str], Array]:
            def read(name: str) -> Array:
                if states is not None and name == node.outputs[0].name:
                    return states(read)
                return self.new.get(name, batch)

            return read

        return gather(
            view,
            node,
            self.draw,
            (start.shape[0], start.shape[1], start.shape[2]),
            reader,
            lambda batch, places: self._wish(view, len(start), target, batch, places),
            other="" if target is None else target.other,
            through=None if target is None else target.through,
        )

    def _wish(
        self, view: Linear, groups: int, target: Target | None, batch: int, places: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """What the original has at ``places``, without what was removed."""
        if target is not None:
            if (projected := self.projections.transforms.get(target.tensor)) is not None:
                several = 1 if groups == 1 else len(projected)  # depthwise
                whole = view.results(self.old.get(target.tensor, batch), places, several)
                made = whole @ projected if several == 1 else np.einsum("cpo,ck->kpo", whole, projected)
                return made.astype(np.float32)
            return view.results(self._kept(target.tensor, batch), places, groups).astype(np.float32)
        outputs = kept_weight(self.analysis, view, self.keep).any(axis=(0, 1))
        whole = view.target(view.op.node, lambda name: self.old.get(name, batch), places)
        return whole[:, :, outputs].astype(np.float32)

    def _kept(self, name: str, batch: int, every: int = 0) -> Array:
        """A tensor of the original without what was removed; of every so many positions if asked, see `thinned`."""
        array, axes = self.old.get(name, batch), self.analysis.axes[name] or []
        if every and all(mask(axis, self.keep).all() for k, axis in enumerate(axes) if k != 1):
            return kept_part(thinned(array, every, batch), axes[:2], self.keep)
        array = kept_part(array, axes, self.keep)
        return thinned(array, every, batch) if every else array

    def _refit_norm(self, op: Op) -> tuple[float, float]:
        node, output = self.nodes[op.node.outputs[0].name], op.node.outputs[0].name
        source = node.inputs[0].name
        self.new.hold(source)
        self.old.advance([output])
        self.new.advance([source])
        batches = range(self.draw.batches)
        places = sum(self.new.get(source, batch)[:, :1].size for batch in batches)
        every = max(1, places // self.draw.places.fewest)
        errors = refit_norm(
            node,
            [thinned(self.new.get(source, batch), every, batch) for batch in batches],
            [self._kept(output, batch, every) for batch in batches],
        )
        self.new.release(source)
        return errors
