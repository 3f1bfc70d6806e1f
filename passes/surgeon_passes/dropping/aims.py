"""What is before a gap should make now: what was behind it.

Where nothing else reads the tensor that takes a place, or the one before its activation, the operator that makes it is free to
make what the gap has lost. That is so behind an activation too, where the same one follows the gap: twice does nothing more
than once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.graph.order import needs
from surgeon.graph.weights import peek
from surgeon_passes.dropping.gaps import resolved

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from surgeon.passes import Graph
    from surgeon_passes.dropping.gaps import Gap

ONCE = frozenset({"Relu", "Clip"})  # applied to its own results it does nothing


def aims(graph: Graph, smaller: Graph, gaps: Sequence[Gap]) -> dict[str, str]:
    """For tensors of a graph with gaps, the tensors of the graph without that they should be now.

    Args:
        graph: As it was.
        smaller: With the gaps.
        gaps: Which.
    """
    replaced = {gap.tensor: gap.source for gap in gaps}
    alive = {node.outputs[0].name for node in smaller.nodes if node.outputs}
    readers = _readers(graph, alive)
    outside = {tensor.name for tensor in graph.outputs}
    maker = {tensor.name: node for node in graph.nodes for tensor in node.outputs if tensor.name}
    found: dict[str, str] = {}
    for source in dict.fromkeys(resolved(gap.tensor, replaced) for gap in gaps):
        lost = [name for name in replaced if resolved(name, replaced) == source and readers.get(name)]
        if len(lost) != 1 or readers.get(source) or source in outside or source not in maker:
            continue
        found[source] = lost[0]
        before, behind = maker[source], readers[lost[0]]
        alone = before.op in ONCE and len(behind) == 1 and _same(before, behind[0])
        if alone and before.inputs[0].name not in outside and readers.get(before.inputs[0].name) == [before]:
            found[before.inputs[0].name] = lost[0]
    return found


def makers(graph: Graph, wanted: Mapping[str, str]) -> set[str]:
    """Tensors, results of operators, that are the wanted ones or terms of a sum that is."""
    found = set(wanted)
    for node in graph.nodes:
        if node.op == "Add" and node.outputs[0].name in wanted:
            found |= {tensor.name for tensor in node.inputs if not isinstance(tensor, gs.Constant)}
    return found


def _readers(graph: Graph, alive: set[str]) -> dict[str, list[gs.Node]]:
    """The nodes that are left and read a tensor, those that go through a body included."""
    found: dict[str, list[gs.Node]] = {}
    for node in graph.nodes:
        if node.outputs and node.outputs[0].name in alive:
            for name in {tensor.name for tensor in needs(node)}:
                found.setdefault(name, []).append(node)
    return found


def _same(first: gs.Node, second: gs.Node) -> bool:
    """Whether two activations are the same function."""
    same = first.op == second.op and first.domain == second.domain and first.attrs == second.attrs
    return same and list(map(_bound, first.inputs[1:])) == list(map(_bound, second.inputs[1:]))


def _bound(tensor: gs.Tensor) -> Any:
    return np.asarray(peek(tensor)).tolist() if isinstance(tensor, gs.Constant) else tensor.name
