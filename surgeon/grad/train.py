"""The training loop: steps of an optimizer on drawn samples, judged on samples that were held out."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias
from zipfile import BadZipFile

import numpy as np

from surgeon.errors import DataError, UsageError
from surgeon.grad.optimizer import Optimizer, OptimizerName, ScheduleName, rate_at
from surgeon.grad.samples import Samples, drawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from surgeon.grad.objective import Objective
    from surgeon.grad.ties import Tie

    Array = NDArray[Any]
    Arrays: TypeAlias = dict[str, Array]
    Feeds: TypeAlias = dict[str, Array]

NO_TIES: Mapping[str, Tie] = MappingProxyType({})


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
        split: Seed of what is held out. All training of a run shares it: what one judges by, another must not have seen.
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
    split: int = 0
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
    judged: Callable[[Feeds], Mapping[str, Array]] = dict,
    teach: Callable[[Feeds], Feeds] = dict,
    ties: Mapping[str, Tie] = NO_TIES,
    stored: Callable[[Arrays], Arrays] = dict,
    checkpoint: Path | None = None,
    fingerprint: str = "",
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
        augment: Gives what is fed instead, and leaves the arrays it gets as they are: called with what is fed and, as
            ``random``, a generator for the step.
        judged: Gives what is fed instead when held-out samples are judged by.
        teach: Adds to what is fed what can only be said of it after that, such as what another model makes of it.
        ties: Of parameters by name, what of them stays zero and what moves together.
        stored: Gives what will be stored of parameters, such as rounded ones: what is judged.
        checkpoint: A file to write after every evaluation, and to take up where it is there.
        fingerprint: What else has to be the same for a checkpoint to be taken up, such as data and loss.
        progress: Called with 1 after every step.

    Raises:
        DataError: There is nothing to learn from, or nothing to judge by.
        UsageError: The checkpoint is of another run, or no checkpoint.
    """
    if len(learn) == 0 or (judge is None and len(held) == 0):
        raise DataError(
            f"{len(learn)} samples to learn from and {len(held)} to judge by are too few",
            hint="give at least two samples",
        )
    if judge is None:

        def judge(values: Arrays) -> float:
            return objective.value(stored(values), _taught(samples.take(held, course.most), judged, teach))

    identity = f"{fingerprint} {_identity(course, parameters, learn, held)}"
    state = load(checkpoint, course, identity) or _started(parameters, judge, course)
    every = max(course.steps // max(course.evaluations, 1), 1)
    progress(state.optimizer.steps)
    recent: list[float] = []
    while state.optimizer.steps < course.steps and state.waited < course.patience:
        step = state.optimizer.steps
        chosen = drawn(learn, course.batch, course.seed, step)
        random = np.random.default_rng((course.seed, step, 1))
        vary = None if augment is None else partial(augment, random=random)
        pieces = _taught(samples.take(chosen, course.most), vary, teach)
        rate = course.rate * rate_at(course.schedule, step, course.steps)
        with np.errstate(over="ignore", invalid="ignore"):  # a run may diverge: it is not accepted then
            loss, gradients = objective.gradients(state.parameters, pieces)
            _step(state, gradients, rate, ties)
        recent.append(loss)
        progress(1)
        if (step + 1) % every == 0 or step + 1 == course.steps:
            _judge(state, judge(state.parameters), float(np.mean(recent)))
            recent = []
            if checkpoint is not None:
                save(state, identity, checkpoint)
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


def _step(state: State, gradients: Arrays, rate: float, ties: Mapping[str, Tie]) -> None:
    known = {name: ties[name] for name in gradients if name in ties}
    moved = gradients | {name: tie.together(gradients[name]) for name, tie in known.items()}
    state.optimizer.step(state.parameters, moved, rate)
    for name, tie in known.items():
        state.parameters[name][...] = tie.same(state.parameters[name])


def _judge(state: State, loss: float, recent: float) -> None:
    state.history.append((state.optimizer.steps, recent, loss))
    state.waited += 1
    if loss < state.loss:
        state.best, state.loss, state.waited = _copied(state.parameters), loss, 0


def _copied(values: Mapping[str, Array]) -> Arrays:
    return {name: value.copy() for name, value in values.items()}


def _identity(course: Course, parameters: Mapping[str, Array], learn: Array, held: Array) -> str:
    """What has to be the same for a checkpoint to be taken up: options, start and division of the samples."""
    digest = hashlib.sha256()
    for name, values in (*sorted(parameters.items()), ("learn", learn), ("held", held)):
        array = np.asarray(values)
        digest.update(f"{name}:{array.dtype}:{array.shape}:".encode())
        digest.update(array.tobytes())
    return f"{course!r} {digest.hexdigest()}"


def save(state: State, identity: str, path: Path) -> None:
    """Write a checkpoint, whole or not at all.

    Raises:
        UsageError: It cannot be written there.
    """
    arrays = {f"parameters/{name}": value for name, value in state.parameters.items()}
    arrays |= {f"best/{name}": value for name, value in state.best.items()}
    arrays |= {f"memory/{name}": value for name, value in state.optimizer.memory.items()}
    facts = {
        "identity": identity,
        "steps": state.optimizer.steps,
        "before": state.before,
        "loss": state.loss,
        "waited": state.waited,
        "history": state.history,
    }
    draft = path.with_name(f"{path.name}.new")
    try:
        with draft.open("wb") as file:
            np.savez(file, facts=np.array(json.dumps(facts)), **arrays)  # type: ignore[arg-type]  # names are ours
        draft.replace(path)
    except OSError as error:
        raise UsageError(f"no checkpoint can be written: {error.strerror}", where=str(path)) from error


def load(path: Path | None, course: Course, identity: str) -> State | None:
    """Read a checkpoint; None where there is none.

    Raises:
        UsageError: It is of another run, or no checkpoint.
    """
    if path is None or not path.exists():
        return None
    try:
        with np.load(path) as file:
            facts = dict(json.loads(str(file["facts"])))
            arrays = {name: file[name] for name in file.files if name != "facts"}
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise UsageError(f"not a checkpoint: {error}", where=str(path)) from error
    if facts.get("identity") != identity:
        raise UsageError(
            "the checkpoint is of a run with other options, weights or data",
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
