"""Made-up inputs a model accepts: several sizes of its open dimensions, and integers that are valid indices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_graphsurgeon as gs

from surgeon.graph.probe import complete, dimension_key, open_dimensions
from surgeon.stats.data import graph_inputs
from surgeon.stats.synthetic import synthetic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from surgeon.analysis import Analysis

SIZES = ((1, 8), (3, 16))
ITERATIONS = (2, 5)
# which input of an operator holds the lengths of sequences, and which attribute says on what axis they lie
_LENGTHS = {**dict.fromkeys(("LSTM", "GRU", "RNN"), (4, "layout")), "ReverseSequence": (1, "time_axis")}


def probe_feeds(analysis: Analysis, seed: int = 0) -> Iterator[dict[str, NDArray[Any]]]:
    """Inputs at the probe sizes, then with batch 1 and batch 3 at two other sizes; one if nothing is open.

    Where more than the batch is open, the last are the probe sizes again with batch 1.
    """
    inputs = [
        entry._replace(
            shape=tuple(
                s if isinstance(s, int) else dimension_key(entry.name, k, s)
                for k, s in enumerate(entry.shape)
            )
        )
        for entry in graph_inputs(analysis.graph)
    ]
    bounds = index_bounds(analysis)
    dimensions = open_dimensions(analysis.graph)
    choices = [dict(analysis.shapes.probe)]
    if dimensions:
        choices += [
            complete({key: batch if d.kind == "batch" else other for key, d in dimensions.items()}, {})
            for batch, other in SIZES
        ]
        if any(d.kind != "batch" for d in dimensions.values()):  # models that accept few sizes refuse those
            one = {key: 1 for key, d in dimensions.items() if d.kind == "batch"}
            choices.append({**analysis.shapes.probe, **one})
    longest = sequence_lengths(analysis)
    for k, sizes in enumerate(choices):
        lengths = {name: (1, min([size, *sizes.values()]) + 1) for name, size in longest.items()}
        yield synthetic(inputs, seed + k, sizes=sizes, bounds={**bounds, **lengths})


def index_bounds(analysis: Analysis) -> dict[str, tuple[int, int]]:
    """For integer inputs that look something up: 0 and the size of the smallest table; for counts of iterations: few."""
    bounds: dict[str, tuple[int, int]] = {}
    for tensor in analysis.graph.inputs:
        sizes = list(_tables(tensor, analysis))
        if sizes:
            bounds[tensor.name] = (0, min(sizes))
        elif any(node.op == "Loop" and node.inputs[0] is tensor for node in tensor.outputs):
            bounds[tensor.name] = ITERATIONS
    return bounds


def sequence_lengths(analysis: Analysis) -> dict[str, int]:
    """For inputs that say how long each sequence of a batch is: the length of the longest, at the probe sizes.

    At other sizes the longest is at least as long as the shortest open dimension, or fixed.
    """
    found: dict[str, int] = {}
    for tensor in analysis.graph.inputs:
        for node in tensor.outputs:
            place, axis = _LENGTHS.get(node.op, (0, ""))
            if place and len(node.inputs) > place and node.inputs[place] is tensor:
                dims = analysis.shapes.dims.get(node.inputs[0].name)
                if dims:
                    length = dims[node.attrs.get(axis, 0)]
                    found[tensor.name] = min(length, found.get(tensor.name, length))
    return found


def _tables(tensor: gs.Tensor, analysis: Analysis) -> Iterator[int]:
    """Sizes of the axes that ``tensor`` indexes, directly or through operators with one input."""
    pending, seen = [tensor], {tensor.name}
    while pending:
        current = pending.pop()
        for node in current.outputs:
            if node.op == "Gather" and len(node.inputs) > 1 and node.inputs[1] is current:
                dims = analysis.shapes.dims.get(node.inputs[0].name)
                if dims:
                    yield dims[node.attrs.get("axis", 0)]
            elif node.inputs[0] is current and not any(t.inputs for t in node.inputs[1:]):
                for output in node.outputs:
                    if output.name not in seen:
                        seen.add(output.name)
                        pending.append(output)
