"""What can be left out of a graph whole: a tensor is replaced by one before it of the same shape.

A residual branch is left out where one term of a sum takes the place of the sum. A layer, or several, are left out where
everything on the way to a tensor passes through another one of its shape: one that dominates it. What nothing reads any more
goes along.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import networkx as nx
import onnx_graphsurgeon as gs

from surgeon.graph.order import bodies, captured, needs
from surgeon.stats.weight import FLOATS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from surgeon.graph.shapes import Shapes

SUMS = frozenset({"Add", "Sum"})
ENTRY = ("entry", "")
LEVELS = 2  # layers, and pairs of layers such as a depthwise convolution and the one behind it


@dataclass(frozen=True)
class Gap:
    """Something that can be left out.

    Attributes:
        kind: ``branch`` of a sum, or ``layer``.
        tensor: What is not computed any more.
        source: What takes its place.
        gone: The nodes that go, by first output, if nothing else does.
        macs: Their multiply-accumulates, of one sample.
    """

    kind: str
    tensor: str
    source: str
    gone: frozenset[str]
    macs: float


@dataclass
class Candidates:
    """What can be left out, in the order of the graph, and what cannot, and why."""

    gaps: list[Gap]
    left: dict[str, str]


class Wires:
    """Who makes and who reads what in a graph, some tensors being replaced by others.

    Args:
        graph: Topologically sorted; it is not changed.
        macs: Multiply-accumulates of its nodes, by first output.
    """

    def __init__(self, graph: gs.Graph, macs: Mapping[str, float]) -> None:
        self.graph, self.macs = graph, macs
        self.nodes = [node for node in graph.nodes if node.outputs]
        self.reads = {
            _key(node): [t.name for t in needs(node) if not isinstance(t, gs.Constant)] for node in self.nodes
        }
        self.maker = {t.name: node for node in self.nodes for t in node.outputs if t.name}
        self.outputs = [tensor.name for tensor in graph.outputs]
        self.alive = self.needed({})

    def needed(self, replaced: Mapping[str, str]) -> frozenset[str]:
        """The nodes, by first output, that outputs depend on."""
        found: set[str] = set()
        wanted = list(self.outputs)
        while wanted:
            name = resolved(wanted.pop(), replaced)
            node = self.maker.get(name)
            if node is not None and _key(node) not in found:
                found.add(_key(node))
                wanted.extend(self.reads[_key(node)])
        return frozenset(found)

    def cost(self, nodes: Iterable[str]) -> float:
        """Multiply-accumulates of nodes."""
        return sum(self.macs.get(name, 0.0) for name in nodes)

    def weighted(self, nodes: Iterable[str]) -> frozenset[str]:
        """Those of some nodes that multiply."""
        return frozenset(name for name in nodes if self.macs.get(name, 0.0) > 0)

    def saved(self, replaced: Mapping[str, str]) -> float:
        """Multiply-accumulates of what is not needed any more."""
        return self.cost(self.alive - self.needed(replaced))


def resolved(name: str, replaced: Mapping[str, str]) -> str:
    """What stands for a tensor in the end."""
    while name in replaced:
        name = replaced[name]
    return name


def find_gaps(wires: Wires, shapes: Shapes, excluded: Callable[[str], bool]) -> Candidates:
    """Everything that can be left out.

    Of several ways to leave out the same layers the one is taken that leaves out the fewest nodes: an activation behind
    a layer stays.

    Args:
        wires: The graph.
        shapes: Of its tensors.
        excluded: Whether a node or tensor, by name, is to be left alone.
    """
    outside = set(wires.outputs)
    seen = {t.name for node in wires.nodes if bodies(node) for t in captured(node)}
    branches: list[Gap] = []
    layers: dict[frozenset[str], Gap] = {}
    left: dict[str, str] = {}
    for node in wires.nodes:
        if bodies(node):
            left[_label(node)] = "what is inside a body is not looked at"
    for kind, tensor, source in (*_branches(wires, shapes), *_layers(wires, shapes)):
        gone = wires.alive - wires.needed({tensor: source})
        weighted = wires.weighted(gone)
        if not weighted:
            continue
        reason = _why_not(tensor, gone, wires, outside, seen, excluded)
        if reason:
            left[tensor] = reason
            continue
        gap = Gap(kind, tensor, source, gone, wires.cost(gone))
        if kind == "branch":
            branches.append(gap)
        elif weighted not in layers or len(gone) < len(layers[weighted].gone):
            layers[weighted] = gap
    # from before a branch to behind the activation of its sum is the branch once more
    others = [
        gap
        for weighted, gap in layers.items()
        if not any(wires.weighted(each.gone) == weighted and each.gone <= gap.gone for each in branches)
    ]
    place = {name: k for k, name in enumerate(wires.maker)}
    gaps = sorted([*branches, *others], key=lambda gap: (place[gap.tensor], gap.source))
    for gap in gaps:
        left.pop(gap.tensor, None)
    return Candidates(gaps, left)


def _why_not(
    tensor: str,
    gone: frozenset[str],
    wires: Wires,
    outputs: set[str],
    seen: set[str],
    excluded: Callable[[str], bool],
) -> str:
    if tensor in outputs:
        return "the model puts it out"
    if tensor in seen:
        return "a body reads it"
    for name in sorted(gone):
        node = wires.maker[name]
        if any(excluded(t.name) for t in (node, *node.inputs, *node.outputs) if t.name):
            return "excluded"
    return ""


def _branches(wires: Wires, shapes: Shapes) -> Iterator[tuple[str, str, str]]:
    """Sums of two terms, each of which could stand for the sum."""
    for node in wires.nodes:
        if node.op not in SUMS or node.domain not in (None, "", "ai.onnx") or len(node.inputs) != 2:
            continue
        total, terms = node.outputs[0].name, node.inputs
        if _key(node) not in wires.alive or any(isinstance(term, gs.Constant) for term in terms):
            continue
        for term in terms:
            if _alike(total, term.name, shapes):
                yield "branch", total, term.name


def _layers(wires: Wires, shapes: Shapes) -> Iterator[tuple[str, str, str]]:
    """Tensors and, the nearest first, those of the same shape that everything on the way to them passes through."""
    above = _dominators(wires)
    for node in wires.nodes:
        if _key(node) not in wires.alive or len([t for t in node.outputs if t.name]) != 1:
            continue
        name = node.outputs[0].name
        place, found = above.get(("tensor", name)), 0.0
        levels = 0
        while place is not None and place != ENTRY and levels < LEVELS:
            if place[0] == "tensor" and _alike(name, place[1], shapes):
                yield "layer", name, place[1]
                cost = wires.saved({name: place[1]})
                levels, found = levels + (cost > found), cost
            place = above.get(place)


def _dominators(wires: Wires) -> dict[tuple[str, str], tuple[str, str]]:
    """The nearest dominator of every tensor and node that depends on an input of the model."""
    graph = nx.DiGraph()
    graph.add_node(ENTRY)
    for tensor in wires.graph.inputs:
        graph.add_edge(ENTRY, ("tensor", tensor.name))
    for node in wires.nodes:
        for name in wires.reads[_key(node)]:
            graph.add_edge(("tensor", name), ("node", _key(node)))
        for tensor in node.outputs:
            if tensor.name:
                graph.add_edge(("node", _key(node)), ("tensor", tensor.name))
    found: dict[tuple[str, str], tuple[str, str]] = nx.immediate_dominators(graph, ENTRY)
    found.pop(ENTRY, None)
    return found


def _alike(first: str, second: str, shapes: Shapes) -> bool:
    """Whether one tensor can stand for another: floats of the same shape, whatever the sizes of open dimensions."""
    dims = shapes.dims.get(first)
    return (
        dims is not None
        and dims == shapes.dims.get(second)
        and shapes.dynamic.get(first) == shapes.dynamic.get(second)
        and shapes.dtypes.get(first) == shapes.dtypes.get(second)
        and shapes.dtypes.get(first) in FLOATS
    )


def _key(node: gs.Node) -> str:
    return str(node.outputs[0].name)


def _label(node: gs.Node) -> str:
    return str(node.name or node.outputs[0].name)
