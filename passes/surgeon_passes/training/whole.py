"""What end-to-end training passes share: the samples with their labels, the course, and the report."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.errors import DataError, UsageError
from surgeon.grad.losses import Kind, cross_entropy, kind_of
from surgeon.graph.copy import copy_of
from surgeon.graph.shapes import infer
from surgeon.reference import Reference
from surgeon.refit.whole import Lesson, Trained, train_whole
from surgeon.stats.promises import noted
from surgeon.stats.weight import FLOATS
from surgeon_passes.training.excluded import excluded_by

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.grad.tape import Tape, Value
    from surgeon.passes import Context, Graph
    from surgeon.refit.distill import Teacher
    from surgeon.stats.variants import ImageVariation
    from surgeon_passes.training.options import Training

    Array = NDArray[Any]

LABELS = "surgeon/labels"


@dataclass(frozen=True)
class Setting:
    """The samples of a run.

    Attributes:
        feeds: Batches of inputs, with labels under a name of their own where they are wanted.
        labelled: Whether there are labels.
        output: The output that labels are compared with.
        kind: What its numbers are.
        axis: The axis of its classes.
    """

    feeds: Sequence[Mapping[str, Array]]
    labelled: bool
    output: Any = None
    kind: Kind = "values"
    axis: int = -1

    @staticmethod
    def of(graph: Graph, context: Context, *, labelled: bool, samples: int | None = None) -> Setting:
        """Read the calibration data.

        Args:
            graph: What learns.
            context: The run.
            labelled: Whether labels are wanted.
            samples: How many samples at most; None for all.

        Raises:
            DataError: Labels are wanted, and there are none that fit an output.
            UsageError: The data do not fit the model any more.
        """
        if context.plan is not None and context.plan.interface:
            raise UsageError(
                "inputs of the model were cut, which the data do not fit", hint="prune without cut_cache"
            )
        if labelled and context.data is None:
            raise DataError("there are no labels to learn from", hint="give --data with an array 'labels'")
        feeds = []
        data = context.calibration()
        for inputs, labels in data if samples is None else data.take(samples):
            feeds.append(dict(inputs))
            if labelled:
                if labels is None:
                    raise DataError("the data have no labels", hint="name an array 'labels'")
                feeds[-1][LABELS] = _numbers(labels)
        return Setting(feeds, labelled, *(_output_for(graph, feeds[0][LABELS]) if labelled else ()))

    def inputs_of(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """A batch without its labels."""
        return {name: array for name, array in batch.items() if name != LABELS}

    def cross_entropy(self, tape: Tape) -> Value:
        """Of whole numbers as labels the cross entropy, of others the mean squared error."""
        found, labels = tape.find(self.output.name), tape.find(LABELS)
        if labels.dtype.kind != "f":
            return cross_entropy(tape, found, labels, self.kind, self.axis)
        difference = found.cast(np.float32) - labels.reshape(found.shape())
        return (difference * difference).mean()


def _numbers(labels: Array) -> Array:
    """Labels as what losses read: int64 or float32."""
    array = np.asarray(labels)
    if array.dtype.kind not in "iufb":
        raise DataError(f"labels are {array.dtype}", hint="give numbers")
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int64)


def _output_for(graph: Graph, labels: Array) -> tuple[Any, Kind, int]:
    """The first output of floats that labels fit, what its numbers are, and the axis of its classes."""
    shapes = infer(graph)
    outputs = [each for each in graph.outputs if shapes.dtypes.get(each.name) in FLOATS]
    for tensor in outputs:
        dims: list[int | None] = [
            None if changes else size
            for size, changes in zip(
                shapes.dims.get(tensor.name) or (), shapes.dynamic.get(tensor.name, ()), strict=False
            )
        ]
        kind, axis = kind_of(tensor, shapes, int(graph.opset))
        if labels.dtype.kind == "f":
            if _fit(dims, labels.shape):
                return tensor, kind, axis
            continue
        for place in [axis] if kind != "values" else dict.fromkeys((axis, len(dims) - 1, 1)):
            if (
                0 < place < len(dims)
                and (dims[place] or 0) > 1
                and _fit(dims[:place] + dims[place + 1 :], labels.shape)
            ):
                return tensor, kind, place
    shown = ", ".join(f"{each.name} {list(shapes.dims.get(each.name) or ())}" for each in outputs)
    raise DataError(
        f"labels of shape {list(labels.shape)} and type {labels.dtype} fit no output of floats ({shown})",
        hint="give whole numbers for one of several classes, or floats in the shape of an output",
    )


def _fit(dims: Sequence[int | None], shape: Sequence[int]) -> bool:
    """Whether sizes, None for any, are those of a shape, whatever axes of one element there are behind the first."""
    ours = [*dims[:1], *(size for size in dims[1:] if size != 1)]
    theirs = [*shape[:1], *(size for size in shape[1:] if size != 1)]
    return len(ours) == len(theirs) and all(
        one is None or one == other for one, other in zip(ours, theirs, strict=True)
    )


def _fingerprint(options: Training, context: Context, feeds: Sequence[Mapping[str, Array]]) -> str:
    """What a checkpoint is of: the model, the options, and the data."""
    digest = hashlib.sha256(f"{context.model_sha256} {replace(options, checkpoint=None)!r}".encode())
    for batch in feeds:
        for name, array in batch.items():
            digest.update(
                f"{name}{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes()
            )
    return digest.hexdigest()


def learn(
    options: Training,
    graph: Graph,
    context: Context,
    setting: Setting,
    loss: Callable[[Tape], Value],
    teacher: Teacher | None = None,
    number: int = 0,
    variation: ImageVariation | None = None,
) -> Graph:
    """Train a graph and record how it went.

    Args:
        options: Those of the pass.
        graph: What learns.
        context: The run.
        setting: The samples.
        loss: What to make small.
        teacher: Whom to learn from.
        number: Tells rounds of training apart.
        variation: How images are varied where the data file has no function for that.
    """
    excluded = excluded_by(context, options.exclude)
    lesson = lesson_of(context, setting, loss, teacher, variation)
    trained(
        options, context, setting, lambda **how: train_whole(graph, lesson, excluded=excluded, **how), number
    )
    if kept := noted(graph):
        context.record["kept"] = kept
    return graph


def lesson_of(
    context: Context,
    setting: Setting,
    loss: Callable[[Tape], Value],
    teacher: Teacher | None,
    variation: ImageVariation | None,
) -> Lesson:
    """What is learned; for the arguments see `learn`."""
    return Lesson(
        setting.feeds,
        loss,
        () if teacher is None else teacher.taught,
        dict if teacher is None else teacher.teach,
        () if teacher is None else teacher.hints,
        _augment_of(context) or variation,
        variation.mirrored if variation is not None and variation.mirror else dict,
    )


def trained(
    options: Training, context: Context, setting: Setting, train: Callable[..., Trained], number: int = 0
) -> Trained:
    """Train with what options and the run say, and record how it went.

    Args:
        options: Those of the pass.
        context: The run.
        setting: The samples.
        train: Trains; called with what `train_whole` takes by name, and the course.
        number: Tells rounds of training apart.
    """
    checkpoint = _checkpoint(options)
    started = time.perf_counter()
    with context.progress(options.name, options.steps) as advance:
        found = train(
            course=options.course(context, number),
            threads=context.threads,
            limit_bytes=options.memory * 2**20,
            checkpoint=checkpoint,
            fingerprint=_fingerprint(options, context, setting.feeds),
            progress=advance,
        )
    _describe(found, options, context, time.perf_counter() - started)
    return found


def _checkpoint(options: Training) -> Path | None:
    if options.checkpoint is None:
        return None
    path = Path(options.checkpoint)
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError("no file can be written there", where=f"{options.name}.checkpoint", hint=str(path))
    return path


def _augment_of(context: Context) -> Callable[..., Mapping[str, Array]] | None:
    """The data file's own function, which knows labels by the name that they have there."""
    given = None if context.data is None else context.data.augment
    if given is None:
        return None

    def augment(feeds: Mapping[str, Array], random: np.random.Generator) -> Mapping[str, Array]:
        inputs = {name: array for name, array in feeds.items() if name != LABELS}
        if LABELS in feeds:
            inputs["labels"] = feeds[LABELS]
        found = dict(given(inputs, random=random))
        if LABELS in feeds and "labels" in found:
            found[LABELS] = _numbers(found.pop("labels"))
        return found

    return augment


