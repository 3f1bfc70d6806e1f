"""The training loop: steps of an optimizer on drawn samples, judged on samples that were held out."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from surgeon.errors import UsageError
from surgeon.grad.optimizer import Optimizer, OptimizerName, ScheduleName, rate_at
from surgeon.grad.samples import Samples, drawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from surgeon.grad.objective import Objective

    Array = NDArray[Any]
    Arrays: TypeAlias = dict[str, Array]
    Feeds: TypeAlias = dict[str, Array]


@dataclass(frozen=True)
class Course:
    """How to train.

    Attributes:
        steps: Steps of the optimizer.
        batch: Samples per step.
        rate: The largest learning rate.
        schedule: How it changes.
        optimizer: Adam or stochastic gradient descent.
        decay: Weight decay.
        clip: The largest norm of the gradients, or None.
        evaluations: How often held-out samples are looked at.
        patience: After how many evaluations without a better one training stops.
        seed: Seed of the order of samples.
        most: Samples that are run at once; more are run one after the other and their gradients averaged.
    """

    steps: int
    batch: int = 64
    rate: float = 1e-3
    schedule: ScheduleName = "cosine"
    optimizer: OptimizerName = "adam"
    decay: float = 0.0
    clip: float | None = None
    evaluations: int = 4
    patience: int = 10**9
    seed: int = 0
    most: int = 10**9


@dataclass
class State:
    """Where training is: all that is needed to take it up again.

    Attributes:
        parameters: The present values.
        best: Those that did best on held-out samples so far.
        before: The held-out loss at the start.
        loss: The held-out loss of ``best``.
        waited: Evaluations since.
        optimizer: With its running means.
        history: Step, training loss since the last evaluation, and held-out loss, of each evaluation.
    """

    parameters: Arrays
    best: Arrays
    before: float
    loss: float
    optimizer: Optimizer
    waited: int = 0
    history: list[tuple[int, float, float]] = field(default_factory=list)

    @property
    def improved(self) -> bool:
        """Whether anything was better than the start."""
        return self.loss < self.before


def train(
    objective: Objective,
    parameters: Mapping[str, Array],
    samples: Samples,
    learn: Array,
    held: Array,
    course: Course,
    *,
    judge: Callable[[Arrays], float] | None = None,
    augment: Callable[..., Mapping[str, Array]] | None = None,
    teach: Callable[[Feeds], Feeds] = dict,
    checkpoint: Path | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> State:
    """Train, and keep what does best on held-out samples: never worse than the start.

    Args:
        objective: What to make small.
        parameters: Where to start, by name; they are not changed.
        samples: What to learn from.
        learn: Numbers of the samples to learn from.
        held: Numbers of those to judge by.
        course: How.
        judge: What is judged by, smaller being better; by default the objective on the held-out samples.
        augment: Changes what is fed: called with it and, as ``random``, a generator for the step.
        teach: Adds to what is fed what can only be said of it after that, such as what another model makes of it.
        checkpoint: A file to write after every evaluation, and to take up where it is there.
        progress: Called with 1 after every step.
    """
    if judge is None:

        def judge(values: Arrays) -> float:
            return objective.value(values, _taught(samples.take(held, course.most), None, teach))

    state = _started(parameters, judge, course) if checkpoint is None else None
    if state is None:
        state = load(checkpoint, course) or _started(parameters, judge, course)
    every = max(course.steps // max(course.evaluations, 1), 1)
    progress(state.optimizer.steps)
    recent: list[float] = []
    while state.optimizer.steps < course.steps and state.waited < course.patience:
        step = state.optimizer.steps
        chosen = drawn(learn, course.batch, course.seed, step)
        vary = (
            None
            if augment is None
            else partial(augment, random=np.random.default_rng((course.seed, step, 1)))
        )
        pieces = _taught(samples.take(chosen, course.most), vary, teach)
        loss, gradients = objective.gradients(state.parameters, pieces)
        recent.append(loss)
        rate = course.rate * rate_at(course.schedule, step, course.steps)
        state.optimizer.step(state.parameters, gradients, rate)
        progress(1)
        if (step + 1) % every == 0 or step + 1 == course.steps:
            _judge(state, judge(state.parameters), float(np.mean(recent)))
            recent = []
            if checkpoint is not None:
                save(state, course, checkpoint)
    return state


def _taught(
    pieces: Iterable[tuple[int, Feeds]],
    vary: Callable[[Feeds], Mapping[str, Array]] | None,
    teach: Callable[[Feeds], Feeds],
) -> Iterator[tuple[int, Feeds]]:
    for count, feeds in pieces:
        yield count, teach(feeds if vary is None else {**feeds, **vary(feeds)})


def _started(parameters: Mapping[str, Array], judge: Callable[[Arrays], float], course: Course) -> State:
    present = {name: np.array(value) for name, value in parameters.items()}
    loss = judge(present)
    optimizer = Optimizer(course.optimizer, course.decay, course.clip)
    return State(present, _copied(present), loss, loss, optimizer)


def _judge(state: State, loss: float, recent: float) -> None:
    state.history.append((state.optimizer.steps, recent, loss))
    state.waited += 1
    if loss < state.loss:
        state.best, state.loss, state.waited = _copied(state.parameters), loss, 0


def _copied(values: Mapping[str, Array]) -> Arrays:
    return {name: value.copy() for name, value in values.items()}


def save(state: State, course: Course, path: Path) -> None:
    """Write a checkpoint, whole or not at all."""
    arrays = {f"parameters/{name}": value for name, value in state.parameters.items()}
    arrays |= {f"best/{name}": value for name, value in state.best.items()}
    arrays |= {f"memory/{name}": value for name, value in state.optimizer.memory.items()}
    facts = {
        "course": repr(course),
        "steps": state.optimizer.steps,
        "before": state.before,
        "loss": state.loss,
        "waited": state.waited,
        "history": state.history,
    }
    draft = path.with_name(f"{path.name}.new")
    with draft.open("wb") as file:
        np.savez(file, facts=np.array(json.dumps(facts)), **arrays)  # type: ignore[arg-type]  # names are ours
    draft.replace(path)


def load(path: Path | None, course: Course) -> State | None:
    """Read a checkpoint; None where there is none.

    Raises:
        UsageError: It is of another course, or no checkpoint.
    """
    if path is None or not path.exists():
        return None
    try:
        with np.load(path) as file:
            facts = json.loads(str(file["facts"]))
            arrays = {name: file[name] for name in file.files if name != "facts"}
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"not a checkpoint: {error}", where=str(path)) from error
    if facts["course"] != repr(course):
        raise UsageError(
            "the checkpoint is of a run with other options",
            where=str(path),
            hint="remove it, or use the same",
        )
    parts: dict[str, Arrays] = {"parameters": {}, "best": {}, "memory": {}}
    for name, value in arrays.items():
        kind, _, rest = name.partition("/")
        parts[kind][rest] = value
    optimizer = Optimizer(
        course.optimizer, course.decay, course.clip, steps=facts["steps"], memory=parts["memory"]
    )
    history = [(int(step), float(one), float(two)) for step, one, two in facts["history"]]
    return State(
        parts["parameters"],
        parts["best"],
        facts["before"],
        facts["loss"],
        optimizer,
        facts["waited"],
        history,
    )
