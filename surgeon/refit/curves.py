"""Error curves: for each group the order in which its indices go, and what each step costs its consumers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.axes import Atom, coordinates
from surgeon.graph.weights import peek
from surgeon.refit.solve import Elimination, Moments, eliminate
from surgeon.stats.former import Linear, linear_view
from surgeon.stats.replay import Replay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.analysis import Analysis
    from surgeon.groups import Group

PLACES_PER_INPUT = 30
FEWEST_PLACES = 10_000


@dataclass(frozen=True)
class Curve:
    """How a group can be removed index by index.

    Attributes:
        order: The indices, the first to go first.
        steps: The increase of the squared error of the streams its consumers write into, relative to their energy.
    """

    order: tuple[int, ...]
    steps: tuple[float, ...]


def error_curves(
    analysis: Analysis,
    groups: Sequence[Group],
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    *,
    seed: int = 0,
    threads: int = 1,
    limit_bytes: int = 2**31,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Curve]:
    """Eliminate every group that is contracted by operators with constant weights.

    Returns:
        A curve per group id; groups without such a consumer have none.
    """
    views: list[Linear] = [view for op in analysis.ops if (view := linear_view(op)) is not None]
    consumers: dict[Atom, list[tuple[Linear, list[NDArray[np.int64]]]]] = {g.atom: [] for g in groups}
    last: dict[str, list[Group]] = {}
    for group in groups:
        final = ""
        for view in views:
            blocks = list(_blocks(view, group.atom))
            if blocks:
                consumers[group.atom].append((view, blocks))
                final = view.output
        if final:
            last.setdefault(final, []).append(group)
    wanted = {view.output: view for uses in consumers.values() for view, _ in uses}
    replay = Replay(analysis.graph, analysis.shapes.dtypes, feeds, threads=threads, limit_bytes=limit_bytes)
    random = np.random.default_rng(seed)
    for view in wanted.values():  # a stream may lie behind operators whose turn comes later
        for name in _names(analysis, view):
            replay.hold(name)
    problems: dict[Atom, list[tuple[Elimination, float]]] = {g.atom: [] for g in groups}
    result: dict[str, Curve] = {}
    for view in views:
        if view.output not in wanted:
            continue
        moments, starts, energy = _moments(analysis, replay, view, random)
        for group in groups:
            for used, blocks in consumers[group.atom]:
                if used is view:
                    problems[group.atom] += [
                        (Elimination.start(m, w, b), energy)
                        for m, w, b in zip(moments, starts, blocks, strict=True)
                        if len(b)
                    ]
        for group in last.get(view.output, ()):
            order, steps = eliminate(problems.pop(group.atom), group.size)
            result[group.id] = Curve(tuple(order), tuple(steps))
        if progress:
            progress(1)
    return result


def _blocks(view: Linear, atom: Atom) -> Iterator[NDArray[np.int64]]:
    """For each product of ``view`` the rows ``[indices, block]`` that belong to each index of ``atom``."""
    contracted = view.op.facts.contracted
    weight_axes = contracted.get(1, [])
    if not weight_axes:
        return
    found = coordinates(weight_axes[0], atom)
    if len(found) != 1:
        return
    matrices = view.matrices(view.op.node, np.empty(view.op.dims(1), dtype=np.int8))
    inputs, groups = matrices.shape[1], matrices.shape[0]
    per_group = found[0]
    taps = inputs // len(per_group)
    for _ in range(groups):
        places = np.repeat(per_group, taps)
        counts = np.bincount(places[places >= 0], minlength=atom.size)
        if counts.min() != counts.max():
            return
        order = np.argsort(np.where(places >= 0, places, atom.size), kind="stable")
        yield order[: int(counts.sum())].reshape(atom.size, -1)


def _moments(
    analysis: Analysis, replay: Replay, view: Linear, random: np.random.Generator
) -> tuple[list[Moments], list[NDArray[np.float64]], float]:
    """Second moments of the original's inputs and the energy of the stream the operator writes into."""
    node = view.op.node
    stream = _stream(analysis, view)
    names = _names(analysis, view)
    replay.advance(names)
    matrices = view.matrices(node, peek(node.inputs[1])).astype(np.float64)
    groups, inputs, outputs = matrices.shape
    moments = [Moments.empty(inputs, outputs) for _ in range(groups)]
    wanted = max(FEWEST_PLACES, PLACES_PER_INPUT * inputs) // replay.batches + 1
    energy, seen, used = 0.0, 0, 0
    for batch in range(replay.batches):
        x, y = replay.store.get(node.inputs[0].name, batch), replay.store.get(view.output, batch)
        total = view.count(y.shape)
        places = np.sort(random.choice(total, min(wanted, total), replace=False))
        rows, values = view.rows(node, x, y.shape, places), view.results(y, places, groups)
        for k in range(groups):
            moments[k].add(rows[k], values[k])
        z = replay.store.get(stream, batch)
        energy += float(np.square(z - z.mean(), dtype=np.float64).sum())
        seen += total
        used += len(places)
    for name in names:
        replay.release(name)
    starts = [np.concatenate([m, np.zeros((1, outputs))]) for m in matrices]
    return moments, starts, max(energy * used / max(seen, 1), 1e-12)


def _names(analysis: Analysis, view: Linear) -> list[str]:
    """What the moments of an operator are taken from: its input, its output and the stream it writes into."""
    return [view.op.node.inputs[0].name, view.output, _stream(analysis, view)]


def _stream(analysis: Analysis, view: Linear) -> str:
    """The residual sum an operator's output goes into, or the output itself."""
    for op in analysis.ops:
        if op.node.op == "Add" and any(t.name == view.output for t in op.node.inputs):
            dims = analysis.shapes.dims
            if dims.get(op.node.outputs[0].name) == dims.get(view.output):
                return str(op.node.outputs[0].name)
    return view.output
