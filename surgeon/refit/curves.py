"""Error curves: for each group the order in which its indices go, and what each step costs its consumers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.refit.behind import beside, kept_weight, touched
from surgeon.refit.definite import has_inverse
from surgeon.refit.dimensions import dimension_problems
from surgeon.refit.eliminate import Apart, Elimination, eliminate, inverted
from surgeon.refit.sampling import Draw, Places
from surgeon.refit.target import sums_into
from surgeon.stats.linear import Linear, contracted_coordinates, linear_views
from surgeon.stats.replay import Replay
from surgeon.stats.sequences import named_sequences
from surgeon.stats.weight import weight_values

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.analysis import Analysis
    from surgeon.axes import Atom, Keep
    from surgeon.groups import Group
    from surgeon.refit.carry import Current
    from surgeon.refit.eliminate import Problem

    Array = NDArray[Any]
    Feeds = Sequence[Mapping[str, Array]]

PLACES = Places(per_input=30, fewest=10_000)
TINY = 1e-12


@dataclass(frozen=True)
class Curve:
    """How a group can be removed index by index.

    Attributes:
        order: The indices that are there, the first to go first.
        steps: The increase of the squared error of the streams its consumers write into, relative to their energy.
    """

    order: tuple[int, ...]
    steps: tuple[float, ...]


def error_curves(
    analysis: Analysis,
    groups: Sequence[Group],
    feeds: Feeds,
    *,
    current: Current | None = None,
    seed: int = 0,
    threads: int = 1,
    limit_bytes: int = 2**31,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Curve]:
    """Eliminate every group that is contracted by operators with constant weights, or by products of activations.

    Args:
        analysis: The original.
        groups: What may be removed.
        feeds: Calibration batches, without labels.
        current: What was cut so far, with the weights it has now; by default nothing.
        seed: Seed of the choice of places.
        threads: Threads for onnxruntime.
        limit_bytes: Activations held in memory, per graph.
        progress: Called with 1 after each operator.

    Returns:
        A curve per group id; groups without such a consumer have none.
    """
    others = [current.graph] if current is not None else []
    with named_sequences(analysis, *others):
        original = Replay(
            analysis.graph, analysis.shapes.dtypes, feeds, threads=threads, limit_bytes=limit_bytes
        )
        draw = Draw(np.random.default_rng(seed), PLACES.limited(limit_bytes), len(feeds))
        walk = _Walk(analysis, groups, original, current, draw)
        again = Replay(
            analysis.graph, analysis.shapes.dtypes, feeds, threads=threads, limit_bytes=limit_bytes
        )
        atoms = [group.atom for group in groups]
        walk.problems |= dimension_problems(analysis, atoms, walk.keep, again)
        return walk.run(progress or (lambda _: None))


@dataclass(frozen=True)
class _Use:
    """One operator's product that sums over a group.

    Attributes:
        view: The product.
        blocks: For each of its matrices that is left, ``[indices, block]`` rows that belong to each index of the
            group; None where there are none. Indices that are gone have zeros, which are never asked for.
    """

    view: Linear
    blocks: list[NDArray[np.int64] | None]


class _Walk:
    """One run over the graph, operator by operator; a group is eliminated when its last consumer was seen."""

    def __init__(
        self,
        analysis: Analysis,
        groups: Sequence[Group],
        original: Replay,
        current: Current | None,
        draw: Draw,
    ) -> None:
        self.analysis, self.groups, self.draw, self.old = analysis, groups, draw, original
        self.keep: Keep = current.keep if current is not None else {}
        graph = current.graph if current is not None else analysis.graph
        self.nodes = {node.outputs[0].name: node for node in graph.nodes if node.outputs}
        self.new = original
        if current is not None:
            self.new = beside(original, analysis, graph, touched(analysis, current.keep))
        views = [
            view
            for op in analysis.ops
            if op.node.outputs and op.node.outputs[0].name in self.nodes
            for view in linear_views(op)
        ]
        self.uses = {group.atom: self._uses(views, group.atom) for group in groups}
        used = {id(use.view) for uses in self.uses.values() for use in uses}
        self.consumers = [view for view in views if id(view) in used]
        self.problems: dict[Atom, list[tuple[Problem, float]]] = {group.atom: [] for group in groups}

    def _uses(self, views: Sequence[Linear], atom: Atom) -> list[_Use]:
        found = []
        for view in views:
            places = contracted_coordinates(view, atom)
            if places is None or not (places >= 0).any():
                continue
            flags = np.asarray(kept_weight(self.analysis, view, self.keep).any(axis=2))
            blocks = [
                _blocks(row[kept], atom, self.keep)
                for row, kept in zip(places, flags, strict=True)
                if kept.any()
            ]
            if any(block is not None for block in blocks):
                found.append(_Use(view, blocks))
        return found

    def run(self, progress: Callable[[int], None]) -> dict[str, Curve]:
        """Visit the consumers in topological order."""
        for view in self.consumers:  # a stream may lie behind operators whose turn comes later
            for name in self._streams(view):
                self.old.hold(name)
            for name in view.reads:
                self.new.hold(name)
        problems = self.problems
        result: dict[str, Curve] = {}
        for view in self.consumers:
            uses = [
                (group, use) for group in self.groups for use in self.uses[group.atom] if use.view is view
            ]
            found = self._problems(view, [use for _, use in uses])
            for name in self._streams(view):
                self.old.release(name)
            for name in view.reads:
                self.new.release(name)
            for (group, use), each in zip(uses, found, strict=True):
                problems[group.atom] += each
                if use is self.uses[group.atom][-1]:
                    result[group.id] = self._curve(problems.pop(group.atom), group.atom)
            progress(1)
        for group in self.groups:  # only multiplied with other activations
            if problems.get(group.atom):
                result[group.id] = self._curve(problems.pop(group.atom), group.atom)
        # activations that are no numbers say nothing; such groups rank by something else
        return {name: curve for name, curve in result.items() if np.isfinite(curve.steps).all()}

    def _curve(self, problems: list[tuple[Problem, float]], atom: Atom) -> Curve:
        order, steps = eliminate(problems, self._alive(atom))
        return Curve(tuple(order), tuple(steps))

    def _alive(self, atom: Atom) -> NDArray[np.int64]:
        kept = self.keep.get(atom)
        return np.arange(atom.size) if kept is None else np.flatnonzero(kept)

    def _problems(self, view: Linear, uses: Sequence[_Use]) -> list[list[tuple[Problem, float]]]:
        """For each use of a product what it costs to remove indices, for each of its matrices, and the energy of the stream."""
        node = self.nodes[view.op.node.outputs[0].name]
        weight = weight_values(node.inputs[view.weight])
        matrices = view.matrices(node, weight).astype(np.float64)
        weights = np.concatenate([matrices, np.zeros_like(matrices[:, :1])], axis=1)
        invertible = has_inverse(view, node)
        if not invertible:
            parts = [list(use.blocks) for use in uses]
        else:  # all that there is, of which they share the inverse
            parts = [[np.arange(weights.shape[1])[None]] * len(weights)]
        moments, energy = self._measure(view, (len(weights), weights.shape[1], 0), parts)
        if not invertible:
            return [
                [
                    (Apart.among(gram, w, block), energy)
                    for gram, w, block in zip(grams, weights, use.blocks, strict=True)
                    if block is not None
                ]
                for use, grams in zip(uses, moments, strict=True)
            ]
        inverses = [inverted(gram[0]) for gram in moments[0]]
        return [
            [
                (Elimination.among(inverse, w, block), energy)
                for inverse, w, block in zip(inverses, weights, use.blocks, strict=True)
                if block is not None
            ]
            for use in uses
        ]

    def _measure(
        self,
        view: Linear,
        width: tuple[int, int, int],
        parts: Sequence[Sequence[NDArray[np.int64] | None]],
    ) -> tuple[list[list[Array]], float]:
        """Second moments of some of a product's inputs, one more being constant, and the energy of the stream.

        Args:
            view: The product.
            width: Groups, inputs with the constant one, and 0, as places are drawn for.
            parts: Each ``[blocks, rows]`` for each group: the inputs whose moments are wanted together; None for none.

        Returns:
            ``[blocks, rows, rows]`` for each part and group, empty for None.
        """
        node = self.nodes[view.op.node.outputs[0].name]
        self.old.advance(self._streams(view))
        self.new.advance(view.reads)
        grams: list[list[Array]] = [[np.zeros(())] * len(part) for part in parts]
        energy, seen, used = 0.0, 0, 0
        for batch in range(self.old.batches):

            def read(name: str, batch: int = batch) -> Array:
                return self.new.get(name, batch)

            total = view.count(read)
            places = self.draw.places_of(batch, total, width)
            rows = view.rows(node, read, places).astype(np.float32)
            rows = np.concatenate([rows, np.ones((*rows.shape[:2], 1), rows.dtype)], axis=2)
            for found, part in zip(grams, parts, strict=True):
                for group, blocks in enumerate(part):
                    if blocks is not None:
                        chosen = rows[group] if blocks.size == width[1] else rows[group][:, blocks]
                        chosen = chosen.reshape(len(chosen), *blocks.shape).transpose(1, 0, 2)
                        found[group] = found[group] + (chosen.transpose(0, 2, 1) @ chosen).astype(np.float64)
            energy += self._energy(view, batch, places)
            seen += total
            used += len(places)
        return grams, max(energy * used / max(seen, 1) if view.output else energy, TINY)

    def _streams(self, view: Linear) -> list[str]:
        """What the energy is taken from: the residual sum an operator's output goes into, or the output itself."""
        if not view.output:
            return list(view.target_reads)
        dims = self.analysis.shapes.dims
        maker = next(n for n in self.analysis.graph.nodes if any(t.name == view.output for t in n.outputs))
        result = next(t for t in maker.outputs if t.name == view.output)
        sums = [name for name in sums_into(result) if dims.get(name) == dims.get(view.output)]
        return sums[:1] or [view.output]

    def _energy(self, view: Linear, batch: int, places: NDArray[np.int64]) -> float:
        """The squares of the original's stream around its mean: all of it, or at ``places`` where no tensor holds it."""
        if view.output:
            z = self.old.get(self._streams(view)[0], batch)
        else:
            z = view.target(view.op.node, lambda name: self.old.get(name, batch), places)
        z = z[np.isfinite(z)]  # masks may be infinite
        return float(np.square(z - z.mean(), dtype=np.float64).sum()) if z.size else 0.0


def _blocks(places: NDArray[np.int64], atom: Atom, keep: Keep) -> NDArray[np.int64] | None:
    """The rows ``[indices, block]`` that belong to each index, given the index of each row or -1."""
    alive = keep.get(atom, np.ones(atom.size, bool))
    counts = np.bincount(places[places >= 0], minlength=atom.size)[alive]
    if counts.min() != counts.max() or not counts.max():
        return None
    rows = np.argsort(np.where(places >= 0, places, atom.size), kind="stable")[: int(counts.sum())]
    result = np.zeros((atom.size, int(counts[0])), np.int64)
    result[alive] = rows.reshape(len(counts), -1)
    return result
