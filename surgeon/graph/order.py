"""The order nodes run in, and what a node needs from outside its own inputs."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from surgeon.errors import UnsupportedModelError
from surgeon.graph.schemas import label

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def graphs(graph: gs.Graph) -> Iterator[gs.Graph]:
    """A graph and all bodies inside it, each before the bodies inside it."""
    yield graph
    for node in graph.nodes:
        for body in bodies(node):
            yield from graphs(body)


def every_node(graph: gs.Graph) -> Iterator[gs.Node]:
    """The nodes of a graph and of all bodies inside it; those of a node's bodies come just before the node."""
    for node in graph.nodes:
        for body in bodies(node):
            yield from every_node(body)
        yield node


def nodes_in_graphs(graph: gs.Graph) -> Iterator[tuple[gs.Graph, gs.Node]]:
    """The nodes of :func:`every_node`, each with the graph or body it is in."""
    for node in graph.nodes:
        for body in bodies(node):
            yield from nodes_in_graphs(body)
        yield graph, node


def bodies(node: gs.Node) -> list[gs.Graph]:
    """The graphs a control-flow node carries in its attributes (branches, loop bodies)."""
    return [value for value in node.attrs.values() if isinstance(value, gs.Graph)]


def captured(node: gs.Node) -> list[gs.Tensor]:
    """Tensors of the surrounding graph that the bodies of a node read, nested bodies included.

    Each tensor appears once, in order of first use. A constant counts when a node outside these bodies
    uses it too; one that only they use is theirs.
    """
    used: list[gs.Tensor] = []
    local: set[int] = set()
    inside: set[int] = set()
    pending = bodies(node)
    while pending:
        body = pending.pop()
        local.update(id(tensor) for tensor in body.inputs)
        for inner in body.nodes:
            used.extend(inner.inputs)
            local.update(id(tensor) for tensor in inner.outputs)
            inside.add(id(inner))
            pending.extend(bodies(inner))
        used.extend(body.outputs)
    found: dict[int, gs.Tensor] = {}
    for tensor in used:
        own = isinstance(tensor, gs.Constant) and all(id(user) in inside for user in tensor.outputs)
        if tensor.name and id(tensor) not in local and not own:
            found.setdefault(id(tensor), tensor)
    return list(found.values())


def needs(node: gs.Node) -> list[gs.Tensor]:
    """Everything a node reads: its named inputs and what its bodies capture."""
    inputs = [tensor for tensor in node.inputs if tensor.name]
    return (
        inputs + captured(node)
        if any(isinstance(value, gs.Graph) for value in node.attrs.values())
        else inputs
    )


def ordered(nodes: Iterable[gs.Node]) -> list[gs.Node]:
    """The nodes in an order in which every tensor is made before it is used; unchanged where that holds already.

    Raises:
        UnsupportedModelError: The nodes form a cycle; ``where`` names one of them.
    """
    nodes = list(nodes)
    maker = {id(tensor): index for index, node in enumerate(nodes) for tensor in node.outputs if tensor.name}
    waiting: list[int] = []
    users: list[list[int]] = [[] for _ in nodes]
    in_order = True
    for index, node in enumerate(nodes):
        makers = {maker[id(tensor)] for tensor in needs(node) if id(tensor) in maker}
        in_order = in_order and all(earlier < index for earlier in makers)
        waiting.append(len(makers))
        for earlier in makers:
            users[earlier].append(index)
    if in_order:
        return nodes
    return [nodes[index] for index in _kahn(nodes, waiting, users)]


def readers(nodes: Iterable[gs.Node], names: Iterable[str]) -> set[str]:
    """The nodes, by first output, that read some tensors directly or through others.

    Args:
        nodes: In topological order.
        names: Of the tensors.
    """
    reached, found = set(names), set()
    for node in nodes:
        if node.outputs and any(tensor.name in reached for tensor in needs(node)):
            found.add(str(node.outputs[0].name))
            reached |= {tensor.name for tensor in node.outputs if tensor.name}
    return found


def _kahn(nodes: list[gs.Node], waiting: list[int], users: list[list[int]]) -> list[int]:
    ready = deque(index for index, count in enumerate(waiting) if count == 0)
    result = []
    while ready:
        index = ready.popleft()
        result.append(index)
        for user in users[index]:
            waiting[user] -= 1
            if waiting[user] == 0:
                ready.append(user)
    if len(result) < len(nodes):
        stuck = next(index for index, count in enumerate(waiting) if count > 0)
        raise UnsupportedModelError(
            "its input depends on its own output: the graph has a cycle", where=label(nodes[stuck])
        )
    return result
