"""Operators of a changed graph and those of the original they came from, matched by name.

What was changed may be the values of weights, or how numbers are stored: a quantized graph has QuantizeLinear and
DequantizeLinear in between, and may have lost activations that these stand for. A normalization, or what else scales and
shifts channels, may have become part of the weights before it: then an operator makes what came out behind that.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from surgeon.graph.schemas import opsets, standard
from surgeon.graph.shapes import Shapes, infer
from surgeon.ops import Op
from surgeon.refit.target import Target, sums_into, target_of
from surgeon.stats.linear import Linear, linear_views
from surgeon.stats.matrices import WEIGHTED
from surgeon.stats.product import Product
from surgeon.stats.sequences import name_of
from surgeon.stats.weight import weight_chain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from surgeon.reference import Reference

ROUNDING = frozenset({"QuantizeLinear", "DequantizeLinear"})
FOLDED = frozenset({"BatchNormalization", "Add", "Sub", "Mul", "Div"})  # with constants


@dataclass(frozen=True)
class Twin:
    """A product in a changed graph and the same one in the original.

    Attributes:
        view: Of the changed graph.
        original: Of the original.
        made: The tensor of the original that it makes: behind what has been folded into its weights; '' for states.
    """

    view: Linear
    original: Linear
    made: str

    @property
    def is_folded(self) -> bool:
        """Whether its weights are not those of the original, but have taken in what was behind."""
        return self.made != self.original.output

    @property
    def node(self) -> gs.Node:
        """The node of the changed graph."""
        return self.view.op.node

    @property
    def label(self) -> str:
        """What reports call it; recurrent operators have two."""
        name = name_of(self.node)
        return name if self.view.output else f"{name}[{self.view.weight}]"


@dataclass
class Twins:
    """All products that two graphs have in common.

    Attributes:
        graph: The changed graph.
        original: What it came from.
        shapes: Of the changed graph.
        original_shapes: Of the original.
        found: In topological order.
        left: Weighted operators of the changed graph that have no twin, and why.
    """

    graph: gs.Graph
    original: gs.Graph
    shapes: Shapes
    original_shapes: Shapes
    found: list[Twin] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(graph: gs.Graph, reference: Reference) -> Twins:
        """Match the operators of two graphs.

        Args:
            graph: The changed graph.
            reference: What it came from.
        """
        result = Twins(graph, reference.graph, infer(graph), infer(reference.graph))
        views, names = _views(reference.graph, result.original_shapes)
        makers = {tensor.name: node for node in reference.graph.nodes for tensor in node.outputs}
        for op in operators(graph, result.shapes):
            label = name_of(op.node)
            mine, reason = _of(op)
            if reason and any(weight_chain(tensor) is not None for tensor in op.node.inputs[:2]):
                result.left[label] = reason
            if not mine:
                continue
            theirs = views.get(_key(op.node)) or names.get(op.node.outputs[0].name)
            if theirs is None:  # without a name, and called as what has been folded into it
                behind = [names[name] for name in _before(mine[0].output, makers) if name in names]
                theirs = behind[0] if behind else []
            if len(theirs) != len(mine):
                result.left[label] = "the original has no such operator"
                continue
            for view, other in zip(mine, theirs, strict=True):
                both = _alike(view, other)
                folded = both[1].output in _before(both[0].output, makers)
                result.found.append(Twin(*both, both[folded ^ 1].output))
        return result

    def target(self, twin: Twin, ready: Callable[[str], bool]) -> Target:
        """What a product should compute; see `surgeon.refit.target.target_of`.

        Args:
            twin: The product.
            ready: Whether a tensor of the changed graph can be computed without operators that are still to change.

        Returns:
            ``tensor`` is one of the original, ``other`` one of the changed graph.
        """
        result = self.original.tensors()[twin.made]
        other = self._added(twin, result)
        outputs = {tensor.name for tensor in self.original.outputs}
        target = target_of(
            result, self.original_shapes.dims, lambda _: other is not None and ready(other), outputs
        )
        return replace(target, other=other or "") if target.other else target

    def may_read(self, twin: Twin) -> set[str]:
        """Tensors of the original that may become targets, or that those are made of."""
        if not twin.made:
            return set(twin.original.target_reads)
        return {twin.made, *sums_into(self.original.tensors()[twin.made])}

    def _added(self, twin: Twin, result: gs.Tensor) -> str | None:
        """What is added, in the changed graph, to the result of a product that only goes into a sum."""
        users = list(result.outputs)
        if len(users) != 1 or users[0].op != "Add":
            return None
        total = users[0]
        found = [n for n in self.graph.nodes if _key(n) == _key(total)] if total.name else []
        if len(found) != 1 or len(found[0].inputs) != 2:
            return None
        mine = [k for k, tensor in enumerate(total.inputs) if tensor is result]
        if len(mine) != 1 or unrounded(found[0].inputs[mine[0]]).name != twin.view.output:
            return None
        other = found[0].inputs[1 - mine[0]]
        return None if isinstance(other, gs.Constant) else str(other.name)


def operators(graph: gs.Graph, shapes: Shapes) -> list[Op]:
    """The nodes of a graph as operators whose axes nobody solved."""
    versions = opsets(graph)
    return [Op(node, versions.get(standard(node.domain), 1), shapes, {}) for node in graph.nodes]


def unrounded(tensor: gs.Tensor) -> gs.Tensor:
    """What a tensor was before it was rounded."""
    while not isinstance(tensor, gs.Constant) and tensor.inputs and tensor.inputs[0].op in ROUNDING:
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def _of(op: Op) -> tuple[Sequence[Linear], str]:
    """The products of an operator, or why a weighted one has none."""
    if op.node.op not in WEIGHTED or op.node.domain:
        return [], ""
    tensors = [*op.node.inputs, *op.node.outputs[:1]]
    unknown = [t.name for t in tensors if t.name and op.shapes.dims.get(t.name) is None]
    if unknown:
        return [], f"the shape of {unknown[0]} is not known"
    views = linear_views(op, rounded=True)
    return views, "" if views else "its bias is computed, or it is no product with one weight"


def _views(
    graph: gs.Graph, shapes: Shapes
) -> tuple[dict[tuple[str, str], list[Linear]], dict[str, list[Linear]]]:
    """The products of a graph by node, and by first output."""
    found = [(op.node, list(_of(op)[0])) for op in operators(graph, shapes)]
    known = [(node, views) for node, views in found if views]
    return (
        {_key(node): views for node, views in known if node.name},
        {node.outputs[0].name: views for node, views in known},
    )


def _before(name: str, makers: Mapping[str, gs.Node]) -> list[str]:
    """What a tensor is made of by scaling and shifting with constants alone, the nearest first."""
    found: list[str] = []
    while (node := makers.get(name)) is not None and node.op in FOLDED and not node.domain:
        computed = [tensor.name for tensor in node.inputs if not isinstance(tensor, gs.Constant)]
        if len(computed) != 1:
            break
        (name,) = computed
        found.append(name)
    return found


def _key(node: gs.Node) -> tuple[str, str]:
    return node.op, str(node.name)


def _alike(view: Linear, other: Linear) -> tuple[Linear, Linear]:
    """Both with the bias of an Add behind them, or neither."""
    behind = [each.output != each.op.node.outputs[0].name for each in (view, other)]
    if behind[0] == behind[1]:
        return view, other
    return _bare(view), _bare(other)


def _bare(view: Linear) -> Linear:
    if isinstance(view, Product):
        return replace(view, output=str(view.op.node.outputs[0].name), bias=None)
    return view
