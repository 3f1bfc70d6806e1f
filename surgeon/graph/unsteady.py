"""What seems to be the same at all sizes is tried at many before it is believed: two may agree on it by chance."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.graph.decisions import SIZES, reached
from surgeon.graph.order import every_node
from surgeon.graph.windows import WINDOWED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from surgeon.graph.shapes import Shapes

    Values = Mapping[str, NDArray[Any]]

# Odd and even ones, powers of two and their neighbours: a remainder, a minimum or a slice shows at some of them.
_SIZES = (1, 2, 3, 4, 5, 7, 8, 12, 16, 31, 64, 100, 129, 224, 300, 512, 1000, 4096, 20_000, 1_000_000)
_CUTTING = frozenset({"Slice"}) | WINDOWED
_MANY = 4  # open dimensions; of more than these each is tried alone at a third of the sizes


def mark_unsteady(
    graph: gs.Graph, shapes: Shapes, dimensions: Sequence[str], values_at: Callable[[dict[str, int]], Values]
) -> None:
    """Marks as dynamic, element by element, what changes at other sizes, where anything seems to be lost of a size.

    Args:
        graph: The graph.
        shapes: What was found for it at two assignments of sizes; values are marked in place.
        dimensions: The open dimensions.
        values_at: The known values of tensors at sizes of these. What cannot be computed there says nothing.
    """
    probe = {key: shapes.probe[key] for key in dimensions}
    for sizes in _assignments(probe) if _doubtful(graph, shapes) else ():
        for name, found in values_at(sizes).items():
            value = shapes.values.get(name)
            if value is None or found is value.data:
                continue
            shapes.values[name] = replace(value, dynamic=value.dynamic | changed(value.data, found))


def _doubtful(graph: gs.Graph, shapes: Shapes) -> bool:
    """Whether anything is made from a size and yet came out the same: a remainder, a minimum, the length of a slice."""
    nodes = list(every_node(graph))
    reads_sizes = any(node.op in SIZES for node in nodes)
    for node in nodes:
        if node.op in SIZES:
            continue
        if reads_sizes and node.op in _CUTTING and _cuts(node, shapes):
            return True
        known = [shapes.values.get(tensor.name) for tensor in node.inputs]
        for position, tensor in enumerate(node.outputs):
            value = shapes.values.get(tensor.name)
            if value is None or value.dynamic.all():
                continue
            if (reached(node, known, value.data.shape, position) & ~value.dynamic).any():
                return True
    return False


def _cuts(node: gs.Node, shapes: Shapes) -> bool:
    """Whether an axis of any length came out with always the same, as what is shorter than a slice would not."""
    before, after = (shapes.dynamic.get(tensor.name, ()) for tensor in (node.inputs[0], node.outputs[0]))
    return any(was and not is_ for was, is_ in zip(before, after, strict=False))


def _assignments(probe: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Other sizes for each dimension alone, the same for all of them, and a different one for each."""
    for key in probe:
        for size in _SIZES if len(probe) <= _MANY else _SIZES[::3]:
            yield {**probe, key: size}
    for shift in range(2) if len(probe) > 1 else ():
        for first in range(len(_SIZES)):
            yield {key: _SIZES[(first + shift * index) % len(_SIZES)] for index, key in enumerate(probe)}


def changed(data: NDArray[Any], other: NDArray[Any] | None) -> NDArray[np.bool_]:
    """Which elements of a value are not the same in another run; all where it is not known there."""
    if data is other:
        return np.zeros(data.shape, bool)
    if other is None or other.shape != data.shape:
        return np.ones(data.shape, bool)
    return np.asarray((data != other) & ((data == data) | (other == other)))  # noqa: PLR0124  # NaN equals NaN here
