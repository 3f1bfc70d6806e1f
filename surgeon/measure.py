"""Figures of a model before and after: parameters, MACs, bytes, latency, metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.errors import DataError, GateError, SurgeonError, UnsupportedModelError, UsageError
from surgeon.passes import Context, Graph

if TYPE_CHECKING:
    import numpy as np

    from surgeon.sizes import ModelSize
    from surgeon.stats.chunks import Feeds, Input
    from surgeon.stats.latency import Latency
    from surgeon.stats.metrics import Metric

# a single run of a 2-core machine strays by a few percent, the median of interleaved runs by less
LATENCY_TOLERANCE = 1.05
LATENCY_SECONDS = 1.0
_LATENCY_ROUNDS = 30
# what a quantized model may be slower by: two sessions of one model differ as much
SPEED_TOLERANCE = 1.02
_SPEED_SECONDS = (1.0, 3.0, 6.0)
_MOST_ROUNDS = 500


@dataclass
class Figures:
    """What a model costs and how well it does.

    Attributes:
        params: Elements of all constants of rank ≥ 1 that are not int64 (those are shapes and indices).
        macs: Multiply-accumulates of one sample.
        bytes: Size on disk, external data included.
        latency_ms: Median time of one sample in onnxruntime, or None when not measured.
        metric: The metric as a fraction, or None without evaluation data.
        nonzeros: Weights that are not zero, or None when not asked for, as all that follow.
        distinct_values: Different values of all weights together.
        gzip_bytes: Size after ``gzip -9``, external data included.
        zstd_bytes: Size after ``zstd -19``, external data included.
    """

    params: int
    macs: int
    bytes: int
    latency_ms: float | None = None
    metric: float | None = None
    nonzeros: int | None = None
    distinct_values: int | None = None
    gzip_bytes: int | None = None
    zstd_bytes: int | None = None

    def of_target(self, target: str) -> float | None:
        """Returns the figure that a ``--target`` key limits."""
        figures = {"macs": self.macs, "params": self.params, "size": self.bytes, "latency": self.latency_ms}
        return figures[target]


def figures(graph: Graph, size: int) -> Figures:
    """Counts a graph whose file takes ``size`` bytes."""
    from surgeon.cost import count

    return Figures(params=parameters(graph), macs=int(count(graph).macs), bytes=size)


def parameters(graph: Graph) -> int:
    """Counts the elements of all constants of rank ≥ 1 that are not int64, nested graphs included."""
    import onnx
    import onnx_graphsurgeon as gs

    from surgeon.graph.weights import data_type

    constants = {
        id(tensor): tensor
        for each in (graph, *graph.subgraphs(recursive=True))
        for tensor in each.tensors().values()
        if isinstance(tensor, gs.Constant)
        and len(tensor.shape)
        and data_type(tensor) != onnx.TensorProto.INT64
    }
    return sum(prod(int(length) for length in tensor.shape) for tensor in constants.values())


def inputs_of(graph: Graph) -> tuple[Input, ...]:
    """Describes a graph's inputs the way datasets need them; what is not a tensor has the dtype object."""
    from surgeon.stats.chunks import Input

    described = []
    for tensor in graph.inputs:
        shape = getattr(tensor, "shape", None) or ()
        sizes = tuple((size or None) if isinstance(size, str) else _fixed(size) for size in shape)
        described.append(Input(tensor.name, _dtype(getattr(tensor, "dtype", None)), sizes))
    return tuple(described)


def decides(graph: Graph) -> bool:
    """Whether the first output chooses between several classes, so that decisions can differ."""
    from surgeon.stats.metrics import decides as can_differ

    shape = getattr(graph.outputs[0], "shape", None)
    return shape is None or can_differ(shape, _dtype(getattr(graph.outputs[0], "dtype", None)))


def _fixed(size: object) -> int | None:
    """Exporters write 0 and -1, too, for a size that is not fixed."""
    return int(size) if isinstance(size, int) and size > 0 else None


def _dtype(dtype: Any) -> np.dtype[Any]:
    import numpy as np
    import onnx

    if isinstance(dtype, int):  # types numpy does not know by itself, such as bfloat16
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(dtype))
    try:
        return np.dtype(object if dtype is None else dtype)
    except TypeError:
        return np.dtype(object)


