"""Training a changed graph block by block, each towards what the original has there.

Blocks are visited in order; each reads what the blocks before it, as trained, put out. The loss is the squared error of
what a block puts out, relative to its variance. Neighbours that were trained one by one may then be trained as one, before
what follows learns to live with what they leave. A block stays as it was unless that is better on held-out samples, and in
the end so must be what the graph puts out, or less of what was learned is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.grad.objective import Objective
from surgeon.grad.parameters import untrained
from surgeon.grad.rows import rows_are_apart, with_open_rows
from surgeon.grad.samples import Samples
from surgeon.grad.train import Course, State, train
from surgeon.graph.shapes import infer
from surgeon.graph.weights import peek
from surgeon.refit.division import divide
from surgeon.refit.keeping import ties_of
from surgeon.refit.outputs import Outputs
from surgeon.refit.owned import Ownership
from surgeon.refit.turns import carrying, turns_of
from surgeon.stats.replay import Replay

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from numpy.typing import NDArray
    from onnx_graphsurgeon.ir.tensor import LazyValues

    from surgeon.grad.blocks import Block
    from surgeon.grad.tape import Tape, Value
    from surgeon.grad.ties import Tie
    from surgeon.reference import Reference
    from surgeon.refit.outputs import Outcome
    from surgeon.refit.turns import Turn

    Array = NDArray[Any]

TARGET = "surgeon/target/"
CAREFUL = 0.1
SAME = 1e-8  # relative error below which a block has nothing to learn
CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
ENOUGH, FEWEST = 64 * 32 * 32, 8  # places that a step looks at, and samples
SHARE = 1 / 2  # of its steps that a block takes before it is trained once more with its neighbours


@dataclass
class Reconstructed:
    """What training did.

    Attributes:
        errors: Per block, named after the last tensor it puts out, the relative error on held-out samples before and after;
            of neighbours trained as one this name is followed by their number.
        kept: Blocks that are better than they were.
        stopped: Parameters that cannot be trained, or only by part of their gradient, and why.
        spilled: How many arrays went to temporary files for lack of memory.
        outcome: What the graph puts out, before and after; None if nothing was kept.
    """

    errors: dict[str, tuple[float, float]] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    stopped: dict[str, str] = field(default_factory=dict)
    spilled: int = 0
    outcome: Outcome | None = None


def reconstruct(
    graph: gs.Graph,
    reference: Reference,
    feeds: Sequence[Mapping[str, Array]],
    course: Course,
    *,
    neighbours: int = 1,
    variants: int = 0,
    threads: int = 1,
    limit_bytes: int = 2**31,
    excluded: Callable[[str], bool] = lambda _: False,
    ties: Mapping[str, Tie] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Reconstructed:
    """Train the blocks of a graph, in place.

    Args:
        graph: The smaller graph.
        reference: What it should compute.
        feeds: Batches of inputs, without labels.
        course: How each block is trained, and neighbours as one; with half of the steps where the latter follows.
        neighbours: So many blocks are trained as one, after each of them was.
        variants: How many variants of the samples follow them in ``feeds``, each with as many batches.
        threads: Threads for onnxruntime.
        limit_bytes: Activations held in memory, per graph, and those of a step.
        excluded: Whether a node or tensor, by name, is to be left alone.
        ties: Of constants by name, what of them stays zero and what moves together; by default what their values promise.
        progress: Called with how much was done; each of `turns_of` is as much as the course has steps.
    """
    turns = turns_of(graph, neighbours)
    made = _Reconstruction(graph, reference, feeds, turns, course, variants, threads, limit_bytes, excluded)
    if ties is not None:
        made.ties = ties
    return made.run(progress)


@dataclass(frozen=True)
class _Lesson:
    """What is learned in a turn: constants by name, of a piece alone, towards targets, from samples of what it reads and of these."""

    parameters: Mapping[str, gs.Constant]
    targets: Sequence[str]
    alone: gs.Graph
    samples: Samples


class _Reconstruction:
    def __init__(
        self,
        graph: gs.Graph,
        reference: Reference,
        feeds: Sequence[Mapping[str, Array]],
        turns: Sequence[Turn],
        course: Course,
        variants: int,
        threads: int,
        limit_bytes: int,
        excluded: Callable[[str], bool],
    ) -> None:
        self.graph, self.reference = graph, reference
        self.threads, self.limit = threads, limit_bytes
        self.shapes = infer(graph)
        self.ownership = Ownership(graph, carrying(graph, self.shapes), excluded)
        self.turns, self.course = turns, course
        options: dict[str, Any] = {"threads": threads, "limit_bytes": limit_bytes}
        types = infer(reference.graph).dtypes
        self.division = divide(
            (graph, reference.graph),
            feeds,
            course.split,
            variants=variants,
            judged=_ends(turns, self.shapes.dtypes.keys() & types.keys()),
            threads=threads,
        )
        if self.division.size > 1:  # batches hold other numbers of samples than may be declared
            self.shapes = infer(with_open_rows(graph))
        self.new = Replay(graph, self.shapes.dtypes, self.division.feeds, **options)
        self.old = Replay(reference.graph, types, self.division.feeds, **options)
        self.found = Reconstructed(stopped=untrained(graph, excluded))
        self.ties: Mapping[str, Tie] = ties_of(graph)

        # what cannot be held, such as a sequence, cannot be read or learned from either
        self.targets = [
            [name for name in turn.block.makes if name in self.old.made and name in self.old.dtypes]
            for turn in turns
        ]
        self.reads = [[name for name in turn.block.reads if name in self.shapes.dtypes] for turn in turns]
        self.lessons: dict[int, _Lesson | None] = {}
        self.start: dict[str, tuple[gs.Constant, Array | LazyValues]] = {}  # what was changed, as it was

    def run(self, progress: Callable[[int], None]) -> Reconstructed:
        held = ((self.old, self.targets), (self.new, self.reads))
        # from the start, for either graph may run ahead of the blocks where something else needs what they make
        for replay, every in held:
            for name in chain(*every):
                replay.hold(name)
        for number, turn in enumerate(self.turns):
            lesson, kept = self._lesson(number), len(self.found.kept)
            if lesson is None:
                progress(self.course.steps)
            else:
                self._train(number, lesson, progress)
            # a block may also have run before what it reads was trained
            changed = kept < len(self.found.kept) or (kept > 0 and turn.count == 1)
            if changed and self._reads_are_held(number):
                self.new.again(turn.block.nodes)
            for replay, every in held:
                for name in every[number]:
                    replay.release(name)
        learned = {name for lesson in self.lessons.values() if lesson for name in lesson.parameters}
        unlearned = self.ownership.unlearned(learned, [turn.block for turn in self.turns])
        self.found.stopped = unlearned | self.found.stopped
        self.lessons.clear()  # they hold what holds them, and with it activations
        self.found.spilled = self.old.store.spilled + self.new.store.spilled
        if self.found.kept:
            outputs = Outputs(self.graph, self.reference, self.division.judge, self.threads, self.limit)
            self.found.outcome = outputs.settle(list(self.start.values()))
            if not self.found.outcome.share:
                self.found.kept.clear()
        return self.found

    def _reads_are_held(self, number: int) -> bool:
        return len(self.reads[number]) == len(self.turns[number].block.reads)

    def _lesson(self, number: int) -> _Lesson | None:
        """What is learned in a turn, and from what; None if nothing is."""
        if number not in self.lessons:
            self.lessons[number] = self._prepared(number)
        return self.lessons[number]

    def _prepared(self, number: int) -> _Lesson | None:
        turn = self.turns[number]
        parameters = self.ownership.of(turn.block)
        if not (parameters and self.targets[number] and self._reads_are_held(number)):
            return None
        inside = {node.outputs[0].name for node in turn.block.nodes}
        if turn.count > 1 and self.new.runs(turn.block.reads) & inside:
            return None  # what it reads depends on what it trains
        self.old.advance(self.targets[number])
        self.new.advance(turn.block.reads)
        targets = [name for name in self.targets[number] if self._fits(name)]
        if not targets or (turn.count > 1 and len(targets) < len(turn.block.makes)):
            return None  # some of the neighbours would have nothing to learn from
        alone = _alone(self.graph, turn.block, targets)
        samples = self._samples([*turn.block.reads, *(TARGET + name for name in targets)], alone)
        if turn.count > 1 and not samples.rows:  # batches as a whole would be as many times as much
            return None
        return _Lesson(parameters, targets, alone, samples)

    def _train(self, number: int, lesson: _Lesson, progress: Callable[[int], None]) -> None:
        turn, samples = self.turns[number], lesson.samples
        learn, held = self.division.numbers(samples)
        if not (len(learn) and len(held)):
            self.found.stopped |= dict.fromkeys(
                lesson.parameters,
                "there is one sample, or one batch that cannot be divided, and none to judge by",
            )
            progress(self.course.steps)
            return
        batch = min(self.course.batch, max(FEWEST, ENOUGH // self._positions(turn.block, lesson.targets)))
        if not samples.rows:
            batch = math.ceil(batch / self.division.size)
        course = replace(self.course, seed=self.course.seed + number, batch=batch)
        if turn.joint is not None and self._lesson(turn.joint) is not None:
            course = replace(course, steps=math.ceil(SHARE * course.steps))
        energy = {name: self._variance(name) for name in lesson.targets}
        objective = Objective(
            lesson.alone,
            lambda tape: _loss(tape, energy),
            list(lesson.parameters),
            rows=samples.rows,
            threads=self.threads,
        )
        state = _trained(
            course,
            objective,
            {name: np.array(peek(constant)) for name, constant in lesson.parameters.items()},
            samples,
            learn,
            held,
            self.ties,
            self.limit,
            _scaled(progress, course.steps, self.course.steps),
            # what is not finished has a second chance
            again=turn.count == 1 or any(each.joint == number for each in self.turns),
        )
        label = lesson.targets[-1] if turn.count == 1 else f"{lesson.targets[-1]}, {turn.count} blocks"
        self.found.errors[label] = (state.before, state.loss)
        if turn.count == 1:
            self.found.stopped |= {**objective.partial, **objective.stopped}
        if state.improved:
            self.found.kept.append(label)
            for name, constant in lesson.parameters.items():
                self.start.setdefault(name, (constant, constant._values))  # noqa: SLF001  # as it is stored
                constant.values = state.best[name]

    def _positions(self, block: Block, targets: Sequence[str]) -> int:
        """In how many places of a sample, of which there are channels, the weights of a block are at work."""
        if not any(node.op in CONVOLUTIONS for node in block.nodes):
            return 1
        return max(1, *(math.prod(self._tensor(TARGET + name, 0).shape[2:]) for name in targets))

    def _tensor(self, name: str, batch: int) -> Array:
        if name.startswith(TARGET):
            name = name.removeprefix(TARGET)
            return self.reference.left(name, self.old.get(name, batch))
        return self.new.get(name, batch)

    def _samples(self, names: Sequence[str], alone: gs.Graph) -> Samples:
        """Rows of batches where the block keeps them apart, else batches."""
        rows = Samples.of(names, self._tensor, self.new.batches, rows=True)
        if rows_are_apart(alone, rows, self.threads):
            return rows
        return Samples.of(names, self._tensor, self.new.batches, rows=False)

    def _fits(self, name: str) -> bool:
        """Whether what is left of a target has the shape of what the block makes."""
        dims, dynamic = self.shapes.dims.get(name), self.shapes.dynamic.get(name, ())
        shape = self._tensor(TARGET + name, 0).shape
        return (
            dims is not None
            and len(dims) == len(shape)
            and all(
                changes or size == there for size, there, changes in zip(dims, shape, dynamic, strict=True)
            )
        )

    def _variance(self, name: str) -> float:
        """The mean over what is learned from, and channels, of the squared distance from the mean."""
        total = square = 0.0
        count = 0
        for batch in range(len(self.division.learn)):
            values = np.asarray(self._tensor(TARGET + name, batch), np.float64)
            values = values[np.isfinite(values)]
            total, square, count = total + values.sum(), square + np.square(values).sum(), count + values.size
        return max(float(square / count - (total / count) ** 2), 1e-12) if count else 1.0


def _ends(turns: Sequence[Turn], known: Collection[str]) -> list[str]:
    """What blocks make that no block reads."""
    read = {name for turn in turns for name in turn.block.reads}
    return sorted({name for turn in turns for name in turn.block.makes if name in known} - read)


def _trained(
    course: Course,
    objective: Objective,
    start: dict[str, Array],
    samples: Samples,
    learn: Array,
    held: Array,
    ties: Mapping[str, Tie],
    limit_bytes: int,
    progress: Callable[[int], None],
    *,
    again: bool,
) -> State:
    _, feeds = next(samples.take(held[:1], 1))
    course = replace(course, most=min(course.most, objective.divide(feeds, course.batch, limit_bytes)))
    untrained = objective.value(start, samples.take(held, course.most))
    if not untrained > SAME:
        progress(course.steps)
        course = replace(course, steps=0)
    state = train(objective, start, samples, learn, held, course, ties=ties, progress=progress)
    progress(course.steps - state.optimizer.steps)
    if state.improved or not course.steps or not again:
        return state
    # weights that are nearly right already are shaken up by large steps
    careful = replace(course, rate=course.rate * CAREFUL)
    return train(objective, start, samples, learn, held, careful, ties=ties)


def _scaled(progress: Callable[[int], None], steps: int, total: int) -> Callable[[int], None]:
    """Says of so many steps how much of a total they are."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        progress(done * total // max(steps, 1) - before * total // max(steps, 1))

    return advance


def _alone(graph: gs.Graph, block: Block, targets: Sequence[str]) -> gs.Graph:
    """A block as a graph: its inputs are what it reads, and the targets."""
    tensors = graph.tensors()
    read = [tensors[name] for name in block.reads]
    wanted = [gs.Variable(TARGET + name, np.float32, None) for name in targets]
    return gs.Graph(
        nodes=list(block.nodes),
        inputs=[*read, *wanted],
        outputs=[tensors[name] for name in targets],
        opset=graph.opset,
        import_domains=graph.import_domains,
        ir_version=graph.ir_version,
    )


def _loss(tape: Tape, energy: Mapping[str, float]) -> Value:
    terms = []
    for name, variance in energy.items():
        # half floats would overflow, and the original may have another type
        made, wanted = tape.find(name).cast(np.float32), tape.find(TARGET + name).cast(np.float32)
        difference = made - wanted
        terms.append((difference * difference).mean() * (1 / (variance * len(energy))))
    return tape.total(terms)
