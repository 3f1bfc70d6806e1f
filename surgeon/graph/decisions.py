"""What hangs on a comparison of sizes is dynamic, even where the two assignments that were tried decide it alike.

``Equal(batch, 1)`` is false for a batch of 3 and of 7; it does not follow that it always is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from surgeon.graph.evaluate import Call, evaluate
from surgeon.graph.order import every_node

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from surgeon.graph.shapes import Shapes, Value

COMPARISONS = frozenset({"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"})
SIZES = frozenset({"Shape", "Size"})  # operators that read no elements
# Operators that put the elements of their first input (of all inputs for Concat) elsewhere.
_REARRANGING = frozenset(
    {"Identity", "Gather", "Slice", "Concat", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose", "Expand",
     "Tile", "Split"}
)  # fmt: skip


def mark_decisions(graph: gs.Graph, shapes: Shapes) -> None:
    """Marks as dynamic, element by element, what is computed from a comparison with something dynamic."""
    marked: set[str] = set()
    for node in every_node(graph):
        names = [tensor.name for tensor in node.inputs]
        reads = node.op not in SIZES and not marked.isdisjoint(names)
        if not _compares(node, shapes) and not reads:
            continue
        known = [shapes.values.get(name) for name in names]
        for position, tensor in enumerate(node.outputs):
            value = shapes.values.get(tensor.name)
            if value is None:
                continue
            new = reached(node, known, value.data.shape, position) & ~value.dynamic
            if new.any():
                shapes.values[tensor.name] = replace(value, dynamic=value.dynamic | new)
                marked.add(tensor.name)


def _compares(node: gs.Node, shapes: Shapes) -> bool:
    """Whether a truth is made of numbers; a Cast compares them with zero."""
    made = shapes.values.get(node.outputs[0].name) if node.op == "Cast" else None
    return node.op in COMPARISONS or (made is not None and made.data.dtype == np.bool_)


def reached(
    node: gs.Node, known: list[Value | None], shape: tuple[int, ...], position: int
) -> NDArray[np.bool_]:
    """Which elements of an output come from dynamic elements of the inputs; all where that is not obvious."""
    flags = [value.dynamic for value in known if value is not None]
    if not any(each.any() for each in flags):
        return np.zeros(shape, bool)
    if node.op in _REARRANGING:
        data: list[NDArray[np.bool_] | NDArray[np.int64] | None] = []
        for index, value in enumerate(known):
            moved = index == 0 or node.op == "Concat"
            if value is not None and not moved and value.dynamic.any():
                return np.ones(shape, bool)
            data.append(None if value is None else value.dynamic if moved else value.data)
        found = evaluate(Call(node.op, node.attrs, data, len(node.outputs)))
        return np.ones(shape, bool) if found is None else np.asarray(found[position], dtype=bool)
    if node.op == "Where" and None not in known:
        condition, first, second = (value for value in known if value is not None)
        return np.asarray(condition.dynamic | np.where(condition.data, first.dynamic, second.dynamic))
    try:
        return np.asarray(np.logical_or.reduce([np.broadcast_to(each, shape) for each in flags]))
    except ValueError:
        return np.ones(shape, bool)
