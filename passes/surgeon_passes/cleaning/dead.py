"""Removes nodes that no graph output depends on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgeon_passes.cleaning.wiring import captured_names

if TYPE_CHECKING:
    from surgeon_passes.cleaning.wiring import Wiring


def remove_dead_nodes(wiring: Wiring) -> int:
    """Drop every node that does not lead to a graph output, and return how many."""
    graph = wiring.graph
    producer = {tensor.name: node for node in graph.nodes for tensor in node.outputs if tensor.name}
    alive: set[int] = set()
    wanted = [tensor.name for tensor in graph.outputs]
    while wanted:
        node = producer.get(wanted.pop())
        if node is not None and id(node) not in alive:
            alive.add(id(node))
            wanted.extend(tensor.name for tensor in node.inputs)
            wanted.extend(captured_names(node))
    return wiring.drop([node for node in graph.nodes if id(node) not in alive])
