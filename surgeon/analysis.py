"""From a graph to solved axes: every operator's rule is asked once, in topological order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from surgeon.axes import ONE, Atom, Axis, Pin, pin, unify
from surgeon.graph.order import bodies, captured, every_node, graphs
from surgeon.graph.shapes import Shapes, infer
from surgeon.ops import RULES, Barrier, Op

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from surgeon.ops import Rule
    from surgeon.ops.op import Axes


@dataclass(frozen=True)
class Tie:
    """One axis of a graph input and of a graph output that have to stay the same."""

    input: str
    output: str
    axis: int


OUTPUT = "graph output"
UNENTERED = "inside an operator that is not understood"
# what a rule trips over in broken models: other ranks, missing inputs or attributes, a number of groups that is zero
_MISFITS = (IndexError, KeyError, TypeError, ValueError, ZeroDivisionError)


@dataclass
class Analysis:
    """A graph with its axes solved.

    Attributes:
        graph: The analysed graph, in canonical form.
        shapes: Concrete shapes at the probe sizes.
        axes: The axes of each tensor by name; None where not even the rank is known.
        ops: One per node, those in bodies included, in the order of :func:`surgeon.graph.order.every_node`.
    """

    graph: gs.Graph
    shapes: Shapes
    axes: dict[str, Axes | None]
    ops: list[Op]


def solve(graph: gs.Graph, shapes: Shapes | None = None, tied: Sequence[Tie] = ()) -> Analysis:
    """Solve the axes of ``graph`` (canonical, topologically sorted).

    Args:
        graph: The graph; it is not changed.
        shapes: Its concrete shapes, inferred when not given.
        tied: Axes of graph inputs that may shrink if the same axis of a graph output shrinks with them; all others of
            the interface are pinned.
    """
    shapes = shapes or infer(graph)
    solver = _Solver(graph, shapes)
    free = {(name, each.axis) for each in tied for name in (each.input, each.output)}
    for tensor in graph.inputs:
        axes = solver.fixed(tensor.name, tensor.name, "graph input")
        solver.axes[tensor.name] = axes and [
            Atom(axis.size) if (tensor.name, k) in free else axis for k, axis in enumerate(axes)
        ]
    solver.nodes(graph, None)
    for tensor in graph.outputs:
        for k, axis in enumerate(solver.axes.get(tensor.name) or ()):
            if (tensor.name, k) not in free:
                pin(axis, Pin(tensor.name, OUTPUT))
    for each in tied:
        first, second = solver.axes[each.input], solver.axes[each.output]
        if first is not None and second is not None:
            unify(first[each.axis], second[each.axis], each.output)
    return Analysis(graph, shapes, solver.axes, solver.ops())


class _Solver:
    """One walk through a graph and the bodies inside it, which rules of control flow ask for."""

    def __init__(self, graph: gs.Graph, shapes: Shapes) -> None:
        self.graph, self.shapes = graph, shapes
        self.axes: dict[str, Axes | None] = {}
        self.opsets = {imported.domain: imported.version for imported in graph.import_domains or ()}
        self.opsets[""] = graph.opset
        self._found: dict[int, Op] = {}
        self._owners: dict[str, int] = {}

    def fixed(self, name: str, by: str, why: str) -> Axes | None:
        """Axes for a tensor of which nothing but the shape is known."""
        dims = self.shapes.dims.get(name)
        return None if dims is None else [_fixed(size, by, why) for size in dims]

    def nodes(self, graph: gs.Graph, within: tuple[Op, str] | None) -> None:
        """Ask the rules of all nodes of a graph or body."""
        taken = self._claim_names(graph)
        if taken is not None and within is not None:
            raise Barrier(f"two tensors have the name {taken}")
        for node in graph.nodes:
            op = self._op(node)
            op.within = within
            _apply(op)

    def ops(self) -> list[Op]:
        """One per node, bodies included; those in bodies that no rule entered are barriers."""
        for node in every_node(self.graph):
            if id(node) not in self._found:
                self._op(node).facts.barrier = UNENTERED
        return [self._found[id(node)] for node in every_node(self.graph)]

    def _op(self, node: gs.Node) -> Op:
        op = Op(node, self.opsets.get(node.domain or "", 1), self.shapes, self.axes)
        op.solve_body = self._body
        self._found[id(node)] = op
        return op

    def _body(self, op: Op, name: str, inputs: Sequence[Axes | None]) -> list[Axes | None]:
        body = op.node.attrs[name]
        if len(body.inputs) != len(inputs):
            raise Barrier(f"its body has {len(body.inputs)} inputs, not {len(inputs)}")
        for tensor, given in zip(body.inputs, inputs, strict=True):
            self.axes[tensor.name] = given or self.fixed(tensor.name, op.name, "an input of its body")
        self.nodes(body, (op, name))
        return [_axes_of(tensor, op) for tensor in body.outputs]

    def _claim_names(self, graph: gs.Graph) -> str | None:
        """Axes go by name, so a name may stand for one tensor only; returns one that stands for another already."""
        used = [tensor for node in graph.nodes for tensor in (*node.inputs, *node.outputs)]
        for tensor in (*graph.inputs, *used, *graph.outputs):
            if tensor.name and self._owners.setdefault(tensor.name, id(tensor)) != id(tensor):
                return str(tensor.name)
        return None


def _fixed(size: int, name: str, why: str) -> Axis:
    return ONE if size == 1 else Atom(size, Pin(name, why))


def _apply(op: Op) -> None:
    """Ask the rule of ``op``; without one, or where it cannot say, the operator is a barrier."""
    inputs = [_axes_of(tensor, op) for tensor in op.node.inputs]
    found = RULES.find(op.node.op, op.node.domain or "", op.opset)
    try:
        if found is None:
            raise Barrier("no rule for this operator")
        missing = [t.name for t, a in zip(op.node.inputs, inputs, strict=True) if a is None and t.name]
        if missing and found.needs_shapes:
            raise Barrier(f"the shape of {missing[0]} is not known")
        outputs = _ask(found, op, inputs)
        _check(op, outputs)
    except Barrier as reason:
        op.facts = type(op.facts)(barrier=str(reason))
        outputs = _barrier(op, str(reason), inputs)
    for tensor, axes in zip(op.node.outputs, outputs, strict=True):
        if tensor.name:
            op.axes[tensor.name] = axes
            _pin_numbers(op, tensor.name)


def _ask(found: Rule, op: Op, inputs: Sequence[Axes | None]) -> list[Axes | None]:
    try:
        return [*found.function(op, *inputs)]
    except _MISFITS as error:
        raise Barrier(f"its inputs and attributes are none its rule expects ({error})") from error


def _axes_of(tensor: gs.Tensor, op: Op) -> Axes | None:
    if not tensor.name:
        return None
    if tensor.name not in op.axes:
        if not isinstance(tensor, gs.Constant):
            return None
        op.axes[tensor.name] = [ONE if size == 1 else Atom(size) for size in tensor.shape]
    return op.axes[tensor.name]


def _pin_numbers(op: Op, name: str) -> None:
    """Vectors of known integers are shape arithmetic; their positions have a meaning."""
    known = op.shapes.values.get(name)
    if known is not None and known.data.ndim <= 1 and known.data.dtype.kind in "iu":
        for axis in op.axes[name] or ():
            pin(axis, Pin(op.name, "shape arithmetic"))


def _check(op: Op, outputs: list[Axes | None]) -> None:
    """A rule that disagrees with shape inference is not trusted."""
    while len(outputs) < len(op.node.outputs):
        outputs.append(op.fixed_output("an output the rule does not describe", len(outputs)))
    for tensor, axes in zip(op.node.outputs, outputs, strict=True):
        dims = op.shapes.dims.get(tensor.name)
        if (
            tensor.name
            and dims is not None
            and axes is not None
            and tuple(axis.size for axis in axes) != tuple(dims)
        ):
            raise Barrier(f"its rule gives {[axis.size for axis in axes]}, shape inference {list(dims)}")


def _barrier(op: Op, why: str, inputs: Iterable[Axes | None]) -> list[Axes | None]:
    reason = Pin(op.name, why)
    known = [_axes_of(tensor, op) for tensor in captured(op.node)]
    known += [op.axes.get(name) for name in _names_in_bodies(op.node)]
    for axes in (*inputs, *known):
        for axis in axes or ():
            pin(axis, reason)
    result: list[Axes | None] = []
    for tensor in op.node.outputs:
        dims = op.shapes.dims.get(tensor.name)
        result.append(None if dims is None else [_fixed(size, op.name, why) for size in dims])
    return result


def _names_in_bodies(node: gs.Node) -> set[str]:
    """The tensors that a node's bodies mention."""
    result: set[str] = set()
    for body in bodies(node):
        for each in graphs(body):
            result.update(tensor.name for tensor in (*each.inputs, *each.outputs))
            result.update(tensor.name for inner in each.nodes for tensor in (*inner.inputs, *inner.outputs))
    return result
