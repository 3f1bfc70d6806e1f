"""A graph without what is left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgeon.graph.copy import copy_of
from surgeon_passes.cleaning.dead import remove_dead_nodes
from surgeon_passes.cleaning.wiring import Wiring, move_consumers
from surgeon_passes.dropping.gaps import resolved

if TYPE_CHECKING:
    from collections.abc import Mapping

    from surgeon.passes import Graph


def without(graph: Graph, replaced: Mapping[str, str]) -> Graph:
    """A copy of a graph in which tensors are replaced by others, and what nothing needs any more is gone.

    Args:
        graph: Topologically sorted; it is not changed.
        replaced: For tensors that are no outputs of the graph, an earlier one to stand for it, which may be replaced too.
    """
    result = copy_of(graph)
    tensors = result.tensors()
    for name in replaced:
        move_consumers(tensors[name], tensors[resolved(name, replaced)])
    remove_dead_nodes(Wiring(result))
    return result
