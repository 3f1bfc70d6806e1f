"""The Python interface: `run`, `apply`, `load`, `save`, `size`; the command line does nothing that is not here."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from surgeon import output
from surgeon.errors import UsageError
from surgeon.job import Finished, Job, execute
from surgeon.options import coerce
from surgeon.passes import Graph, Monitor, Pass, SilentMonitor
from surgeon.recipe import Recipe, instantiate, resolve
from surgeon.syntax import Call

if TYPE_CHECKING:
    import onnx

    from surgeon.plan import Plan
    from surgeon.sizes import ModelSize
    from surgeon.stats.data import Dataset

Data: TypeAlias = (
    "str | os.PathLike[str] | Dataset | Mapping[str, Any] | Callable[[], Iterable[Mapping[str, Any]]]"
)


@dataclass(frozen=True)
class Result:
    """What `run` gives back.

    Attributes:
        graph: The smaller model as an onnx-graphsurgeon graph.
        report: The report; the same object ``surgeon run --json`` prints.
        plan: What was removed, or None where nothing was cut.
        recipe: What ran, fully resolved.
    """

    graph: Graph
    report: dict[str, Any]
    plan: Plan | None
    recipe: Recipe

    @property
    def model(self) -> onnx.ModelProto:
        """The smaller model as an ONNX message (for models over 2 GB save `graph` instead)."""
        from surgeon.graph.save import to_model

        return to_model(self.graph)


def load(path: str | os.PathLike[str]) -> Graph:
    """Reads and checks a model; weights stay unread until they are needed, so larger files must stay in place.

    Raises:
        UnsupportedModelError: The file is missing, is not an ONNX model, or is a broken one.
    """
    from surgeon.graph.load import load as load_graph

    return load_graph(Path(path))


def save(model: Graph | onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """Writes a graph or model to a file that appears complete or not at all.

    Raises:
        UsageError: The file cannot be written.
    """
    from surgeon.graph.save import save as save_graph

    save_graph(_as_stored(_as_graph(model)), Path(path))


def run(
    model: str | os.PathLike[str] | onnx.ModelProto | Graph,
    passes: str | Iterable[str | Pass] | None = None,
    *,
    data: Data | None = None,
    evaluation: Data | None = None,
    preprocess: str | None = None,
    metric: str | None = None,
    target: Mapping[str, float] | None = None,
    max_drop: float | None = None,
    confidence: float | None = None,
    exclude: Sequence[str] | None = None,
    seed: int | None = None,
    threads: int | None = None,
    clean: bool | None = None,
    sets: Sequence[str] = (),
    recipe: str | os.PathLike[str] | None = None,
    destination: str | os.PathLike[str] | None = None,
    report_folder: str | os.PathLike[str] | None = None,
    plan_file: str | os.PathLike[str] | None = None,
    latency: bool = False,
    monitor: Monitor | None = None,
    debug: bool = False,
    force: bool = False,
    sizes: bool = False,
) -> Result:
    """Runs passes over a model; the model itself is never changed.

    Args:
        model: A path, an ONNX message, or an onnx-graphsurgeon graph.
        passes: Pass instances or text such as ``"prune{macs=0.5},quantize"``; default: the recipe's, else prune.
        data: Calibration data: what ``--data`` takes, a Dataset, a dict of arrays named as the inputs (first axis =
            samples, optional ``labels``), or a callable that yields such dicts.
        evaluation: Data for the metric, in the same forms; default: a tenth of ``data`` where it has labels or
            ``max_drop`` is given.
        preprocess: How images become arrays.
        metric: Name of the metric; default top1 with labels, agreement with the original without.
        target: Fractions of the original to reach at most: macs, params, size, latency.
        max_drop: The largest accepted loss of the metric, as a fraction; without a target, prune finds the smallest model
            within it.
        confidence: The chance with which passes that look for a model within ``max_drop`` want it to hold on other data;
            default 0.9, and 0.5 takes what was measured.
        exclude: Patterns of node and tensor names to leave alone.
        seed: Seed of everything random; default 0.
        threads: Threads for onnxruntime; results do not depend on it.
        clean: Whether `clean` runs first; default True.
        sets: Texts ``pass.option=value`` that override options.
        recipe: A recipe file to start from; arguments win over it.
        destination: Where to write the model, with plan, recipe and report beside it; None writes nothing.
        report_folder: A folder for a readable report, where there is a destination.
        plan_file: Where to write a plan by the names of the model file, for `apply` to other checkpoints of it.
        latency: Whether to measure latency.
        monitor: Where warnings and progress go; default: nowhere, the report keeps the warnings.
        debug: Whether onnxruntime loads the result of every pass.
        force: Whether a quantized model is taken although it is slower here than the original.
        sizes: Whether to measure compressed sizes, zeros and different values, even if no pass asks for it.

    Returns:
        The smaller model, the report, the plan and the recipe.

    Raises:
        UsageError: An argument, option or path is wrong.
        UnsupportedModelError: The model cannot be read.
        DataError: The data do not fit the model.
        GateError: A target, the accuracy bound or the proof was missed, a quantized model is slower, or there was
            nothing to do.
        PassError: A pass failed.
    """
    given = {
        "target": target,
        "data": _spec(data),
        "evaluation": _spec(evaluation),
        "preprocess": preprocess,
        "metric": metric,
        "max_drop": max_drop,
        "confidence": confidence,
        "exclude": exclude,
        "seed": seed,
        "clean": clean,
    }
    with _file_of(model) as source:
        job = Job(
            source=source,
            recipe=resolve(passes, _told(given), sets=sets, recipe=_path(recipe)),
            monitor=monitor or SilentMonitor(),
            label=str(model) if isinstance(model, str | os.PathLike) else "model",
            destination=_destination(destination, report_folder),
            plan_file=_path(plan_file),
            data=_dataset(data, source, "data"),
            evaluation=_dataset(evaluation, source, "evaluation"),
            threads=_threads(threads),
            latency=latency,
            latency_threads=threads or 1,
            debug=debug,
            force=force,
            sizes=sizes,
        )
        finished: Finished = execute(job)
        if not isinstance(model, str | os.PathLike):
            _hold(finished.graph)
    return Result(finished.graph, finished.report, finished.plan, finished.recipe)


def size(
    model: str | os.PathLike[str] | onnx.ModelProto | Graph, *, monitor: Monitor | None = None
) -> ModelSize:
    """Measures what a model takes: its files, also compressed, its weights, parameters and multiply-accumulates.

    Args:
        model: A path, an ONNX message, or an onnx-graphsurgeon graph, which is measured as `save` writes it.
        monitor: Where progress goes.

    Raises:
        UnsupportedModelError: The model cannot be read.
    """
    from surgeon.measure import model_size
    from surgeon.sizes import files_of

    with _file_of(model) as path:
        graph = load(path)
        files = files_of(path, graph)
        total = sum(each.stat().st_size for each in files)
        with (monitor or SilentMonitor()).progress("measure sizes", total) as advance:
            return model_size(graph, files, advance)


def apply(
    model: str | os.PathLike[str] | onnx.ModelProto | Graph,
    plan: str | os.PathLike[str] | Plan,
    *,
    data: Data | None = None,
    evaluation: Data | None = None,
    preprocess: str | None = None,
    metric: str | None = None,
    seed: int | None = None,
    threads: int | None = None,
    destination: str | os.PathLike[str] | None = None,
    report_folder: str | os.PathLike[str] | None = None,
    latency: bool = False,
    sizes: bool = False,
    monitor: Monitor | None = None,
    debug: bool = False,
) -> Result:
    """Removes from another checkpoint of a model what a plan removed from the model; its weights stay its own.

    The same as `run` with the pass ``apply`` alone. A plan from memory is in no file that the recipe could name.

    Args:
        model: The other checkpoint, in any form that `run` takes.
        plan: A plan file, or the plan of a `Result`.
        data: Real inputs that the cut is proved on as well, in the same forms as for `run`.
        evaluation: Data for the metric.
        preprocess: How images become arrays.
        metric: Name of the metric.
        seed: Seed of made-up inputs.
        threads: Threads for onnxruntime.
        destination: Where to write the model, with plan, recipe and report beside it; None writes nothing.
        report_folder: A folder for a readable report, where there is a destination.
        latency: Whether to measure latency.
        sizes: Whether to measure compressed sizes, zeros and distinct values.
        monitor: Where warnings and progress go.
        debug: Whether onnxruntime loads the result once more by itself.

    Returns:
        The smaller model, the report, the plan (of this checkpoint) and the recipe.

    Raises:
        UsageError: The plan cannot be read, or ``model`` is not a checkpoint of its graph.
        GateError: The plan was changed, or its cut could not be proved.
    """
    with contextlib.ExitStack() as stack:
        if not isinstance(plan, str | os.PathLike):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="surgeon-"))
            plan.save(path := Path(folder) / "plan.json")
            plan = path
        step = instantiate(Call("apply", {"plan": str(Path(plan).absolute())}))
        return run(
            model, [step], data=data, evaluation=evaluation, preprocess=preprocess, metric=metric, seed=seed,
            threads=threads, clean=False, destination=destination, report_folder=report_folder,
            latency=latency, sizes=sizes, monitor=monitor, debug=debug,
        )  # fmt: skip


def _told(settings: Mapping[str, object]) -> dict[str, object]:
    """The settings that were given."""
    return {name: value for name, value in settings.items() if value is not None}


def _path(path: str | os.PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path)


def _spec(data: Data | None) -> str | None:
    """Data that a recipe can name."""
    return os.fspath(data) if isinstance(data, str | os.PathLike) else None


def _threads(threads: int | None) -> int:
    if threads is None:
        return min(os.cpu_count() or 1, 8)
    number: int = coerce(threads, int, "threads")
    if not 1 <= number <= 1024:
        raise UsageError(f"must be in 1 … 1024, got {number}", where="threads")
    return number


def _destination(
    path: str | os.PathLike[str] | None, report_folder: str | os.PathLike[str] | None
) -> output.Destination | None:
    if path is None:
        if report_folder is not None:
            raise UsageError("needs a destination", where="report_folder")
        return None
    return output.Destination(Path(path), None if report_folder is None else Path(report_folder))


def _as_graph(model: Any) -> Graph:
    import onnx
    import onnx_graphsurgeon as gs

    from surgeon.graph.load import from_model

    if isinstance(model, onnx.ModelProto):
        return from_model(model)
    if not isinstance(model, gs.Graph):
        raise UsageError(
            f"expected a path, an ONNX model or a graph, got {type(model).__name__}", where="model"
        )
    return model


@contextlib.contextmanager
def _file_of(model: Any) -> Iterator[Path]:
    """Gives the model's file; a model in memory gets one for as long as the run takes."""
    if isinstance(model, str | os.PathLike):
        yield Path(model)
        return
    from surgeon.graph.save import save as save_graph

    graph = _as_stored(_as_graph(model))
    with tempfile.TemporaryDirectory(prefix="surgeon-") as folder:
        path = Path(folder) / "model.onnx"
        save_graph(graph, path)
        yield path


