"""Products of two activations, as the scores of attention, and which channels of which operators their factors are.

A factor is known where it is the result of a linear operator, perhaps moved about: reshaped, transposed, split, repeated
or multiplied with one number. Every position of such a factor is one channel of that operator, which is found by moving
the numbers of the channels the way the values go. What treats channels differently (rotary embeddings, norms, scales per
channel, activations) ends the search.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.axes import atoms_of
from surgeon.graph.evaluate import Call, evaluate
from surgeon.groups import derived_from_constants
from surgeon.stats.linear import Linear, linear_views

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from surgeon.analysis import Analysis
    from surgeon.axes import Axis
    from surgeon.ops import Op

    Array = NDArray[Any]
    Integers = NDArray[np.int64]

SAME_ORDER = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
MOVING = frozenset({"Transpose", "Split", "Slice", "Gather"})
SCALING = frozenset({"Mul", "Div"})
SIZES = frozenset({"Shape", "Size"})  # read no values
LARGEST = 2**24  # elements whose channels are followed


@dataclass(frozen=True)
class Factor:
    """One factor of a product.

    Attributes:
        view: The operator that makes it.
        channels: ``[heads, dims]``, which of the operator's output channels is multiplied at each position.
    """

    view: Linear
    channels: Integers


@dataclass(frozen=True)
class Factors:
    """Both factors of a product, head by head.

    Attributes:
        left: The first operand.
        right: The second.
        pairs: ``[matrices, 2]``, which head of the left is multiplied with which of the right, for the matrices of one
            sample; those of further samples follow in the same order.
    """

    left: Factor
    right: Factor
    pairs: Integers

    @property
    def sides(self) -> tuple[Factor, Factor]:
        """Both."""
        return self.left, self.right

    @property
    def single(self) -> int | None:
        """The side on which every head belongs to one set of heads of the other; None if neither does."""
        for side in (1, 0):
            partners = {(int(pair[1 - side]), int(pair[side])) for pair in self.pairs}
            if len(partners) == len({other for other, _ in partners}):
                return side
        return None


@dataclass(frozen=True)
class Contraction:
    """A MatMul of two activations whose summed axis can shrink.

    Attributes:
        op: The operator.
        axis: What is summed over.
        softmax: Whether only a softmax along the rows sees the result: what is added to a whole row is lost on it.
        factors: Who makes the operands, where that is known.
    """

    op: Op
    axis: Axis
    softmax: bool
    factors: Factors | None

    @property
    def operands(self) -> tuple[str, str]:
        """The names of the two tensors."""
        left, right = self.op.node.inputs
        return str(left.name), str(right.name)

    @property
    def scores(self) -> str:
        """The name of the result."""
        return str(self.op.node.outputs[0].name)


def contractions(analysis: Analysis) -> list[Contraction]:
    """All products of two activations over an axis that can shrink, in the order of the graph."""
    found = []
    tracer: _Tracer | None = None
    for op in analysis.ops:
        if op.node.op != "MatMul" or op.within is not None or op.facts.barrier or op.node.domain:
            continue
        axes = op.facts.contracted.get(0, [])
        if not axes or all(atom.pinned is not None for atom in atoms_of(axes[0])):
            continue
        known = [analysis.shapes.dims.get(tensor.name) for tensor in op.node.inputs]
        if any(derived_from_constants(tensor) for tensor in op.node.inputs) or any(
            dims is None or len(dims) < 2 for dims in known
        ):
            continue
        tracer = tracer or _Tracer(analysis)
        softmax = _only_softmax(op.node.outputs[0], analysis)
        found.append(Contraction(op, axes[0], softmax, tracer.factors(op)))
    return found


class _Tracer:
    """Follows channels of linear operators."""

    def __init__(self, analysis: Analysis) -> None:
        self.dims = analysis.shapes.dims
        self.ops = {id(op.node): op for op in analysis.ops}
        self.outputs = {tensor.name for tensor in analysis.graph.outputs}
        self.views = {
            view.output: view
            for op in analysis.ops
            for view in linear_views(op)
            if view.output and view.channel_axis is not None and view.groups(op.node) == 1
        }
        self._read: dict[str, dict[tuple[int, int], Integers]] = {}

    def factors(self, op: Op) -> Factors | None:
        """Both factors of a product, if they are known and nothing else reads them."""
        views = [self._source(tensor) for tensor in op.node.inputs]
        if views[0] is None or views[1] is None:
            return None
        seen = [self._reads(view).get((id(op.node), k)) for k, view in enumerate(views) if view]
        if seen[0] is None or seen[1] is None:
            return None
        left, right = seen[0], np.swapaxes(seen[1], -1, -2)
        leads = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        heads = [_heads(np.broadcast_to(each, (*leads, *each.shape[-2:]))) for each in (left, right)]
        if heads[0] is None or heads[1] is None:
            return None
        pairs = _one_sample(np.stack([heads[0][1], heads[1][1]], axis=1))
        if pairs is None:
            return None
        result = Factors(Factor(views[0], heads[0][0]), Factor(views[1], heads[1][0]), pairs)
        alone = all(self._alone(factor, id(op.node), k) for k, factor in enumerate(result.sides))
        return result if alone and result.single is not None and _disjoint(result) else None

    def _source(self, tensor: gs.Tensor) -> Linear | None:
        """The operator whose result arrives here, moved about."""
        while tensor.name not in self.views:
            if not tensor.inputs:
                return None
            data = self._data(tensor.inputs[0])
            if data is None:
                return None
            tensor = tensor.inputs[0].inputs[data]
        return self.views[tensor.name]

    def _data(self, node: gs.Node) -> int | None:
        """Which input an operator that treats all channels alike moves or scales."""
        if node.domain not in (None, "", "ai.onnx"):
            return None
        if node.op in SAME_ORDER or node.op in MOVING or node.op == "Expand":
            return 0
        if node.op in SCALING:
            single = [_is_number(t, self.dims) for t in node.inputs]
            if single[1] and not single[0]:
                return 0
            if node.op == "Mul" and single[0] and not single[1]:
                return 1
        return None

    def _reads(self, view: Linear) -> dict[tuple[int, int], Integers]:
        """Per operator (by the id of its node) and input that a view's channels reach: the channel of each element.

        Outputs of the graph count as operator 0.
        """
        if view.output not in self._read:
            found: dict[tuple[int, int], Integers] = {}
            dims = self.dims.get(view.output)
            maker = self.views[view.output].op.node
            result = next(
                t
                for node in (maker, *maker.outputs[0].outputs)
                for t in node.outputs
                if t.name == view.output
            )
            if dims is not None and prod(dims) <= LARGEST:
                axis = (view.channel_axis or 0) % len(dims)
                numbers = np.arange(dims[axis]).reshape([-1] + [1] * (len(dims) - axis - 1))
                self._follow(result, np.broadcast_to(numbers, dims), found)
            self._read[view.output] = found
        return self._read[view.output]

    def _follow(self, tensor: gs.Tensor, numbers: Integers, found: dict[tuple[int, int], Integers]) -> None:
        if tensor.name in self.outputs:
            found[0, len(found)] = numbers
        for node in {id(user): user for user in tensor.outputs}.values():
            if node.op in SIZES:
                continue
            moved = self._moved(node, tensor, numbers)
            if moved is None:
                for k, given in enumerate(node.inputs):
                    if given is tensor:
                        found[id(node), k] = numbers
                if not any(given is tensor for given in node.inputs):
                    found[id(node), -1] = numbers  # captured by a body
                continue
            for output, part in zip(node.outputs, moved, strict=False):
                if output.name:
                    self._follow(output, part, found)

    def _moved(self, node: gs.Node, tensor: gs.Tensor, numbers: Integers) -> list[Integers] | None:
        """Where an operator puts its elements; None where it does anything else."""
        data, op = self._data(node), self.ops.get(id(node))
        if data is None or op is None or node.inputs[data] is not tensor:
            return None
        shapes = [self.dims.get(output.name) for output in node.outputs]
        if any(shape is None for shape in shapes):
            return None
        try:
            if node.op in SAME_ORDER or node.op in SCALING:
                return [numbers.reshape(shapes[0] or ())]
            if node.op == "Expand":
                return [np.broadcast_to(numbers, shapes[0] or ())]
            others = [op.value(k) if op.has(k) else None for k in range(1, len(node.inputs))]
            moved = evaluate(Call(node.op, node.attrs, [numbers, *others], len(node.outputs)))
        except (ValueError, IndexError):
            return None
        if moved is None or [tuple(each.shape) for each in moved] != [tuple(s or ()) for s in shapes]:
            return None
        return moved

    def _alone(self, factor: Factor, reader: int, operand: int) -> bool:
        """Whether nothing but the product reads the channels of a factor."""
        mine = np.unique(factor.channels)
        return all(
            not np.isin(numbers, mine).any()
            for place, numbers in self._reads(factor.view).items()
            if place != (reader, operand)
        )


def _heads(numbers: Integers) -> tuple[Integers, Integers] | None:
    """From the channel of each element ``[..., rows, dims]``: ``[heads, dims]``, and the head of each matrix.

    None where rows differ, or heads share channels.
    """
    if not (numbers == numbers[..., :1, :]).all():
        return None
    matrices = numbers[..., 0, :].reshape(-1, numbers.shape[-1])
    heads, which = np.unique(matrices, axis=0, return_inverse=True)
    if len(np.unique(heads)) != heads.size:
        return None
    return heads, which.reshape(-1)


def _one_sample(pairs: Integers) -> Integers | None:
    """The shortest sequence that ``pairs`` repeat; None where something repeats within it."""
    for length in range(1, len(pairs) + 1):
        if len(pairs) % length == 0 and (pairs == np.resize(pairs[:length], pairs.shape)).all():
            first = pairs[:length]
            return first if len(np.unique(first, axis=0)) == length else None
    return None


def _disjoint(factors: Factors) -> bool:
    """Whether the two factors have no channel in common."""
    left, right = factors.sides
    return left.view is not right.view or not np.isin(left.channels, right.channels).any()


def _is_number(tensor: gs.Tensor, dims: Mapping[str, tuple[int, ...] | None]) -> bool:
    """Whether a tensor has one element."""
    shape = tensor.shape if isinstance(tensor, gs.Constant) else dims.get(tensor.name)
    return shape is not None and prod(shape) == 1


def _only_softmax(scores: gs.Tensor, analysis: Analysis) -> bool:
    """Whether scores only go, scaled and masked, into a softmax over their last axis."""
    outputs = {tensor.name for tensor in analysis.graph.outputs}
    dims = analysis.shapes.dims
    while len(scores.outputs) == 1 and scores.name not in outputs:
        node, shape = scores.outputs[0], dims.get(scores.name)
        if node.op == "Softmax" and not node.domain and shape is not None:
            axis = next(op for op in analysis.ops if op.node is node).attribute("axis", -1)
            return axis in (-1, len(shape) - 1)
        others = [tensor for tensor in node.inputs if tensor is not scores]
        scaled = node.op in SCALING and node.inputs[0] is scores and _is_number(others[0], dims)
        if len(others) != 1 or not (scaled or node.op == "Add") or dims.get(node.outputs[0].name) != shape:
            return False
        scores = node.outputs[0]
    return False
