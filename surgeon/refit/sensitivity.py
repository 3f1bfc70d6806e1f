"""How much of a group's error reaches the model's outputs, once everything behind it has been refitted.

An error curve ends at the consumers of a group. What it means for the outputs depends on what comes behind: early
errors are seen by many operators that learn to make up for them, late ones by few. So each of some groups is cut alone
at one ratio, everything behind is refitted on a small sample, and the outputs of the rest of the sample are compared.
Cut without the refit, early groups look several times worse than they are, and the figures are of no use.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from surgeon.axes import atoms_of
from surgeon.errors import SurgeonError
from surgeon.refit.curves import TINY
from surgeon.refit.fit import Effort
from surgeon.refit.sampling import Draw, Places
from surgeon.refit.sweep import Sweep
from surgeon.stats.linear import contracted_coordinates, linear_views
from surgeon.stats.replay import Replay
from surgeon.stats.sequences import named_sequences
from surgeon.surgery import cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.analysis import Analysis
    from surgeon.groups import Group
    from surgeon.refit.curves import Curve

    Array = NDArray[Any]
    Feeds = Sequence[Mapping[str, Array]]

RATIO = 0.6  # of a group is removed
FREE = 1e-6  # of the error without the whole group is nothing
TRIALS = 4
ROUNDED = 1e-9  # of the outputs' variance: what rounding does to floats
ROUNDED_HALF = 1e-5  # and to half floats
HALVES = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})
PROBES = 16  # groups that are tried to begin with; what others do is foretold from them
PLACES = Places(per_input=6, fewest=3000, limit_bytes=2**27)
EFFORT = Effort(strengths=(1e-2,), steps=0, joint=0)


@dataclass(frozen=True)
class Probe:
    """What cutting one group alone did.

    Attributes:
        removed: How many of its indices.
        local: What its error curve says of that.
        outputs: The squared error of the model's outputs, relative to their variance.
    """

    removed: int
    local: float
    outputs: float


def sensitivities(
    analysis: Analysis,
    groups: Sequence[Group],
    curves: Mapping[str, Curve],
    feeds: Feeds,
    *,
    seed: int = 0,
    threads: int = 1,
    limit_bytes: int = 2**31,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Probe]:
    """Cut groups one at a time and see what reaches the outputs.

    Args:
        analysis: The original.
        groups: Those to try, each with a curve.
        curves: The error curves.
        feeds: A few batches; the first half is refitted to, the second half is judged by.
        seed: Seed of the choice of places.
        threads: Threads for onnxruntime.
        limit_bytes: Activations held in memory.
        progress: Called with 1 after each group.

    Returns:
        A probe per group id. Groups along inputs and outputs of the model have none: nothing could be compared.
    """
    result = {}
    with named_sequences(analysis):
        original = Replay(
            analysis.graph, analysis.shapes.dtypes, feeds, threads=threads, limit_bytes=limit_bytes
        )
        for name in analysis.graph.tensors():  # every probe takes what it needs from here
            if name in analysis.shapes.dtypes:  # sequences have no type and cannot be stored
                original.hold(name)
        for group in inside(analysis, groups):
            probe = _probe(analysis, group, curves[group.id], original, seed)
            if probe is not None:
                result[group.id] = probe
            if progress:
                progress(1)
    return result


def inside(analysis: Analysis, groups: Sequence[Group]) -> list[Group]:
    """The groups that do not lie along inputs or outputs of the model."""
    ends = [t.name for t in (*analysis.graph.inputs, *analysis.graph.outputs)]
    outside = {atom for name in ends for axis in analysis.axes.get(name) or () for atom in atoms_of(axis)}
    return [group for group in groups if group.atom not in outside]


def spread(analysis: Analysis, groups: Sequence[Group]) -> list[Group]:
    """At most `PROBES` of the groups that can be tried, spread evenly over the graph."""
    ordered = in_order(analysis, inside(analysis, groups))
    if not ordered:
        return []
    return [ordered[k] for k in sorted({round(x) for x in np.linspace(0, len(ordered) - 1, PROBES)})]


def trials(group: Group, curve: Curve) -> Iterator[tuple[int, float]]:
    """How many indices of a group are removed to try it, and what its curve says of that; more and more.

    Those that cost next to nothing go besides: what they do to the outputs says nothing of what the others would.
    """
    steps = np.maximum(curve.steps, 0.0)
    free = int((np.cumsum(steps) <= FREE * steps.sum()).sum())
    removed = max(min(free, group.size - 2), 0)
    while removed < group.size - 1:
        removed = min(max(1, removed + round((group.size - removed) * RATIO)), group.size - 1)
        yield removed, float(steps[:removed].sum())


def in_order(analysis: Analysis, groups: Sequence[Group]) -> list[Group]:
    """Groups by where they are consumed first: those with one consumer, then the streams that several read."""
    views = [view for op in analysis.ops for view in linear_views(op)]
    places: dict[str, tuple[bool, int]] = {}
    for group in groups:
        used = [
            k
            for k, view in enumerate(views)
            if (found := contracted_coordinates(view, group.atom)) is not None and (found >= 0).any()
        ]
        places[group.id] = (len(used) > 1, used[0] if used else -1)
    return sorted(groups, key=lambda group: places[group.id])


def _probe(analysis: Analysis, group: Group, curve: Curve, original: Replay, seed: int) -> Probe | None:
    """Cut a group, and a few times more of it as long as the outputs do not mind."""
    found = None
    kinds = {analysis.shapes.dtypes.get(tensor.name) for tensor in analysis.graph.outputs}
    for removed, local in islice(trials(group, curve), TRIALS):
        try:
            outputs = _divergence(analysis, group, curve.order[:removed], original, seed)
        except SurgeonError:  # its cut is not a model that runs; the proof will say so if it is chosen
            break
        if outputs is None or not np.isfinite(outputs):
            break
        found = Probe(removed, local, max(outputs, TINY))
        if outputs > (ROUNDED_HALF if kinds & HALVES else ROUNDED):
            break
    return found


def _divergence(
    analysis: Analysis, group: Group, removed: Sequence[int], original: Replay, seed: int
) -> float | None:
    flags = np.ones(group.size, bool)
    flags[list(removed)] = False
    keep = {group.atom: flags}
    smaller = cut(analysis, keep)
    batches = max(1, original.batches // 2)
    draw = Draw(np.random.default_rng(seed), PLACES.limited(original.store.limit), batches)
    sweep = Sweep(analysis, smaller, keep, original, draw, EFFORT)
    judged = sweep.judged()
    for name in judged:
        sweep.new.hold(name)
    sweep.run(lambda _: None)
    return sweep.divergence(judged, range(batches if original.batches > 1 else 0, original.batches))
