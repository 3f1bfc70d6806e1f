"""How much the loss changes as each index of a group fades, from gradients of the model's own graph.

Removing an index takes it out of everything that operators sum over it. So each such input gets a factor of its own, 1 for now,
and the slope of a sample's loss by the factor of an index, all inputs together, is the sum of activation times gradient over
all places it is read at. (For one weighted consumer that equals the sum of weight times gradient, but it is known per
sample, and exists where activations are multiplied with each other as well.) The graph of the gradient runs in
onnxruntime on a few samples at a time, and only these sums leave it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.axes import atoms_of, coordinates
from surgeon.errors import UnsupportedModelError
from surgeon.grad.differentiate import FLOATS, Gradient, gradient
from surgeon.grad.tape import Tape
from surgeon.graph.copy import copy_of
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session, with_outputs
from surgeon.graph.shapes import infer
from surgeon.groups import RECURRENT
from surgeon.scores import Slopes
from surgeon.stats.data import runnable
from surgeon_passes.pruning.activity import Read, reads
from surgeon_passes.pruning.likelihood import OWN, End, drawn, find_ends, labelled

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import onnxruntime as ort
    from numpy.typing import NDArray

    from surgeon.engine import Model
    from surgeon.groups import Group
    from surgeon.passes import Context
    from surgeon.stats.data import Dataset

    Array = NDArray[Any]

PREFIX, BATCH = "surgeon/influence", "surgeon_batch"
COPIES = 3  # of the activations: themselves, their gradients, and what rules need on the way
FEWEST = 256  # slopes per index, where they are drawn: fewer samples are gone through several times
ROUNDS = 4  # but no more often than that
UNSEEN = "nothing outside of loops and branches sums over it"


@dataclass
class Influence:
    """What was found.

    Attributes:
        slopes: Per group id.
        without: Groups without any, and why.
        partial: Groups part of whose influence is left out, and why.
        truth: What the loss compares with.
    """

    slopes: dict[str, Slopes] = field(default_factory=dict)
    without: dict[str, str] = field(default_factory=dict)
    partial: dict[str, str] = field(default_factory=dict)
    truth: str = OWN


@dataclass(frozen=True)
class Gate:
    """An input of an operator, as an axis of it is read.

    Attributes:
        name: The tensor that is put before the operator.
        axis: The axis the groups are on.
        by_group: For each group and occurrence on the axis, the index every position belongs to (-1: none).
    """

    name: str
    axis: int
    by_group: Mapping[str, list[NDArray[np.int64]]]


def influences(
    model: Model, groups: Sequence[Group], context: Context, limit_bytes: int, *, labels: bool = True
) -> Influence:
    """Run the calibration data forwards and backwards.

    Args:
        model: The analysed model.
        groups: The groups.
        context: The run.
        limit_bytes: Activations and gradients that may be in memory; how many samples are run at once follows.
        labels: Whether labels are used, where the data have any.

    Raises:
        DataError: The data do not fit the model.
    """
    found = Influence()
    ends = find_ends(model.analysis, context.metric)
    graph, gates = _gated(model, groups, found)
    if not ends:
        gates, found.without = [], {group.id: "the model has no outputs of floats" for group in groups}
    if not gates:
        return found
    try:
        _Measuring(model, context, graph, gates, ends, found).run(groups, limit_bytes, labels=labels)
    except UnsupportedModelError as error:  # as a gradient, or at all
        found.slopes, found.partial = {}, {}
        found.without = {group.id: str(error) for group in groups}
    return found


def _gated(model: Model, groups: Sequence[Group], found: Influence) -> tuple[gs.Graph, list[Gate]]:
    """A copy of the graph in which operators read groups through tensors of their own."""
    graph = copy_of(model.analysis.graph)
    numbers = {id(node): k for k, node in enumerate(model.analysis.graph.nodes)}
    by_atom = {group.atom: group.id for group in groups}
    places: dict[tuple[int, int, int], dict[str, list[NDArray[np.int64]]]] = {}
    taken: set[tuple[int, str]] = set()
    seen: set[str] = set()
    for read in reads(model, list(by_atom)):
        name, number = by_atom[read.atom], numbers.get(id(read.op.node))
        why = _refusal(model, read, number)
        if why is not None or number is None:
            found.partial.setdefault(name, why or UNSEEN)
            continue
        if (number, name) in taken:  # the other factor of a product: one of them fades
            continue
        taken.add((number, name))
        seen.add(name)
        where = coordinates(read.expression, read.atom)
        places.setdefault((number, read.index, read.axis), {})[name] = where
    _note_recurrent(model, groups, found)
    for group in groups:
        if group.id not in seen:
            found.without[group.id] = found.partial.pop(group.id, UNSEEN)
    nodes = list(graph.nodes)  # as numbered
    gates, names = [], dict[tuple[int, int], str]()
    for (number, index, axis), by_group in places.items():
        if (number, index) not in names:
            names[number, index] = f"{PREFIX}/{len(names)}"
            _insert(graph, nodes[number], index, names[number, index], len(names))
        gates.append(Gate(names[number, index], axis, by_group))
    return graph, gates


def _refusal(model: Model, read: Read, number: int | None) -> str | None:
    """Why the gradient by an input of an operator cannot be had."""
    if number is None or read.op.within is not None:
        return f"{read.op.name} reads it inside a loop or branch"
    if model.analysis.shapes.dtypes.get(read.op.node.inputs[read.index].name) not in FLOATS:
        return f"{read.op.name} reads it in a type without gradients"
    return None


def _note_recurrent(model: Model, groups: Sequence[Group], found: Influence) -> None:
    """What a recurrent layer feeds back into itself is no tensor, and is left out."""
    for op in model.analysis.ops:
        if op.node.op not in RECURRENT:
            continue
        fed_back = {atom for axis in op.facts.contracted.get(2, ()) for atom in atoms_of(axis)}
        for group in groups:
            if group.atom in fed_back:
                found.partial.setdefault(
                    group.id, f"{op.name}: what it feeds back into itself does not count"
                )


def _insert(graph: gs.Graph, node: gs.Node, index: int, name: str, number: int) -> None:
    tensor = node.inputs[index]
    gate = gs.Variable(name, tensor.dtype, tensor.shape)
    place = next(k for k, each in enumerate(graph.nodes) if each is node)
    graph.nodes.insert(place, gs.Node("Identity", f"{PREFIX}/node/{number}", {}, [tensor], [gate]))
    node.inputs[index] = gate


class _Measuring:
    """One go through the data."""

    def __init__(
        self,
        model: Model,
        context: Context,
        graph: gs.Graph,
        gates: Sequence[Gate],
        ends: Sequence[End],
        found: Influence,
    ) -> None:
        self.model, self.context, self.graph = model, context, graph
        self.gates, self.ends, self.found = list(gates), list(ends), found
        self.seed = context.seed_for("influence")
        self.rows = self._keeps_samples_apart()
        self.compiled: dict[tuple[Any, ...], tuple[list[Gate], ort.InferenceSession]] = {}

    def run(self, groups: Sequence[Group], limit_bytes: int, *, labels: bool) -> None:
        """Fill in what was found."""
        shapes = self.model.analysis.shapes
        one = COPIES * sum(4 * prod(dims[1:]) for dims in shapes.dims.values() if dims)
        data = self.context.calibration()
        most = int(max(1, min(data.batch, limit_bytes // max(one, 1)))) if self.rows else 1
        proto = with_outputs(to_model(self.model.analysis.graph), [end.tensor for end in self.ends])
        forward = session(proto, threads=self.context.threads)
        data = runnable(data.rebatched(most), forward)
        names = [output.name for output in forward.get_outputs()]
        sizes = {group.id: group.size for group in groups}
        total = data.total()
        given = labels and self._fits_labels(data, forward, names)
        rounds = 1 if given else min(ROUNDS, -(-FEWEST // max(total, 1)))
        with self.context.progress("prune: gradients", total * rounds) as advance:
            for turn in range(rounds):
                start = 0
                for feeds, truth in data:
                    values = dict(zip(names, run(forward, feeds), strict=True))
                    slopes, count = self._slopes(values, truth, turn, start)
                    self._add(feeds | slopes, count, sizes)
                    start += count
                    advance(count)
        self._close()

    def _fits_labels(self, data: Dataset, forward: ort.InferenceSession, names: Sequence[str]) -> bool:
        """Whether there are labels that fit the first output; then no other output counts."""
        feeds, labels = next(iter(data))
        if labels is None:
            return False
        values = dict(zip(names, run(forward, feeds), strict=True))
        if labelled(self.ends[0], values[self.ends[0].tensor], labels) is None:
            self.context.warn(f"the labels do not fit the first output: gradients are taken against {OWN}")
            return False
        self.ends = self.ends[:1]
        self.found.truth = "the labels"
        return True

    def _keeps_samples_apart(self) -> bool:
        """Whether the first axis of everything that is read is that of the samples, as it is that of the inputs."""
        shapes = self.model.analysis.shapes
        first = shapes.dims.get(self.graph.inputs[0].name) if self.graph.inputs else None
        sources = {
            node.outputs[0].name: node.inputs[0].name
            for node in self.graph.nodes
            if node.outputs and node.outputs[0].name.startswith(f"{PREFIX}/")
        }
        names = [tensor.name for tensor in self.graph.inputs]
        names += [*(sources[gate.name] for gate in self.gates), *(end.tensor for end in self.ends)]
        return all(gate.axis > 0 for gate in self.gates) and all(
            bool(first and (dims := shapes.dims.get(name)) and dims[0] == first[0])
            and shapes.dynamic[name][0]
            for name in names
        )

    def _slopes(
        self, values: Mapping[str, Array], labels: Array | None, turn: int, start: int
    ) -> tuple[dict[str, Array], int]:
        """The slope of the loss at each end, and for how many samples."""
        count = len(values[self.ends[0].tensor]) if self.rows else 1
        result = {}
        for number, end in enumerate(self.ends):
            found = None
            if self.found.truth != OWN and labels is not None:
                found = labelled(end, values[end.tensor], labels)
            if found is None:
                generators = [
                    np.random.default_rng((self.seed, turn, start + k, number)) for k in range(count)
                ]
                found = drawn(end, values[end.tensor], generators)
            result[_slope(number)] = found.astype(end.dtype)
        return result, count

    def _add(self, feeds: Mapping[str, Array], count: int, sizes: Mapping[str, int]) -> None:
        gates, runner = self._of(feeds)
        outputs = run(runner, feeds)
        sums: dict[str, NDArray[np.float64]] = {}
        for gate, products in zip(gates, outputs, strict=True):
            per_position = np.asarray(products, np.float64).reshape(count, -1)
            for name, where in gate.by_group.items():
                total = sums.setdefault(name, np.zeros((count, sizes[name])))
                for index in where:
                    used = index >= 0
                    np.add.at(total.T, index[used], per_position.T[used])
        for name, total in sums.items():
            before = self.found.slopes.get(name)
            here = Slopes(np.abs(total).sum(axis=0), np.square(total).sum(axis=0), float(count))
            self.found.slopes[name] = here if before is None else before.joined(here)

    def _of(self, feeds: Mapping[str, Array]) -> tuple[list[Gate], ort.InferenceSession]:
        """The gates with a gradient, and what computes their sums, for feeds of these shapes."""
        shapes = {name: array.shape[1:] if self.rows else array.shape for name, array in feeds.items()}
        key = tuple(sorted(shapes.items()))
        if key not in self.compiled:
            found = self._differentiated(feeds, shapes)
            gates = [gate for gate in self.gates if gate.name in found.of]
            self._note(found)
            self.compiled[key] = gates, self._summing(found, gates)
        return self.compiled[key]

    def _differentiated(self, feeds: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> Gradient:
        graph = copy_of(self.graph)
        graph.__dict__.pop("surgeon_interface", None)
        slopes = [_slope(number) for number in range(len(self.ends))]
        graph.inputs = [*graph.inputs, *(gs.Variable(name) for name in slopes)]
        for tensor in graph.inputs:
            front = [BATCH] if self.rows else []
            tensor.shape, tensor.dtype = [*front, *shapes[tensor.name]], feeds[tensor.name].dtype
        ends = [(end.tensor, slope) for end, slope in zip(self.ends, slopes, strict=True)]

        def loss(tape: Tape) -> Any:
            inputs = {tensor.name: tensor for tensor in tape.graph.inputs}
            parts = [
                (tape.find(name) * tape.value(inputs[slope])).cast(np.float32).sum() for name, slope in ends
            ]
            return tape.total(parts)

        return gradient(graph, loss, list(dict.fromkeys(gate.name for gate in self.gates)))

    def _summing(self, found: Gradient, gates: Sequence[Gate]) -> ort.InferenceSession:
        """The graph of the gradient, with nothing but the sums of products as outputs."""
        graph = found.graph
        tape = Tape(graph, infer(graph), PREFIX)
        sums = []
        for gate in gates:
            value, slope = tape.find(gate.name), tape.find(found.of[gate.name])
            rank = len(tape.shapes.dims[gate.name] or ())
            kept = {0, gate.axis} if self.rows else {gate.axis}
            product = value.cast(np.float32) * slope.cast(np.float32)
            sums.append(product.sum([k for k in range(rank) if k not in kept]))
        graph.nodes = [*graph.nodes, *tape.nodes]
        graph.outputs = [each.tensor for each in sums]
        return session(to_model(graph), threads=self.context.threads)

    def _note(self, found: Gradient) -> None:
        """Why some of what was asked for is missing."""
        for gate in self.gates:
            why = found.stopped.get(gate.name) or found.partial.get(gate.name)
            for name in gate.by_group if why else ():
                self.found.partial.setdefault(name, str(why))

    def _close(self) -> None:
        """Groups that nothing was found for, or no numbers."""
        for name in {name for gate in self.gates for name in gate.by_group}:
            slopes = self.found.slopes.get(name)
            if slopes is None:
                self.found.without[name] = self.found.partial.pop(name, "no gradient reaches it")
            elif not np.isfinite(slopes.squares).all():
                del self.found.slopes[name]
                self.found.without[name] = "its gradient is not finite on the data"


def _slope(number: int) -> str:
    return f"{PREFIX}/slope/{number}"


def reasons(why: Mapping[str, str], most: int = 3) -> Iterator[str]:
    """The first few groups with their reasons."""
    for name in list(why)[:most]:
        yield f"{name} ({why[name]})"
    if len(why) > most:
        yield f"{len(why) - most} more"
