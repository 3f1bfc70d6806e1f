"""The coupling graph: axes of tensors, the operators that relate them, and the shortest chains between them.

Groups are what the algebra solved; this graph says through which operators. Axes are related where, after solving,
they share an atom; an axis that is only a number (pinned throughout) is related to others by the reason it shares
with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import networkx as nx

from surgeon.axes import Atom, Pin, atoms_of
from surgeon.graph.order import bodies, captured

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from surgeon.analysis import Analysis
    from surgeon.ops.op import Op

Shared: TypeAlias = "Atom | Pin"


@dataclass(frozen=True)
class TensorAxis:
    """One axis of one tensor."""

    tensor: str
    axis: int

    def __str__(self) -> str:
        return f"{self.tensor}:{self.axis}"


@dataclass(frozen=True)
class Relation:
    """What one operator (its place in ``analysis.ops``) says about all axes with one atom, or one reason, in common.

    One star per operator and atom instead of an edge for each pair keeps the graph linear in the size of the model.
    """

    operator: int
    shared: Shared


@dataclass(frozen=True)
class Step:
    """One operator on a chain: it relates the axis ``start`` to the axis ``end``."""

    op: str
    start: TensorAxis
    end: TensorAxis


def coupling(analysis: Analysis) -> nx.MultiGraph:
    """Axes and relations; edges carry ``op`` (the operator's name) and ``role`` (where the axis occurs in it).

    An operator that uses one axis twice (``a * a``) has two parallel edges to it.
    """
    graph = nx.MultiGraph()
    for index, op in enumerate(analysis.ops):
        for role, tensor in _operands(op):
            for k, axis in enumerate(analysis.axes.get(tensor) or ()):
                atoms = dict.fromkeys(atoms_of(axis))
                reasons = dict.fromkeys(atom.pinned for atom in atoms if atom.pinned is not None)
                found: list[Shared] = [*atoms, *reasons]
                graph.add_node(TensorAxis(tensor, k), sizes={atom.size for atom in atoms})
                for shared in found:
                    graph.add_edge(TensorAxis(tensor, k), Relation(index, shared), op=op.name, role=role)
    return graph


def _operands(op: Op) -> Iterator[tuple[str, str]]:
    yield from ((f"input {k}", tensor.name) for k, tensor in enumerate(op.node.inputs) if tensor.name)
    if op.facts.barrier is not None:  # else the operators of its bodies say what they do with it
        yield from (("captured", tensor.name) for tensor in captured(op.node))
    for body in bodies(op.node):
        yield from (("body", tensor.name) for tensor in (*body.inputs, *body.outputs) if tensor.name)
    yield from ((f"output {k}", tensor.name) for k, tensor in enumerate(op.node.outputs) if tensor.name)


def chain(
    graph: nx.MultiGraph, starts: Collection[TensorAxis], ends: Collection[TensorAxis], shared: Shared
) -> list[Step] | None:
    """The shortest chain of operators along which ``shared`` gets from one of ``starts`` to one of ``ends``.

    Returns:
        The steps, none where an axis is in both; None where there is no such chain.
    """
    return _steps(graph, _shortest(graph, starts, set(ends), shared))


def chain_to_reason(graph: nx.MultiGraph, starts: Collection[TensorAxis], pinned: Atom) -> list[Step] | None:
    """The shortest chain from one of ``starts`` to the operator, graph input or graph output that pinned an atom.

    Along the atom itself if that leads there, else along everything that is pinned for the same reason: axes that
    are only numbers hand reasons on without becoming one.

    Returns:
        The steps, the last one by the operator itself (it starts and ends at the same axis); None where no chain
        leads there, or the atom is not pinned.
    """
    if pinned.pinned is None:
        return None
    for shared in (pinned, pinned.pinned):
        goals = {vertex for vertex in graph if _gives(graph, vertex, pinned.pinned, shared)}
        steps = _steps(graph, _shortest(graph, starts, goals, shared, pinned.size))
        if steps is not None:
            return steps
    return None


def _gives(graph: nx.MultiGraph, vertex: TensorAxis | Relation, reason: Pin, shared: Shared) -> bool:
    if isinstance(vertex, TensorAxis):
        return vertex.tensor == reason.op
    if vertex.shared != shared:
        return False
    return any(edge["op"] == reason.op for _, _, edge in graph.edges(vertex, data=True))


def _shortest(
    graph: nx.MultiGraph,
    starts: Collection[TensorAxis],
    goals: set[TensorAxis | Relation],
    shared: Shared,
    size: int | None = None,
) -> list[TensorAxis | Relation] | None:
    """The shortest path; of several, one whose last axis has a part of ``size``."""
    along = nx.subgraph_view(
        graph, filter_node=lambda vertex: isinstance(vertex, TensorAxis) or vertex.shared == shared
    )
    sources = [start for start in starts if start in graph]
    if not sources:
        return None
    found = nx.multi_source_dijkstra_path(along, sources)
    paths = [path for vertex, path in found.items() if vertex in goals]

    def order(path: list[TensorAxis | Relation]) -> tuple[int, bool]:
        last = next(vertex for vertex in reversed(path) if isinstance(vertex, TensorAxis))
        return len(path), size not in graph.nodes[last]["sizes"]

    return min(paths, key=order, default=None)


def _steps(graph: nx.MultiGraph, path: list[TensorAxis | Relation] | None) -> list[Step] | None:
    if path is None:
        return None
    steps = []
    for k, vertex in enumerate(path):
        if isinstance(vertex, Relation):
            before = path[k - 1]
            after = path[k + 1] if k + 1 < len(path) else before
            assert isinstance(before, TensorAxis)
            assert isinstance(after, TensorAxis)
            op = next(iter(graph[before][vertex].values()))["op"]
            steps.append(Step(op, before, after))
    return steps
