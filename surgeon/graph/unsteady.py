"""What seems to be the same at all sizes is tried at many before it is believed: two may agree on it by chance."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from surgeon.graph.decisions import SIZES, reached
from surgeon.graph.inference import VARIANTS
from surgeon.graph.order import every_node
from surgeon.graph.windows import WINDOWED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx_graphsurgeon as gs

    from surgeon.graph.shapes import Shapes

# Odd and even ones, powers of two and their neighbours: a remainder, a minimum or a slice shows at some of them. The
# first are the most different.
_SIZES = (4, 1, 1000, 7, 64, 2, 300, 3, 20_000, 5, 16, 129, 1_000_000, 8, 12, 31, 100, 224, 512, 4096)
_FACTORS = (2, 3, 5)  # of the probe sizes, for models that only take multiples of some
LARGEST_TRIES = 50_000  # nodes to infer in all, a second or so
LEAST = 12  # assignments that are tried however large the graph is
# Behind these an axis that is short comes out shorter, and a long one as long as ever.
_SHORTENING = frozenset({"Slice"}) | WINDOWED
_COUNTING = frozenset({"NonZero", "Compress", "Unique", "Range"})  # as long as the values of their inputs say


def is_doubtful(graph: gs.Graph, shapes: Shapes) -> bool:
    """Whether anything is made from a size and yet came out the same: a remainder, a minimum, the length of a slice."""
    return any(_is_doubtful(node, shapes) for node in every_node(graph) if node.op not in SIZES)


def _is_doubtful(node: gs.Node, shapes: Shapes) -> bool:
    if node.op in _SHORTENING and _shortens(node, shapes):
        return True
    known = [shapes.values.get(tensor.name) for tensor in node.inputs]
    if node.op in _COUNTING and any(value is not None and not value.static for value in known):
        return not all(shapes.dynamic.get(node.outputs[0].name, ()))
    for position, tensor in enumerate(node.outputs):
        value = shapes.values.get(tensor.name)
        if value is not None and (reached(node, known, value.data.shape, position) & ~value.dynamic).any():
            return True
    return False


def _shortens(node: gs.Node, shapes: Shapes) -> bool:
    """Whether an axis that has any length comes out with always the same; one element from the start is no shorter."""
    names = node.inputs[0].name, node.outputs[0].name
    lost = [
        axis
        for axis, (was, is_) in enumerate(
            zip(*(shapes.dynamic.get(name, ()) for name in names), strict=False)
        )
        if was and not is_
    ]
    dims = shapes.dims[names[1]]
    starts = shapes.values.get(node.inputs[1].name) if node.op == "Slice" and len(node.inputs) > 1 else None
    first = starts is not None and starts.static and not starts.data.any()
    return any(dims is None or dims[axis] != 1 or not first for axis in lost)


def assignments(probe: Mapping[str, int], nodes: int) -> Iterator[tuple[dict[str, int], int]]:
    """Sizes to try, and which sizes axes have that depend on data (see :class:`surgeon.graph.inference.Run`).

    Args:
        probe: The sizes that were tried, by open dimension.
        nodes: How many nodes each of them takes to infer, in bodies too. Of large graphs only the first are tried: the same
            size for all.
    """
    return islice(_all(probe), max(LEAST, LARGEST_TRIES // (nodes + 1)))


def _all(probe: Mapping[str, int]) -> Iterator[tuple[dict[str, int], int]]:
    """Multiples, the same size for all, other data, another size for each alone, and a different one for each."""
    for factor in _FACTORS if probe else ():
        yield {key: factor * size for key, size in probe.items()}, 1
    for size in _SIZES if probe else ():
        yield dict.fromkeys(probe, size), 1
    for variant in range(2, VARIANTS):
        yield dict(probe), variant
    if len(probe) < 2:
        return
    for size in _SIZES:
        for key in probe:
            yield {**probe, key: size}, 1
    for first in range(len(_SIZES)):
        yield {key: _SIZES[(first + index) % len(_SIZES)] for index, key in enumerate(probe)}, 1
