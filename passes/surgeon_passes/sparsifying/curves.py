"""What zeros in each weight cost: the error of its operator for several fractions, and how much of it the outputs see."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.graph.copy import copy_of
from surgeon.graph.save import to_model
from surgeon.reference import Reference
from surgeon.refit.carry import get_weight, set_weight
from surgeon.refit.sampling import Draw, Places, gather
from surgeon.refit.sparse import spread_over
from surgeon.refit.support import on_support
from surgeon.refit.twins import Twins
from surgeon.stats.replay import Replay
from surgeon.stats.sequences import naming_sequences

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from surgeon.refit.pattern import Pattern
    from surgeon.refit.sparse import Sparse
    from surgeon.refit.twins import Twin
    from surgeon.stats.compare import Outputs
    from surgeon.stats.linear import Linear

    Matrix = NDArray[np.float32]
    Feeds = Sequence[Mapping[str, NDArray[Any]]]

LEVELS = (0.2, 0.35, 0.5, 0.6, 0.7, 0.775, 0.85, 0.9, 0.94, 0.97, 0.985)
PROBED = 0.1  # the error at which it is seen what reaches the outputs
PLACES = Places(per_input=12, fewest=8000, limit_bytes=2**27)
RIDGE = 1e-2  # of the mean square of the inputs
STEPS, ENOUGH = 30, 1e-3
RUN, RUNS = 16, 8  # outputs next to one another, and how many such runs are looked at
LEAST_LEFT = 0.02  # of what an operator tells
TINY = 1e-12


@dataclass(frozen=True)
class Curve:
    """The errors of one weight.

    Attributes:
        size: How many numbers it has.
        errors: For each of `LEVELS` the squared error of its operator's result, relative to the variance.
        share: How much of such an error the model's outputs see.
    """

    size: int
    errors: tuple[float, ...]
    share: float = 1.0


def curves(
    graph: gs.Graph,
    constrain: Callable[[Linear], Sparse | str],
    feeds: Feeds,
    outputs: Outputs,
    *,
    seed: int,
    threads: int,
    limit_bytes: int,
    progress: Callable[[int], None],
) -> dict[tuple[int, int], Curve]:
    """Measure the curves of operators, one at a time, with everything else as it is.

    Args:
        graph: The model.
        constrain: Where zeros may be in each weight, or why there are none.
        feeds: Calibration batches.
        outputs: What the model puts out, to compare with; where that cannot be done all errors are equally bad.
        seed: Of the choice of places.
        threads: Threads for onnxruntime.
        limit_bytes: Activations held in memory.
        progress: Called with 1 after each operator.

    Returns:
        By the identity of the operator, and which of its inputs the weight is.
    """
    with naming_sequences(graph):
        twins = Twins.of(graph, Reference(graph))
        work = [
            (twin, allowed) for twin in twins.found if not isinstance(allowed := constrain(twin.view), str)
        ]
        return _measured(twins, work, feeds, outputs, seed, threads, limit_bytes, progress)


def _measured(
    twins: Twins,
    work: Sequence[tuple[Twin, Sparse]],
    feeds: Feeds,
    outputs: Outputs,
    seed: int,
    threads: int,
    limit_bytes: int,
    progress: Callable[[int], None],
) -> dict[tuple[int, int], Curve]:
    graph = twins.graph
    nodes = {node.outputs[0].name: node for node in graph.nodes if node.outputs}
    run = Replay(graph, twins.shapes.dtypes, feeds, threads=threads, limit_bytes=limit_bytes)
    draw = Draw(np.random.default_rng(seed), PLACES.limited(limit_bytes), len(feeds))
    for twin, _ in work:
        for name in {*twin.view.reads, *twin.view.target_reads}:
            run.hold(name)
    found = {}
    for twin, allowed in work:
        names = {*twin.view.reads, *twin.view.target_reads}
        run.advance(sorted(names))
        curve, probed, error = _curve(twin, allowed, run, draw, nodes)
        if error > TINY and (seen := _seen(graph, twin, probed, outputs, threads)) is not None:
            curve = replace(curve, share=seen / error)
        if np.isfinite((*curve.errors, curve.share)).all():
            found[id(twin.node), twin.view.weight] = curve
        for name in names:
            run.release(name)
        progress(1)
    return found


def _curve(
    twin: Twin, constraint: Sparse, run: Replay, draw: Draw, nodes: dict[str, gs.Node]
) -> tuple[Curve, Matrix, float]:
    """The curve, and weights whose error is about `PROBED` with that error."""
    view = twin.view
    weights = get_weight(view, nodes).astype(np.float32)  # as exact as what is looked at
    groups, rows, outputs = weights.shape

    def wish(batch: int, places: NDArray[np.int64]) -> NDArray[Any]:
        return view.target(twin.node, lambda name: run.get(name, batch), places)

    sample = gather(
        view, twin.node, draw, (groups, rows, outputs), lambda batch: lambda name: run.get(name, batch), wish
    )
    x = sample.x
    gram = x.swapaxes(1, 2) @ x
    scale = np.trace(gram, axis1=1, axis2=2)[:, None, None] / rows
    hessian = gram + RIDGE * np.maximum(scale, TINY) * np.eye(rows, dtype=np.float32)
    target = sample.target.astype(np.float64)
    energy = max(float(np.square(target - target.mean(axis=1, keepdims=True)).sum()), TINY)
    some = _some(outputs)
    part = constraint.of_outputs(some)
    energy *= len(some) / outputs
    errors, current = [], weights[:, :, some]
    for level in LEVELS:
        current = _with_zeros(part, level, weights[:, :, some], current, hessian)
        errors.append(_lost(current - weights[:, :, some], gram) / energy)
    level = LEVELS[int(np.argmin(np.abs(np.log(np.maximum(errors, TINY) / PROBED))))]
    probed = _with_zeros(constraint, level, weights, weights, hessian)
    curve = Curve(groups * (rows - 1) * outputs, tuple(map(_passed_on, errors)))
    return curve, probed, _lost(probed - weights, gram) / (energy * outputs / len(some))


def _with_zeros(constraint: Sparse, level: float, ideal: Matrix, start: Matrix, hessian: Matrix) -> Matrix:
    chosen = replace(constraint, sparsity=level)
    return on_support(ideal, hessian, chosen.support(start, hessian), start, STEPS, ENOUGH)


def _lost(difference: Matrix, gram: Matrix) -> float:
    return float(np.einsum("gij,gij->", difference, gram @ difference, dtype=np.float64))


def _some(outputs: int) -> NDArray[np.int64]:
    """Outputs that stand for all, in runs of neighbours, for a pattern may have blocks."""
    runs = -(-outputs // RUN)
    chosen = spread_over(runs, RUNS)
    places: NDArray[np.int64] = (chosen[:, None] * RUN + np.arange(RUN)).ravel()
    return places[places < outputs]


def _passed_on(error: float) -> float:
    """What an error means to those that read the result: nothing of it is left to go by as it comes near the variance."""
    return error / max(1 - error, LEAST_LEFT)


def _seen(graph: gs.Graph, twin: Twin, weights: Matrix, outputs: Outputs, threads: int) -> float | None:
    """The divergence of the outputs with these weights."""
    trial = copy_of(graph)
    set_weight(twin.view, {node.outputs[0].name: node for node in trial.nodes if node.outputs}, weights)
    return outputs.divergence(to_model(trial), threads)


def curve_of_sizes(values: NDArray[Any], pattern: Pattern) -> Curve:
    """The curve of a weight without data: what is lost of its squares.

    Args:
        values: ``[groups, channels, taps, outputs]``.
        pattern: Where zeros may be.
    """
    squares = np.square(values.astype(np.float64))
    total = max(float(squares.sum()), TINY)
    lost = [float(squares[~pattern.kept(np.sqrt(squares), level)].sum()) / total for level in LEVELS]
    return Curve(values.size, tuple(lost))
