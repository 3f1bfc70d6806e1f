"""How much every split of an operator leaves out at every rank, on the data; and which are worth considering."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.allocate import Limits
from surgeon.allocate.choices import Choice
from surgeon.refit.carry import get_weight
from surgeon.refit.lowrank import curve, definite, gram_of
from surgeon.refit.sampling import Draw, Places, gather
from surgeon.stats.replay import Replay

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from surgeon_passes.factorizing.splits import Divisible, Split

    Array = NDArray[Any]
    Feeds = Sequence[Mapping[str, Array]]

PLACES = Places(per_input=20, fewest=20_000)


@dataclass(frozen=True)
class Way:
    """What an operator may become; ``split`` is None for what it is.

    Attributes:
        split: How it is split.
        rank: Channels in between; the full rank for what it is.
        macs: Of one sample.
        error: The squared error of its outputs over their variance.
    """

    split: Split | None
    rank: int
    macs: float
    error: float


@dataclass
class Curves:
    """Error curves of operators.

    Attributes:
        ways: Of every operator, by its first output, the whole one first.
        left: Why others have none.
        weights: How much of each operator's error arrives at the model's outputs.
    """

    ways: dict[str, list[Way]]
    left: dict[str, str]
    weights: dict[str, float] = field(default_factory=dict)

    def choices(self, name: str) -> list[Choice]:
        """The ways of an operator as an allocation sees them: errors are those of the outputs."""
        return [Choice(way.macs, way.error * self.weights[name]) for way in self.ways[name]]


def measure(
    graph: gs.Graph,
    dtypes: Mapping[str, int],
    work: Sequence[Divisible],
    feeds: Feeds,
    *,
    round_to: int | None,
    seed: int,
    threads: int,
    limit_bytes: int,
    progress: Callable[[int], None],
) -> Curves:
    """Run the graph over the data once and look at the inputs of every operator.

    Args:
        graph: Topologically sorted.
        dtypes: The onnx data type of every tensor.
        work: The operators, in order.
        feeds: Calibration batches, without labels.
        round_to: What a rank is a multiple of; None for what kernels like.
        seed: Seed of the choice of places.
        threads: Threads for onnxruntime.
        limit_bytes: Activations held in memory.
        progress: Called with 1 after each operator.
    """
    run = Replay(graph, dtypes, feeds, threads=threads, limit_bytes=limit_bytes)
    draw = Draw(np.random.default_rng(seed), PLACES.limited(limit_bytes), len(feeds))
    nodes = {node.outputs[0].name: node for node in graph.nodes if node.outputs}
    found = Curves({}, {})
    for each in work:
        names = sorted(each.view.reads)
        for name in names:
            run.hold(name)
        run.advance(names)
        weights = get_weight(each.view, nodes)[:, :-1]
        moments = _moments(each, run, draw, weights.shape)
        for name in names:
            run.release(name)
        progress(1)
        if not np.isfinite(moments).all():
            found.left[each.label] = "its inputs are not finite on the data"
            continue
        ways = [way for split in each.splits for way in _ways(each, split, weights, moments, round_to)]
        if not ways:
            found.left[each.label] = "no split saves multiply-accumulates"
            continue
        full = max(each.full_rank(split) for split in each.splits)
        found.ways[each.view.op.node.outputs[0].name] = [Way(None, full, each.macs, 0.0), *ways]
    return found


def _moments(each: Divisible, run: Replay, draw: Draw, shape: tuple[int, ...]) -> Array:
    """``[groups, inputs, inputs]``, around the mean where there is a bias to make up for it."""
    groups, inputs, outputs = shape
    sample = gather(
        each.view,
        each.view.op.node,
        draw,
        (groups, inputs + 1, outputs),
        lambda batch: lambda name: run.get(name, batch),
        lambda _, places: np.zeros((groups, len(places), 0), np.float32),
    )
    biased = each.view.bias is not None
    return np.stack([definite(gram_of(x[:, :-1], around_mean=biased)) for x in sample.x])


def _ways(each: Divisible, split: Split, weights: Array, moments: Array, round_to: int | None) -> list[Way]:
    """The ranks of a split that save anything, each with its error."""
    full = each.full_rank(split)
    most = min(full, int(np.ceil(each.macs / split.per_rank)) - 1)
    if most < 1:
        return []
    curves = [curve(w, g, split.order, most) for w, g in zip(weights, moments, strict=True)]
    total = max(sum(one.total for one in curves), np.finfo(float).tiny)
    return [
        Way(split, rank, rank * split.per_rank, sum(_at(one.errors, rank) for one in curves) / total)
        for rank in ranks(full, most, round_to)
    ]


def _at(errors: Array, rank: int) -> float:
    return float(errors[min(rank, len(errors) - 1)])


def ranks(full: int, most: int, round_to: int | None) -> list[int]:
    """The ranks up to ``most`` that are considered: multiples of a step, and below the first one its halves."""
    step = Limits(multiple_of=round_to).step(full)
    found = set(range(step, most + 1, step))
    while step > 1 and round_to is None:
        step //= 2
        if step <= most:
            found.add(step)
    return sorted(found)