def _describe(found: Trained, options: Training, context: Context, seconds: float) -> None:
    state = found.state
    if found.stopped:
        name, why = next(iter(found.stopped.items()))
        context.warn(f"{len(found.stopped)} weights cannot be trained, the first: {name}: {why}")
    if not state.parameters:
        context.warn(f"{options.name} has no weights to train: the model stays as it was")
    elif not np.isfinite(state.before):
        context.warn(
            f"the loss is no number before {options.name} starts: infinite outputs cannot be learned from"
        )
    elif state.before == 0:
        context.warn(f"the loss is 0 before {options.name} starts: there is nothing to learn")
    elif state.history and not any(np.isfinite(recent) for _, recent, _ in state.history):
        context.warn(f"the loss was no number in any step of {options.name}: the model stays as it was")
    elif not state.improved:
        context.warn(f"{options.name} made nothing better on held-out samples: the model stays as it was")
    context.record["changed"] = state.improved
    context.record["training"] = {
        "seconds": seconds,
        "steps": state.optimizer.steps,
        "loss_before": state.before,
        "loss_after": state.loss,
        "history": [{"step": step, "loss": recent, "held_out": held} for step, recent, held in state.history],
        "stopped": found.stopped,
    }


def as_reference(graph: Graph, context: Context) -> Graph:
    """What has learned from labels is what passes behind it aim at, not what it was before."""
    if context.record.get("changed"):
        context.reference = Reference(copy_of(graph))
    return graph
