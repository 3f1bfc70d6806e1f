"""A quantized graph as one that can be trained: integers behind DequantizeLinear become numbers that are rounded.

Gradients pass the rounding straight through, but for what lies beyond the ends of its range (Bengio, Léonard and
Courville, arXiv 1308.3432; Jacob et al., arXiv 1712.05877). All numbers are learned in a unit of their own, so that one
learning rate suits them: that of a weight is its largest number, and that of a bias what this makes of an input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.grad.parameters import CARRIERS, parameters_of
from surgeon.grad.ties import Tie
from surgeon.graph.copy import copy_of
from surgeon.graph.order import every_node, needs, ordered
from surgeon.graph.schemas import opsets
from surgeon.graph.weights import peek
from surgeon.quantized import is_quantized_operator
from surgeon.refit.keeping import Promised, tie_of, ties_of
from surgeon.refit.soften import in_units, rounded_on_the_way
from surgeon.refit.twins import ROUNDING, Twins
from surgeon.refit.whole import Parameters
from surgeon.stats.grid import bounds, grid_of
from surgeon.stats.matrices import WEIGHTED
from surgeon.stats.promises import Promise, promises_of
from surgeon.stats.weight import is_rounded, steps_of, weight_chain, weight_shape, weight_values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.reference import Reference

    Array = NDArray[Any]

NARROW = frozenset({"int4", "uint4", "int8", "uint8", "int16", "uint16"})  # what QuantizeLinear rounds to
BIAS = 2**13  # steps of a bias: the largest weight in 8 bits, times an ordinary input


@dataclass(frozen=True)
class Place:
    """Where learned numbers are stored.

    Attributes:
        constant: The name of the constant.
        start: The numbers that stand for what is there.
        unit: What a number is multiplied by: steps of the grid, or floats.
        least: The smallest integer; None for floats.
        most: The largest one.
    """

    constant: str
    start: Array
    unit: float = 1.0
    least: int | None = None
    most: int | None = None

    def rounded(self, numbers: Array) -> Array:
        """The numbers that are stored instead."""
        if self.least is None:
            return numbers
        steps = np.rint(np.clip(numbers.astype(np.float64) * self.unit, self.least, self.most))
        return np.asarray(steps / self.unit, np.float32)

    def stored(self, numbers: Array, before: Array) -> Array:
        """What to store, in the type of what is stored ``before``; the same where the numbers are."""
        if self.least is None:
            return np.where(numbers == self.start, before, numbers * self.unit).astype(before.dtype)
        now, then = (self.rounded(each).astype(np.float64) * self.unit for each in (numbers, self.start))
        moved = before.astype(np.int64) + np.rint(now - then).astype(np.int64)
        return np.clip(moved, self.least, self.most).astype(before.dtype)


@dataclass
class Softened:
    """What can be trained.

    Attributes:
        graph: A copy of the quantized graph, with numbers to learn in the place of its constants.
        numbers: What is learned, by name.
        places: Where it is stored.
        ties: What of it stays as it is, and what moves together, because weights were zero or had few values.
        kept: The same for a report: names of weights, zeros that stay, how many different values, per tensor or channel.
        left: What of the graph stays as it is, and why: constants, and operators that have others.
    """

    graph: gs.Graph
    numbers: dict[str, gs.Constant] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    ties: dict[str, Tie] = field(default_factory=dict)
    kept: list[dict[str, Any]] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> Parameters:
        """What of the graph is trained."""
        return Parameters(self.numbers, self.ties, self.rounded)

    def rounded(self, numbers: Mapping[str, Array]) -> dict[str, Array]:
        """The numbers that are stored in the place of these."""
        return {name: self.places[name].rounded(each) for name, each in numbers.items()}

    def store(self, graph: gs.Graph, numbers: Mapping[str, Array]) -> tuple[int, int]:
        """Put what was learned into the quantized graph, in place.

        Returns:
            How many integers are others than before, and of how many.
        """
        constants = _constants(graph)
        changed = total = 0
        for name, place in self.places.items():
            constant = constants[place.constant]
            before = peek(constant)
            after = place.stored(numbers[name], before)
            if not np.array_equal(after, before):
                constant.values = after
            if place.least is not None:
                changed, total = changed + int(np.count_nonzero(after != before)), total + before.size
        return changed, total


def soften(
    graph: gs.Graph, reference: Reference, excluded: Callable[[str], bool] = lambda _: False
) -> Softened:
    """Let all constants that weighted operators, norms and the like read be numbers to learn.

    Args:
        graph: A quantized graph; it is not changed.
        reference: The float graph it was made from: numbers start where its weights were between two steps.
        excluded: Whether a node or tensor, by name, is to be left alone.
    """
    work = copy_of(graph)
    found = Softened(work, left=_strangers(work))
    origins = {**_from_floats(work), **_from_twins(work, reference)}
    outputs = {tensor.name for tensor in work.outputs}
    for name, constant in parameters_of(work.nodes, opsets(work), integers=True).items():
        origin = origins.get(name)
        names = {"" if origin is None else origin.name, *_names_around(constant)}
        if any(excluded(each) for each in names if each):
            found.left[name] = "excluded"
        elif why := _obstacle(constant, outputs):
            found.left[name] = why
        else:
            _add(found, constant, origin or _unknown(constant))
    return found


@dataclass(frozen=True)
class Origin:
    """What a constant comes from.

    Attributes:
        name: The float weight that integers were made of.
        values: Its values, in the shape of the constant; of another shape where they are not known.
        promise: What the weight keeps.
        tie: What of the constant stays as it is for that, and what moves together.
    """

    name: str = ""
    values: Array = field(default_factory=lambda: np.zeros(0))
    promise: Promise | None = None
    tie: Tie | None = None

    def noted(self) -> dict[str, Any]:
        """What is kept, for a report."""
        promise, tie = self.promise, self.tie
        return {
            "name": self.name,
            "zeros": int(np.count_nonzero(~tie.free)) if promise and promise.zeros and tie else None,
            "values": (promise and promise.values) or None,
            "per": (promise and promise.sharing) or None,
        }


def _from_floats(graph: gs.Graph) -> dict[str, Origin]:
    """Weights that are floats keep what they promise themselves."""
    promises, ties = promises_of(graph), ties_of(graph)
    return {
        name: Origin(name, promise=promise, tie=ties[name])
        for name, (weight, promise) in promises.items()
        if not is_rounded(weight.tensor)
    }


def _from_twins(graph: gs.Graph, reference: Reference) -> dict[str, Origin]:
    """Weights that are integers keep what those of the float graph promise."""
    found = {}
    promised = Promised()
    for twin in Twins.of(graph, reference).found:
        tensor = twin.node.inputs[twin.view.weight]
        theirs = twin.original.op.node.inputs[twin.original.weight]
        values = weight_values(theirs)
        if is_rounded(tensor) and values.shape == weight_shape(tensor) and not twin.is_folded:
            chain: Any = weight_chain(tensor)
            flat = np.zeros(values.size)
            flat[grid_of(tensor).places] = values
            promise = promised.of(twin.original)
            tie = None if promise is None else tie_of(twin.view, tensor, promise)
            found[str(chain[0].name)] = Origin(str(theirs.name), flat.reshape(chain[0].shape), promise, tie)
    return found


def _add(found: Softened, constant: gs.Constant, origin: Origin) -> None:
    """Put numbers to learn in the place of a constant, and note what they keep."""
    learned, place = _soft(found.graph, constant, origin.values)
    found.numbers[learned.name], found.places[learned.name] = learned, place
    if origin.promise is not None and origin.tie is not None:
        found.ties[learned.name] = origin.tie
        found.kept.append(origin.noted())


def _unknown(constant: gs.Constant) -> Origin:
    """Of integers nobody knows what they were made of: what is zero in a matrix stays so, whatever the reason."""
    values = peek(constant)
    if values.dtype.name not in NARROW or values.ndim < 2:
        return Origin()
    free = values.astype(np.int64) != steps_of(constant.outputs[0], values.shape)[1]
    return Origin() if free.all() else Origin(constant.name, promise=Promise(zeros=True), tie=Tie(free))


def _soft(graph: gs.Graph, constant: gs.Constant, original: Array) -> tuple[gs.Constant, Place]:
    """Put numbers to learn in the place of a constant."""
    values, name = peek(constant), constant.name
    if values.dtype.kind == "f":
        unit = _power_of_two(float(np.abs(values).max(initial=0)))
        learned = in_units(graph, constant, values / unit, np.asarray(unit))
        return learned, Place(name, peek(learned), unit)
    made = constant.outputs[0].outputs[0]
    if values.dtype.name in NARROW:
        steps, grid = rounded_on_the_way(graph, constant, made, original)
        unit = _power_of_two(max(float((grid.most - grid.zero).max()), float((grid.zero - grid.least).max())))
        learned = in_units(graph, steps, peek(steps) / unit, np.asarray(unit))
        return learned, Place(name, peek(learned), unit, grid.least, grid.most)
    scale, _ = steps_of(constant.outputs[0], values.shape)
    learned = in_units(graph, constant, values / BIAS, scale * BIAS)
    return learned, Place(name, peek(learned), BIAS, *bounds(values.dtype))


def _power_of_two(size: float) -> float:
    """The nearest one: products with it are exact."""
    return float(2.0 ** round(math.log2(size or 1.0)))


def _obstacle(constant: gs.Constant, outputs: set[str]) -> str:
    """Why a constant cannot be learned; empty if it can."""
    if constant.name in outputs:
        return "it is an output"
    kind, readers = peek(constant).dtype, constant.outputs
    if kind.kind == "f":
        return "" if kind == np.float32 else f"its numbers are {kind.name}"
    if any(reader.op != "DequantizeLinear" or reader.inputs[0] is not constant for reader in readers):
        return "its integers are read as they are"
    if not all(is_rounded(reader.outputs[0]) for reader in readers):
        return "its scale is computed"
    if kind.name in NARROW:
        return "" if _is_one_grid(readers) else "it is shared by operators with other scales"
    if kind != np.int32:
        return f"numbers are not rounded to {kind.name}"
    return "" if len(readers) == 1 else "it is shared"


def _is_one_grid(readers: Sequence[gs.Node]) -> bool:
    """Whether the same integers mean the same to all who read them."""
    shape = readers[0].inputs[0].shape
    first = steps_of(readers[0], shape)
    return all(
        np.array_equal(one, other)
        for reader in readers[1:]
        for one, other in zip(first, steps_of(reader, shape), strict=True)
    )


def _names_around(tensor: gs.Tensor) -> Iterator[str]:
    """A constant, views of it, and the operators that read them."""
    yield tensor.name
    for user in tensor.outputs:
        yield user.name
        if user.op in CARRIERS:
            for made in user.outputs:
                yield from _names_around(made)


def _strangers(graph: gs.Graph) -> dict[str, str]:
    """Operators whose weights are out of reach, and why."""
    found = {}
    outer = {id(node) for node in graph.nodes}
    versions, fed = opsets(graph), _fed(graph)
    for node in every_node(graph):
        label = str(node.name or (node.outputs[0].name if node.outputs else node.op))
        if is_quantized_operator(node) and node.op not in ROUNDING and _has_matrix(node):
            found[label] = f"{node.op} reads integers that no DequantizeLinear stands before"
        elif node.op in WEIGHTED and id(node) not in outer:
            found[label] = "it is inside of a body"
        elif (
            node.op in WEIGHTED
            and any(tensor.name not in fed for tensor in node.inputs[:2])
            and not parameters_of([node], versions, integers=True)
        ):
            found[label] = "its weight is computed"
    return found


def _has_matrix(node: gs.Node) -> bool:
    return any(isinstance(tensor, gs.Constant) and len(tensor.shape) > 1 for tensor in node.inputs)


def _fed(graph: gs.Graph) -> set[str]:
    """Tensors that depend on the graph's inputs."""
    found = {tensor.name for tensor in graph.inputs}
    for node in ordered(graph.nodes):
        if any(tensor.name in found for tensor in needs(node)):
            found |= {tensor.name for tensor in node.outputs}
    return found


def _constants(graph: gs.Graph) -> dict[str, gs.Constant]:
    return {
        tensor.name: tensor
        for node in graph.nodes
        for tensor in node.inputs
        if isinstance(tensor, gs.Constant)
    }
