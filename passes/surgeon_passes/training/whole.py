"""What end-to-end training passes share: the samples with their labels, the course, and the report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from surgeon.errors import DataError, UsageError
from surgeon.grad.losses import cross_entropy, kind_of
from surgeon.grad.train import Course
from surgeon.refit.whole import Lesson, train_whole
from surgeon_passes.training.excluded import excluded_by

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.grad.tape import Tape, Value
    from surgeon.passes import Context, Graph
    from surgeon.refit.distill import Teacher

    Array = NDArray[Any]

LABELS = "surgeon/labels"
EVALUATIONS = 20


class Options(Protocol):
    """The options of a pass that trains."""

    @property
    def name(self) -> str:
        """The pass."""

    @property
    def steps(self) -> int:
        """Steps of the optimizer."""

    @property
    def batch(self) -> int:
        """Samples per step."""

    @property
    def rate(self) -> float:
        """The largest learning rate."""

    @property
    def schedule(self) -> Literal["cosine", "one_cycle", "constant"]:
        """How the rate changes."""

    @property
    def decay(self) -> float:
        """Weight decay."""

    @property
    def patience(self) -> int:
        """Evaluations without a better one."""

    @property
    def checkpoint(self) -> str | None:
        """A file to take training up from."""

    @property
    def exclude(self) -> tuple[str, ...]:
        """Patterns of what stays."""


@dataclass(frozen=True)
class Setting:
    """The samples of a run.

    Attributes:
        feeds: Batches of inputs, with labels under a name of their own where they are wanted.
        labelled: Whether there are labels.
        output: The output that labels are compared with.
    """

    feeds: Sequence[Mapping[str, Array]]
    labelled: bool
    output: Any = None

    @staticmethod
    def of(graph: Graph, context: Context, *, labelled: bool) -> Setting:
        """Read the calibration data.

        Raises:
            DataError: Labels are wanted, and there are none that fit an output.
            UsageError: The data do not fit the model any more.
        """
        if context.plan is not None and context.plan.interface:
            raise UsageError(
                "inputs of the model were cut, which the data do not fit", hint="prune without cut_cache"
            )
        feeds = []
        for inputs, labels in context.calibration():
            feeds.append(dict(inputs))
            if labelled:
                if labels is None:
                    raise DataError("the data have no labels", hint="name an array 'labels'")
                feeds[-1][LABELS] = np.asarray(labels)
        return Setting(feeds, labelled, _output_for(graph, feeds[0][LABELS]) if labelled else None)

    def inputs_of(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """A batch without its labels."""
        return {name: array for name, array in batch.items() if name != LABELS}

    def cross_entropy(self, tape: Tape) -> Value:
        """Of whole numbers as labels the cross entropy, of others the mean squared error."""
        found, labels = tape.find(self.output.name), tape.find(LABELS)
        if labels.dtype.kind == "f":
            difference = found - labels
            return (difference * difference).mean()
        tensor = next(each for each in tape.graph.outputs if each.name == self.output.name)
        dims = tape.shapes.dims[tensor.name] or ()
        return cross_entropy(tape, found, labels, kind_of(tensor), dims)


def _output_for(graph: Graph, labels: Array) -> Any:
    """The first output of floats that has one axis more than whole numbers as labels, or as many as others."""
    rank = labels.ndim + (labels.dtype.kind in "iu")
    for tensor in graph.outputs:
        if np.dtype(tensor.dtype).kind == "f" and tensor.shape is not None and len(tensor.shape) == rank:
            return tensor
    raise DataError(
        f"no output fits labels of shape {list(labels.shape)}", hint="labels are numbers of classes"
    )


def learn(
    options: Options,
    graph: Graph,
    context: Context,
    setting: Setting,
    loss: Callable[[Tape], Value],
    teacher: Teacher | None = None,
    number: int = 0,
) -> Graph:
    """Train a graph and record how it went; ``number`` tells rounds of training apart."""
    course = Course(
        options.steps,
        options.batch,
        options.rate,
        options.schedule,
        decay=options.decay,
        evaluations=EVALUATIONS,
        patience=options.patience,
        seed=context.seed_for(options.name) + number,
    )
    lesson = Lesson(
        setting.feeds,
        loss,
        () if teacher is None else teacher.taught,
        dict if teacher is None else teacher.teach,
        None if context.data is None else context.data.augment,
    )
    started = time.perf_counter()
    with context.progress(options.name, options.steps) as advance:
        found = train_whole(
            graph,
            lesson,
            course,
            threads=context.threads,
            excluded=excluded_by(context, options.exclude),
            checkpoint=None if options.checkpoint is None else Path(options.checkpoint),
            progress=advance,
        )
    state = found.state
    if found.stopped:
        name, why = next(iter(found.stopped.items()))
        context.warn(f"{len(found.stopped)} weights cannot be trained, the first: {name}: {why}")
    if not state.improved:
        context.warn(f"{options.name} made nothing better on held-out samples: the model stays as it was")
    context.record["changed"] = state.improved
    context.record["training"] = {
        "seconds": time.perf_counter() - started,
        "steps": state.optimizer.steps,
        "loss_before": state.before,
        "loss_after": state.loss,
        "history": [{"step": step, "loss": recent, "held_out": held} for step, recent, held in state.history],
        "stopped": found.stopped,
    }
    return graph
