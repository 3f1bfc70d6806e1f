"""The data flow of a graph as a networkx view: operators and tensors, what runs before what, and ways between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import networkx as nx

from surgeon.graph.order import bodies, captured, every_node

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx_graphsurgeon as gs


@dataclass(frozen=True)
class Operator:
    """A node of the model; ``index`` is its place in ``every_node(graph)``, for names need not be unique."""

    index: int


@dataclass(frozen=True)
class Tensor:
    """A tensor of the model, by name."""

    name: str


Vertex: TypeAlias = Operator | Tensor


def data_flow(graph: gs.Graph) -> nx.MultiDiGraph:
    """The graph, bodies included, as tensors that go into operators and operators that make tensors.

    A tensor that is used twice by one operator (``a * a``) has two parallel edges. What a node's bodies capture goes
    into the node as well, and so do their outputs; the node's inputs go into its bodies' inputs. Edges carry ``slot``,
    the input or output index (-1 for what is captured or belongs to a body); operators carry ``label`` (type and
    name), tensors ``constant``.
    """
    import onnx_graphsurgeon as gs

    flow = nx.MultiDiGraph()
    for tensor in (*graph.inputs, *graph.outputs):
        flow.add_node(Tensor(tensor.name), constant=isinstance(tensor, gs.Constant))
    for index, node in enumerate(every_node(graph)):
        operator = Operator(index)
        first = next((tensor.name for tensor in node.outputs if tensor.name), "")
        flow.add_node(operator, label=f"{node.op} {node.name or first}".strip())
        given = [(slot, tensor) for slot, tensor in enumerate(node.inputs) if tensor.name]
        inner = [*captured(node), *(tensor for body in bodies(node) for tensor in body.outputs)]
        for slot, tensor in (*given, *((-1, tensor) for tensor in inner)):
            flow.add_node(Tensor(tensor.name), constant=isinstance(tensor, gs.Constant))
            flow.add_edge(Tensor(tensor.name), operator, slot=slot)
        for slot, tensor in enumerate(node.outputs):
            if tensor.name:
                flow.add_node(Tensor(tensor.name), constant=False)
                flow.add_edge(operator, Tensor(tensor.name), slot=slot)
        for body in bodies(node):
            for tensor, before in zip(
                body.inputs, node.inputs, strict=False
            ):  # Loop and Scan pair them in order
                flow.add_node(Tensor(tensor.name), constant=False)
                if before.name:
                    flow.add_edge(Tensor(before.name), Tensor(tensor.name), slot=-1)
    return flow


def run_order(flow: nx.MultiDiGraph) -> list[Operator]:
    """The operators in an order in which each runs after what it needs; ties as in the file."""

    def place(vertex: Vertex) -> int:
        return vertex.index if isinstance(vertex, Operator) else -1

    return [v for v in nx.lexicographical_topological_sort(flow, key=place) if isinstance(v, Operator)]


def ancestors(flow: nx.MultiDiGraph, vertices: Iterable[Vertex]) -> set[Vertex]:
    """Everything that ``vertices`` are computed from; not the vertices themselves, unless another one needs them."""
    return set().union(*(nx.ancestors(flow, vertex) for vertex in vertices))


def descendants(flow: nx.MultiDiGraph, vertices: Iterable[Vertex]) -> set[Vertex]:
    """Everything that is computed from ``vertices``."""
    return set().union(*(nx.descendants(flow, vertex) for vertex in vertices))


def way(flow: nx.MultiDiGraph, starts: Iterable[Vertex], ends: Iterable[Vertex]) -> list[Vertex] | None:
    """The shortest way data takes from one of ``starts`` to one of ``ends``, both included, or None."""
    goals = set(ends)
    sources = dict.fromkeys(starts)
    if not sources or not goals:
        return None
    found = nx.multi_source_dijkstra_path(flow, list(sources))
    ways: list[list[Vertex]] = [found[goal] for goal in goals if goal in found]
    return min(ways, key=lambda each: (len(each), str(each)), default=None)