def file_bytes(model: Path, graph: Graph) -> int:
    """Returns the size of a model file and of the files that hold its external data."""
    from surgeon.sizes import files_of

    return sum(path.stat().st_size for path in files_of(model, graph))


def model_size(
    graph: Graph, files: Sequence[Path], advance: Callable[[int], None] | None = None
) -> ModelSize:
    """Measures everything that `ModelSize` lists.

    Args:
        graph: The model.
        files: Where it lies on disk.
        advance: Is told how many more bytes of the files have been compressed.
    """
    from surgeon.cost import count
    from surgeon.sizes import ModelSize, measure_files, weigh

    weights, found = weigh(graph), measure_files(files, advance)
    return ModelSize(found, weights, params=parameters(graph), macs=int(count(graph).macs))


def add_sizes(figures: Figures, graph: Graph, files: Sequence[Path]) -> None:
    """Adds to the figures of a model what it takes when compressed, and what its weights are."""
    from surgeon.sizes import measure_files, weigh

    weights, found = weigh(graph).total, measure_files(files)
    figures.nonzeros, figures.distinct_values = weights.nonzeros, weights.distinct_values
    figures.gzip_bytes, figures.zstd_bytes = found.gzip_bytes, found.zstd_bytes


def check_loads(model: Path, original: Path, context: Context, nodes: int = 0) -> None:
    """Makes sure onnxruntime loads the result and runs it on a made-up sample.

    Args:
        model: The result.
        original: The model it was made from.
        context: The run.
        nodes: How many nodes the models have, roughly.

    Raises:
        GateError: It does not, although the original does.
        UnsupportedModelError: The original does not either.
    """
    from surgeon.narrow import narrowed

    feeds = _sample(context)
    changed = context.plan.interface if context.plan is not None else {}
    try:
        _try(model, None if feeds is None else narrowed(feeds, changed), nodes)
    except (UnsupportedModelError, DataError) as error:
        _try(original, None, nodes)  # raises where the original is no better
        try:
            _try(original, feeds or {}, nodes)
        except (UnsupportedModelError, DataError):
            return  # the made-up sample does not suit the model, so it proves nothing
        hint = "please report this; --debug shows the pass that broke it"
        raise GateError(f"the result does not run in onnxruntime: {error.message}", hint=hint) from error


def _try(model: Path, feeds: dict[str, Any] | None, nodes: int) -> None:
    """Loads a model, runs it where there is something to run it on, and forgets it."""
    from surgeon.graph import sessions

    reuse = nodes <= sessions.MANY_NODES
    runner = sessions.session(model, optimize=False, frugal=True, reuse=reuse)
    if feeds is not None:
        sessions.run(runner, feeds)


def _sample(context: Context) -> dict[str, Any] | None:
    """Makes up one sample, or None where the inputs are of a kind that cannot be made up."""
    from surgeon.stats.synthetic import synthetic

    try:
        return synthetic(context.inputs, context.seed)
    except UnsupportedModelError:
        return None


def one_sample(context: Context) -> Feeds:
    """Returns one sample to time models on: the first of the data, whose sizes are real, or a made-up one.

    Raises:
        DataError: The data have none.
        UnsupportedModelError: There are no data and the inputs are of a kind that cannot be made up.
    """
    from surgeon.stats.synthetic import synthetic

    data = context.data if context.data is not None else context.evaluation
    if data is None:
        return synthetic(context.inputs, context.seed)
    feeds, _ = next(iter(data.rebatched(1)))
    return feeds


def measure_latency(before: Path, after: Path, context: Context, threads: int) -> tuple[float, float] | None:
    """Measures two models interleaved, about a second in all; None where no sample can be made up."""
    from surgeon.stats.latency import compare

    feeds = _sample(context)
    if feeds is None:
        return None
    try:
        first, second = compare([before, after], feeds, threads=threads, runs=3)
        rounds = int(LATENCY_SECONDS * 1e3 / max(first.median_ms + second.median_ms, 1e-3))
        if rounds > 3:
            first, second = compare(
                [before, after], feeds, threads=threads, runs=min(rounds, _LATENCY_ROUNDS)
            )
    except SurgeonError as error:
        context.warn(f"latency not measured: {error}")
        return None
    return first.median_ms, first.median_ms * second.ratio


