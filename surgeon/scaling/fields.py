"""The variables of scaling: one for each channel of each tensor, as the solved axes name channels.

Two positions of a tensor that have the same coordinates in all channel groups are one channel. What operators move,
pool or add keeps its coordinates, so that channels of their inputs and outputs are matched by them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from surgeon.analysis import OUTPUT
from surgeon.axes import Atom, Axis, Coordinates, atoms_of
from surgeon.graph.order import bodies, captured
from surgeon.graph.weights import data_type
from surgeon.scaling.registry import SCALINGS
from surgeon.scaling.solve import FIXED, Equations, solve
from surgeon.stats.matrices import Weight
from surgeon.stats.promises import promise_of
from surgeon.stats.weight import weight_chain, weight_shape, weight_values

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.analysis import Analysis
    from surgeon.ops import Op

    Array = NDArray[Any]
    Ids = NDArray[np.int64]

LARGEST = 1 << 22  # channels of one tensor that are told apart
WHOLE = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)  # in half precision scaling is not exact enough


@dataclass(frozen=True)
class Demand:
    """How a constant has to change when factors are chosen.

    Attributes:
        op: Who reads it.
        index: As which input.
        times: Variables, in an array that broadcasts to its shape, whose factors multiply it.
        over: Those whose factors divide it.
        rows: For the weight of a linear operator: which channel of the input each element multiplies; broadcastable.
        columns: Which channel of the output it adds to; broadcastable.
    """

    op: Op
    index: int
    times: Ids
    over: Ids
    rows: Ids | None = None
    columns: Ids | None = None

    @property
    def tensor(self) -> gs.Tensor:
        """The constant, or what is made of it by nodes that only turn or cast it."""
        return self.op.node.inputs[self.index]


@dataclass
class Fields:
    """What the rules state, while they are asked.

    Attributes:
        analysis: The graph with its solved axes.
        excluded: Whether a node or tensor is to be left alone.
        equations: What was stated.
        demands: How constants make up for factors.
        ids: For each tensor asked for, its variables: as many axes as the tensor, those without channels of size 1.
    """

    analysis: Analysis
    excluded: Callable[[str], bool]
    equations: Equations = field(default_factory=Equations)
    demands: list[Demand] = field(default_factory=list)
    ids: dict[str, Ids] = field(default_factory=dict)
    count: int = 1
    _keys: dict[str, Array] = field(default_factory=dict)

    def of(self, tensor: gs.Tensor) -> Ids:
        """The variables of a tensor that is computed."""
        if tensor.name not in self.ids:
            keys = self._channels(tensor.name)
            unique, inverse = np.unique(keys, return_inverse=True)
            numbers = np.where(unique == 0, FIXED, np.cumsum(unique != 0) + self.count - 1)
            self.count += int((unique != 0).sum())
            self._keys[tensor.name] = keys
            self.ids[tensor.name] = numbers[inverse].reshape(keys.shape)
            if self.analysis.shapes.dtypes.get(tensor.name) not in WHOLE:
                self.equations.pin(numbers, f"{tensor.name}: its numbers are no 32-bit floats")
        return self.ids[tensor.name]

    def fix(self, tensors: Sequence[gs.Tensor], reason: str) -> None:
        """These tensors keep their numbers."""
        for tensor in tensors:
            if tensor.name and not isinstance(tensor, gs.Constant):
                self.equations.pin(self.of(tensor), reason)

    def constant(self, tensor: gs.Tensor) -> bool:
        """Whether a tensor is a constant, perhaps behind nodes that only turn or cast it."""
        return isinstance(tensor, gs.Constant) or weight_chain(tensor) is not None

    def match(
        self, op: Op, source: gs.Tensor, target: gs.Tensor, *, drops: bool = False, adds: bool = False
    ) -> None:
        """Channels with the same coordinates have the same factor.

        Args:
            op: Who says so.
            source: An input.
            target: An output.
            drops: Whether channels of the input that the output has not are free.
            adds: Whether channels of the output that the input has not are free.
        """
        if self.constant(source):
            self.fix([target], f"{op.name}: is made of constants")
            return
        ids = [self.of(tensor).ravel() for tensor in (source, target)]
        keys = [self._keys[tensor.name].ravel() for tensor in (source, target)]
        common, left, right = np.intersect1d(keys[0], keys[1], return_indices=True)
        some = common != 0
        self.equations.link(ids[0][left[some]], ids[1][right[some]], "")
        reason = f"{op.name}: arranges its channels otherwise"
        if not drops:
            self.equations.pin(ids[0][~np.isin(keys[0], common)], reason)
        if not adds:
            self.equations.pin(ids[1][~np.isin(keys[1], common)], reason)

    def keep(self, target: gs.Tensor, constant: gs.Tensor, reason: str) -> None:
        """The channels of ``target`` that are those of a constant keep their numbers."""
        ids, keys = self.of(target), _keys(self.analysis.axes.get(constant.name) or [])
        self.equations.pin(ids[np.isin(self._keys[target.name], keys)], reason)

    def demand(
        self,
        op: Op,
        index: int,
        times: Ids,
        over: Ids | None = None,
        rows: Ids | None = None,
        columns: Ids | None = None,
    ) -> None:
        """Input ``index``, a constant, is multiplied by the factors of ``times`` and divided by those of ``over``."""
        nothing = np.zeros((1,) * times.ndim, np.int64)
        demand = Demand(op, index, times, nothing if over is None else over, rows, columns)
        self.demands.append(demand)
        reason = self._why_kept(demand)
        if reason:
            self.equations.pin(times, reason)
            self.equations.pin(demand.over, reason)

    def _why_kept(self, demand: Demand) -> str:
        chain = weight_chain(demand.tensor)
        if chain is None or not all(_type_of(self, each) in WHOLE for each in chain):
            return f"{demand.op.name}: its weights are no constant 32-bit floats"
        if demand.rows is not None:
            promise = promise_of(Weight(demand.op.node, demand.index).matrices())
            if promise is not None and promise.sharing:
                return f"{demand.op.name}: its weights have {promise.values} values, and would have more"
        return ""

    def _channels(self, name: str) -> Array:
        axes = self.analysis.axes.get(name)
        return np.zeros((), np.uint64) if axes is None else _keys(axes)


class Scaling:
    """The solved graph: which channels of which tensors have a factor in common that may be chosen.

    Attributes:
        labels: For each tensor, per channel, the number of its factor; `FIXED` where it keeps its numbers.
        reasons: Why channels keep their numbers, for tensors that have channels at all and not one free factor.
        demands: How constants make up for factors, in terms of labels.
        size: One more than the largest number of a factor.
    """

    def __init__(self, analysis: Analysis, excluded: Callable[[str], bool]) -> None:
        self.analysis = analysis
        fields = Fields(analysis, excluded)
        for op in analysis.ops:
            _ask(fields, op)
        _keep_interface(fields)
        _check_shared(fields)
        solution = solve(fields.equations, fields.count)
        labels = solution.labels
        self.size = fields.count
        self.labels = {name: labels[ids] for name, ids in fields.ids.items()}
        self.demands = [
            Demand(each.op, each.index, labels[each.times], labels[each.over], each.rows, each.columns)
            for each in fields.demands
        ]
        self.reasons = {
            name: reason
            for name, ids in fields.ids.items()
            if not self.labels[name].any() and (reason := _reason(ids, solution.reasons))
        }

    def factors(self, name: str, chosen: NDArray[np.float64]) -> NDArray[np.float64]:
        """What a tensor is multiplied by when factor number k is ``chosen[k]``; broadcastable to it."""
        return chosen[self.labels[name]] if name in self.labels else np.ones(())


def _reason(ids: Ids, reasons: Mapping[int, str]) -> str:
    return next((reasons[k] for k in np.unique(ids).tolist() if k != FIXED and k in reasons), "")


def _ask(fields: Fields, op: Op) -> None:
    """Ask the rule of an operator; without one, or inside of bodies, nothing it touches is scaled."""
    node = op.node
    if any(
        fields.excluded(name)
        for name in (node.name, *(t.name for t in (*node.inputs, *node.outputs)))
        if name
    ):
        fields.fix([*node.inputs, *node.outputs], f"{op.name}: excluded")
    rule = SCALINGS.find(node.op, node.domain or "", op.opset)
    if op.facts.barrier is None and op.within is None and not bodies(node) and rule is not None:
        rule.function(fields, op)
        return
    inner = [t for body in bodies(node) for t in (*body.inputs, *body.outputs)]
    reason = f"{op.name}: is not the same up to a factor when its input is scaled"
    fields.fix([*node.inputs, *captured(node), *inner, *node.outputs], reason)


def _keep_interface(fields: Fields) -> None:
    graph = fields.analysis.graph
    for tensors, kind in ((graph.inputs, "graph input"), (graph.outputs, OUTPUT)):
        for tensor in tensors:
            fields.fix([tensor], f"{tensor.name}: {kind}")


def _check_shared(fields: Fields) -> None:
    """A constant that several read can be scaled only if all of them want the same."""
    readers: dict[int, list[Demand]] = {}
    for demand in fields.demands:
        for tensor in (weight_chain(demand.tensor) or [])[:1]:
            readers.setdefault(id(tensor), []).append(demand)
    outputs = {tensor.name for tensor in fields.analysis.graph.outputs}
    for demands in readers.values():
        chain = weight_chain(demands[0].tensor) or []
        uses = max(len(tensor.outputs) for tensor in chain)
        first = demands[0]
        same = all(
            np.array_equal(first.times, each.times) and np.array_equal(first.over, each.over)
            for each in demands
        )
        if (uses > 1 and not (same and uses == len(demands))) or any(t.name in outputs for t in chain):
            for demand in demands:
                reason = f"{demand.op.name}: shares its weights with others"
                fields.equations.pin(demand.times, reason)
                fields.equations.pin(demand.over, reason)


def values_of(demand: Demand) -> Array:
    """The numbers of a constant, as the operator that reads it sees them."""
    return weight_values(demand.tensor)


def shape_of(tensor: gs.Tensor) -> tuple[int, ...]:
    """The shape of a constant."""
    return tuple(tensor.shape) if isinstance(tensor, gs.Constant) else weight_shape(tensor)


def _type_of(fields: Fields, tensor: gs.Tensor) -> int | None:
    return (
        data_type(tensor)
        if isinstance(tensor, gs.Constant)
        else fields.analysis.shapes.dtypes.get(tensor.name)
    )


def _keys(axes: Sequence[Axis]) -> Array:
    """A number for each channel of a tensor that says which coordinates it has; 0 where it has none.

    Sums of pseudorandom 64-bit numbers, one for each coordinate in each atom: the order of axes does not matter, and
    two channels are told apart but for a chance of 2⁻⁶⁴.
    """
    result = np.zeros((1,) * len(axes), np.uint64)
    for k, axis in enumerate(axes):
        found, coordinates = np.zeros(axis.size, np.uint64), Coordinates(axis)
        for atom in dict.fromkeys(atoms_of(axis)):
            if _tells_channels(atom):
                for places in coordinates.of(atom):
                    code = _mixed(np.uint64(atom.serial) << np.uint64(32), places)
                    found += np.where(places >= 0, code, np.uint64(0))
        if found.any():
            shape = [1] * len(axes)
            shape[k] = axis.size
            result = result + found.reshape(shape)
    return result if result.size <= LARGEST else np.zeros((1,) * len(axes), np.uint64)


def _tells_channels(atom: Atom) -> bool:
    """Whether positions along an atom are channels: it may shrink, or could if it did not reach an output in the end."""
    return atom.size > 1 and (atom.pinned is None or atom.pinned.why == OUTPUT)


def _mixed(seed: np.uint64, numbers: Array) -> Array:
    """Pseudorandom numbers by SplitMix64 (Steele, Lea and Flood, 2014), one for each of ``numbers``."""
    mixed = (numbers + 1).astype(np.uint64) + seed
    mixed = mixed * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


__all__ = ["Demand", "Fields", "Scaling", "shape_of", "values_of"]
