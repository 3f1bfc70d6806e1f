"""Conditions of Ifs are tried at many sizes before they are believed: two sizes may agree on one by chance."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.graph.order import every_node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from surgeon.graph.shapes import Shapes

    Values = Mapping[str, NDArray[Any]]

# Odd and even ones, powers of two and their neighbours: a remainder, a minimum or a slice shows at some of them.
_SIZES = (1, 2, 3, 4, 5, 7, 8, 12, 16, 31, 64, 100, 129, 224, 300, 512, 1000, 4096)


def mark_unsteady(
    graph: gs.Graph, shapes: Shapes, dimensions: Sequence[str], values_at: Callable[[dict[str, int]], Values]
) -> None:
    """Marks as dynamic, element by element, what changes at other sizes, where an If seems to be decided.

    Args:
        graph: The graph.
        shapes: What was found for it at two assignments of sizes; values are marked in place.
        dimensions: The open dimensions.
        values_at: The known values of tensors at sizes of these. What cannot be computed there says nothing.
    """
    for sizes in _assignments(dimensions) if _conditions(graph, shapes) else ():
        for name, found in values_at(sizes).items():
            value = shapes.values.get(name)
            if value is None or found is value.data:
                continue
            changed = found != value.data if found.shape == value.data.shape else np.True_
            shapes.values[name] = replace(value, dynamic=value.dynamic | changed)


def _conditions(graph: gs.Graph, shapes: Shapes) -> bool:
    """Whether any If is decided by what is computed."""
    names = [node.inputs[0].name for node in every_node(graph) if node.op == "If" and not node.domain]
    return any(name in shapes.values and shapes.values[name].static for name in names)


def _assignments(dimensions: Sequence[str]) -> Iterator[dict[str, int]]:
    """The same size for all dimensions, and different ones."""
    for shift in range(min(len(dimensions), 2)):
        for first in range(len(_SIZES)):
            yield {key: _SIZES[(first + shift * index) % len(_SIZES)] for index, key in enumerate(dimensions)}
