"""From a graph to solved axes: every operator's rule is asked once, in topological order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from surgeon.axes import ONE, Atom, Axis, Pin, pin
from surgeon.graph.order import captured
from surgeon.graph.shapes import Shapes, infer
from surgeon.ops import RULES, Barrier, Op

if TYPE_CHECKING:
    from collections.abc import Iterable

    from surgeon.ops.op import Axes


@dataclass
class Analysis:
    """A graph with its axes solved.

    Attributes:
        graph: The analysed graph, in canonical form.
        shapes: Concrete shapes at the probe sizes.
        axes: The axes of each tensor by name; None where not even the rank is known.
        ops: One per node, in the order of ``graph.nodes``.
    """

    graph: gs.Graph
    shapes: Shapes
    axes: dict[str, Axes | None]
    ops: list[Op]


def solve(graph: gs.Graph, shapes: Shapes | None = None) -> Analysis:
    """Solve the axes of ``graph`` (canonical, topologically sorted).

    Args:
        graph: The graph; it is not changed.
        shapes: Its concrete shapes, inferred when not given.
    """
    shapes = shapes or infer(graph)
    axes: dict[str, Axes | None] = {}
    for tensor in graph.inputs:
        dims = shapes.dims.get(tensor.name)
        axes[tensor.name] = None if dims is None else [_fixed(size, tensor.name, "graph input") for size in dims]
    opsets = {imported.domain: imported.version for imported in graph.import_domains or ()}
    opsets[""] = graph.opset
    ops = []
    for node in graph.nodes:
        op = Op(node, opsets.get(node.domain or "", 1), shapes, axes)
        ops.append(op)
        _apply(op)
    for tensor in graph.outputs:
        for axis in axes.get(tensor.name) or ():
            pin(axis, Pin(tensor.name, "graph output"))
    return Analysis(graph, shapes, axes, ops)


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
        if missing:
            raise Barrier(f"the shape of {missing[0]} is not known")
        stated = found.function(op, *inputs)
        _check(op, stated)
        outputs: list[Axes | None] = [*stated]
    except Barrier as reason:
        op.facts = type(op.facts)(barrier=str(reason))
        outputs = _barrier(op, str(reason), inputs)
    for tensor, axes in zip(op.node.outputs, outputs, strict=True):
        if tensor.name:
            op.axes[tensor.name] = axes
            _pin_numbers(op, tensor.name)


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


def _check(op: Op, outputs: list[Axes]) -> None:
    """A rule that disagrees with shape inference is not trusted."""
    while len(outputs) < len(op.node.outputs):
        outputs.append(op.fixed_output("an output the rule does not describe", len(outputs)))
    for tensor, axes in zip(op.node.outputs, outputs, strict=True):
        dims = op.shapes.dims.get(tensor.name)
        if tensor.name and dims is not None and tuple(axis.size for axis in axes) != tuple(dims):
            raise Barrier(f"its rule gives {[axis.size for axis in axes]}, shape inference {list(dims)}")


def _barrier(op: Op, why: str, inputs: Iterable[Axes | None]) -> list[Axes | None]:
    reason = Pin(op.name, why)
    for tensor in captured(op.node):
        for axis in _axes_of(tensor, op) or ():
            pin(axis, reason)
    for axes in inputs:
        for axis in axes or ():
            pin(axis, reason)
    result: list[Axes | None] = []
    for tensor in op.node.outputs:
        dims = op.shapes.dims.get(tensor.name)
        result.append(None if dims is None else [_fixed(size, op.name, why) for size in dims])
    return result