def _as_stored(graph: Graph) -> Graph:
    """The graph with weights that its file has as indices and a table stored so again; a copy, if there are any."""
    from surgeon.graph.copy import copy_of
    from surgeon.graph.source import source_of
    from surgeon.stats.encode import encode_again

    source = source_of(graph)
    if source is None or not source.encoded:
        return graph
    result = copy_of(graph)
    encode_again(result, source.encoded)
    return result


def _hold(graph: Graph) -> None:
    """Reads every weight into memory, for the file they are in is about to go."""
    import onnx_graphsurgeon as gs

    from surgeon.graph.order import every_node
    from surgeon.graph.weights import UnreadValues, peek

    for node in every_node(graph):
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant) and isinstance(vars(tensor)["_values"], UnreadValues):
                tensor.values = peek(tensor)


def _dataset(data: Any, source: Path, where: str) -> Dataset | None:
    """Opens data given as Python objects; paths are left to the job, which notes them in the recipe."""
    if data is None or isinstance(data, str | os.PathLike):
        return None
    from surgeon.measure import inputs_of
    from surgeon.stats.data import Chunk, Dataset, from_chunks

    if isinstance(data, Dataset):
        return data
    if not callable(data) and not isinstance(data, Mapping):
        raise UsageError(
            f"expected a path, a dict of arrays or a callable, got {type(data).__name__}", where=where
        )

    def read() -> Iterator[Chunk]:
        for batch in [data] if isinstance(data, Mapping) else data():
            feeds = {name: array for name, array in batch.items() if name != "labels"}
            yield Chunk(feeds, batch.get("labels"))

    dataset: Dataset = from_chunks(where, inputs_of(load(source)), read)
    next(iter(dataset))  # what does not fit is said now, not in the middle of a run
    return dataset