def check_speed(
    before: Path,
    after: Path,
    context: Context,
    threads: int,
    *,
    hints: Sequence[str] = (),
    compare: Callable[[float], Sequence[Latency]] | None = None,
) -> tuple[float, float] | None:
    """Makes sure that a quantized model is not slower than the model it was made from.

    A measurement can stray, by noise and by where a session's memory happens to lie. So what looks slower is measured
    again, longer and in new sessions, and only what is slower every time, by more than its error, is refused.

    Args:
        before: The original.
        after: The result.
        context: The run.
        threads: Threads while measuring.
        hints: What to change where it is slower.
        compare: Measures both for so many seconds, the original first; the default runs them on one sample.

    Returns:
        Milliseconds of both, or None where no sample runs, with a warning.

    Raises:
        GateError: The result is slower.
    """
    ratios = []
    for seconds in _SPEED_SECONDS:
        try:
            first, second = (compare or _comparison(before, after, context, threads))(seconds)
        except SurgeonError as error:
            context.warn(f"whether the result is slower was not measured: {error}")
            return None
        ratios.append(second.ratio)
        if second.ratio - 2 * second.error <= SPEED_TOLERANCE:
            return first.median_ms, first.median_ms * second.ratio
    said = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    raise GateError(
        f"the quantized model is slower than the original on this machine: it takes {said} times as long "
        f"in {len(ratios)} measurements, {first.median_ms * second.ratio:.3g} ms instead of {first.median_ms:.3g} ms "
        f"({threads} thread{'s' if threads > 1 else ''})",
        where="speed",
        hint="; ".join(["--force writes it all the same", *hints]),
    )


def _comparison(
    before: Path, after: Path, context: Context, threads: int
) -> Callable[[float], Sequence[Latency]]:
    from surgeon.narrow import narrowed
    from surgeon.stats.latency import compare

    feeds = one_sample(context)
    changed = context.plan.interface if context.plan is not None else {}
    return lambda seconds: compare(
        [before, after],
        [feeds, narrowed(feeds, changed)],
        threads=threads,
        runs=_MOST_ROUNDS,
        seconds=seconds,
    )


def try_metric(model: Path, metric: Metric, context: Context) -> None:
    """Evaluates a model on the first samples: labels that do not fit are found before anything takes time.

    Raises:
        DataError: The metric does not fit what the model puts out, or the labels.
    """
    from surgeon.graph.sessions import session
    from surgeon.stats.metrics import scores

    if context.evaluation is not None:
        runner = session(model, threads=context.threads)
        scores(runner, context.evaluation, metric, runner, enough=lambda found: bool(found.weights.any()))


def measure_metric(before: Path, after: Path, metric: Metric, context: Context) -> tuple[float, float]:
    """Evaluates both models on the evaluation data."""
    from surgeon.graph.sessions import session
    from surgeon.stats.metrics import evaluate

    if context.evaluation is None:
        raise UsageError("there are no evaluation data", where="metric")
    reference = session(before, threads=context.threads)
    candidate = session(after, threads=context.threads)
    return (
        evaluate(reference, context.evaluation, metric, reference),
        evaluate(candidate, context.evaluation, metric, reference),
    )


def check_gates(before: Figures, after: Figures, context: Context, metric: Metric | None) -> dict[str, Any]:
    """Checks targets and accuracy.

    Returns:
        What was reached for each target, as a fraction of the original.

    Raises:
        GateError: A target or the accuracy bound was missed.
    """
    reached = {key: _reached(key, limit, before, after) for key, limit in context.targets.items()}
    if (
        context.max_drop is not None
        and metric is not None
        and before.metric is not None
        and after.metric is not None
        and not metric.within(before.metric, after.metric, context.max_drop)
    ):
        raise GateError(
            f"{metric.name} went from {before.metric:.4f} to {after.metric:.4f}; at most {context.max_drop:g} may be lost",
            where="--max-drop",
            hint="cut less, or give more calibration data",
        )
    return reached


def _reached(key: str, limit: float, before: Figures, after: Figures) -> float:
    old, new = before.of_target(key), after.of_target(key)
    if old is None or new is None:
        raise GateError("could not be measured", where=f"target {key}")
    fraction = new / old if old else 1.0
    if fraction > limit * (LATENCY_TOLERANCE if key == "latency" else 1.0) + 1e-9:
        hint = "no pass of this run reduces it that far; surgeon inspect shows how far the model can shrink"
        raise GateError(
            f"reached {fraction:.3f} of the original, asked for {limit:g}", where=f"target {key}", hint=hint
        )
    return fraction
