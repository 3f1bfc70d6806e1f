"""Training a graph end to end: the setting that distillation and fine-tuning share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.errors import DataError
from surgeon.grad.objective import Objective
from surgeon.grad.parameters import CARRIERS, parameters_of, untrained
from surgeon.grad.rows import rows_are_apart
from surgeon.grad.samples import Samples
from surgeon.grad.train import Course, State, train
from surgeon.graph.copy import copy_of
from surgeon.graph.schemas import opsets
from surgeon.graph.shapes import infer
from surgeon.graph.weights import peek
from surgeon.refit.division import HELD_OUT
from surgeon.refit.keeping import ties_of
from surgeon.stats.weight import FLOATS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from surgeon.grad.tape import Tape, Value
    from surgeon.grad.ties import Tie

    Array = NDArray[Any]
    Feeds = dict[str, Array]

FEWEST = 2  # samples: one to learn from and one to judge by


@dataclass
class Trained:
    """What training did.

    Attributes:
        state: Where it ended.
        stopped: Parameters that cannot be trained, or only by part of their gradient, and why.
    """

    state: State
    stopped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Lesson:
    """What is learned from what.

    Attributes:
        feeds: Batches of inputs, and perhaps of labels.
        loss: Writes the loss; what is fed beside the inputs are inputs of the tape's graph.
        taught: Names of what ``teach`` adds.
        teach: Adds to what is fed what can be said of it only when it is known.
        inside: Names of tensors of the graph that the loss reads beside the outputs.
        augment: Varies what is fed, see `surgeon.stats.sources.Augment`.
        judged: Gives what is judged by instead of held-out samples, such as variants of them: what was fitted to the samples
            before the training began would look too good on them.
    """

    feeds: Sequence[Mapping[str, Array]]
    loss: Callable[[Tape], Value]
    taught: Sequence[str] = ()
    teach: Callable[[Feeds], Feeds] = dict
    inside: Sequence[str] = ()
    augment: Callable[..., Mapping[str, Array]] | None = None
    judged: Callable[[Feeds], Mapping[str, Array]] = dict


@dataclass(frozen=True)
class Parameters:
    """What is trained.

    Attributes:
        constants: Floats of the graph, by name.
        ties: What of them stays as it is, and what moves together.
        stored: Gives what will be stored of values for them, such as rounded ones: that is judged.
    """

    constants: Mapping[str, gs.Constant]
    ties: Mapping[str, Tie] = field(default_factory=dict)
    stored: Callable[[dict[str, Array]], dict[str, Array]] = dict


def train_whole(
    graph: gs.Graph,
    lesson: Lesson,
    course: Course,
    *,
    threads: int = 1,
    limit_bytes: int = 2**31,
    excluded: Callable[[str], bool] = lambda _: False,
    parameters: Parameters | None = None,
    checkpoint: Path | None = None,
    fingerprint: str = "",
    progress: Callable[[int], None] = lambda _: None,
) -> Trained:
    """Train all parameters of a graph, in place; it stays as it was unless held-out samples are better off.

    Args:
        graph: The graph.
        lesson: What is learned.
        course: How.
        threads: Threads for onnxruntime.
        limit_bytes: For the activations of a step; samples that do not fit run one after the other.
        excluded: Whether a node or tensor, by name, is to be left alone.
        parameters: What is trained, instead of all that can be found and is not excluded.
        checkpoint: A file to write after every evaluation, and to take up where it is there.
        fingerprint: What else has to be the same for a checkpoint to be taken up.
        progress: Called with 1 after every step.

    Raises:
        DataError: There are fewer than two samples.
    """
    stopped: dict[str, str] = {}
    if parameters is None:
        stopped = untrained(graph, excluded)
        parameters = Parameters(_constants(graph, excluded), ties_of(graph))
    constants = parameters.constants
    samples = _samples(graph, lesson, threads)
    if len(samples) < FEWEST:
        raise DataError(
            "one sample to learn from, and none to judge by, is too few", hint="give at least two samples"
        )
    names = samples.names
    work = copy_of(graph)
    known = {tensor.name for tensor in work.inputs}
    more = [name for name in (*names, *lesson.taught) if name not in known]
    work.inputs = [*work.inputs, *(gs.Variable(name, np.float32, None) for name in more)]
    objective = Objective(work, lesson.loss, list(constants), rows=samples.rows, threads=threads)
    learn, held = samples.split(HELD_OUT, np.random.default_rng(course.split))
    _, feeds = next(samples.take(held[:1], 1))
    course = replace(
        course, most=min(course.most, objective.divide(lesson.teach(feeds), course.batch, limit_bytes))
    )
    if objective.stopped.keys() >= constants.keys():
        course = replace(course, steps=0)
    start = {name: np.array(peek(constant)) for name, constant in constants.items()}
    state = train(
        objective,
        start,
        samples,
        learn,
        held,
        course,
        augment=lesson.augment,
        judged=lesson.judged,
        teach=lesson.teach,
        ties=parameters.ties,
        stored=parameters.stored,
        checkpoint=checkpoint,
        fingerprint=fingerprint,
        progress=progress,
    )
    if state.improved:
        for name, constant in constants.items():
            constant.values = state.best[name]
    return Trained(state, {**stopped, **objective.partial, **objective.stopped})


def _constants(graph: gs.Graph, excluded: Callable[[str], bool]) -> dict[str, gs.Constant]:
    return {
        name: constant
        for name, constant in parameters_of(graph.nodes, opsets(graph)).items()
        if constant.dtype == np.float32
        and not excluded(name)
        and not any(constant is output for output in graph.outputs)
        and not _is_read_by(excluded, constant)
    }


def _is_read_by(excluded: Callable[[str], bool], tensor: gs.Tensor) -> bool:
    """Whether an operator to be left alone reads a constant, or a view of it."""
    return any(
        excluded(user.name)
        or (user.op in CARRIERS and any(_is_read_by(excluded, made) for made in user.outputs))
        for user in tensor.outputs
    )


def _samples(graph: gs.Graph, lesson: Lesson, threads: int) -> Samples:
    """Rows of batches where the graph keeps them apart up to all that the loss reads, else batches."""

    def of(names: Sequence[str], *, rows: bool) -> Samples:
        return Samples.of(names, lambda name, batch: lesson.feeds[batch][name], len(lesson.feeds), rows=rows)

    seen, dtypes = copy_of(graph), infer(graph).dtypes
    tensors = seen.tensors()
    read = [tensor for tensor in seen.outputs if dtypes.get(tensor.name) in FLOATS]
    seen.outputs = [*read, *(tensors[name] for name in lesson.inside)]
    inputs = of([tensor.name for tensor in graph.inputs], rows=True)
    return of(list(lesson.feeds[0]), rows=inputs.rows and rows_are_apart(seen, inputs, threads))
