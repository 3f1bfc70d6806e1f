"""Blocks of a graph: pieces between places that as few tensors as possible cross, such as a residual stream.

A block is small enough to be trained alone towards what it should put out, and large enough for the operators in it to
make up for each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from surgeon.grad.parameters import parameters_of, weighted
from surgeon.graph.order import needs, ordered
from surgeon.graph.schemas import opsets

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

AHEAD = 6  # weighted operators; a branch of known networks, say with squeeze and excitation, has no more
FEWEST = 2
# what the last block goes on through: to where its branch joins the others, but not into what is made of the result
JOINING = frozenset(
    {
        "Add",
        "Sum",
        "Sub",
        "Mul",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Identity",
        "Cast",
    }
)


@dataclass(frozen=True)
class Block:
    """A piece of a graph.

    Attributes:
        nodes: In order.
        reads: Names of tensors from outside that they read, no constants.
        makes: Names of float tensors that they make, that depend on weights, and that others or the graph's outputs need.
    """

    nodes: tuple[gs.Node, ...]
    reads: tuple[str, ...]
    makes: tuple[str, ...]


def find_blocks(graph: gs.Graph, floats: Collection[str], fewest: int = FEWEST) -> list[Block]:
    """Cut a graph into blocks.

    A place between two nodes is a boundary where no place within the next weighted operators is crossed by fewer
    tensors that depend on weights (masks and the like do not, and may be read anywhere); of those with the same
    operators before and after, the last. Nodes behind the last weighted operator are in no block, for there is nothing
    to learn in them, but for those by which its branch joins the others.

    Args:
        graph: The graph.
        floats: Names of tensors that may carry values to be learned from: floats that depend on the inputs.
        fewest: How many weighted operators a block has at least.
    """
    nodes, versions = _ordered(graph), opsets(graph)
    places = [k for k, node in enumerate(nodes) if weighted(node, versions)]
    if not places:
        return []
    last = max(k for k, node in enumerate(nodes) if parameters_of([node], versions))
    floats = _weighed(nodes, versions) & set(floats)
    crossing = _crossing(nodes, graph.outputs, floats)
    ends = _ends(places, _joined(nodes, last, crossing, floats), crossing, fewest)
    result, start = [], 0
    for end in ends:
        result.append(_block(nodes, start, end, graph.outputs, floats))
        start = end
    return result


def together(graph: gs.Graph, blocks: Sequence[Block], start: int, end: int) -> Block:
    """Neighbours among the blocks of a graph, from one number up to another, as one block."""
    chosen, others = blocks[start:end], [*blocks[:start], *blocks[end:]]
    nodes = tuple({id(node): node for block in chosen for node in block.nodes}.values())
    inside = {id(node) for node in nodes}
    given = {tensor.name for node in nodes for tensor in node.outputs}
    wanted = {t.name for node in graph.nodes if id(node) not in inside for t in needs(node)}
    wanted |= {name for block in others for name in block.reads} | {tensor.name for tensor in graph.outputs}
    reads = dict.fromkeys(name for block in chosen for name in block.reads if name not in given)
    return Block(
        nodes, tuple(reads), tuple(name for block in chosen for name in block.makes if name in wanted)
    )


def _ordered(graph: gs.Graph) -> list[gs.Node]:
    """The nodes in order: first those that depend on no input."""
    fed, fixed, rest = {tensor.name for tensor in graph.inputs}, [], []
    for node in ordered(graph.nodes):
        if any(tensor.name in fed for tensor in needs(node)):
            fed |= {tensor.name for tensor in node.outputs}
            rest.append(node)
        else:
            fixed.append(node)
    return [*fixed, *rest]


def _weighed(nodes: Sequence[gs.Node], versions: Mapping[str, int]) -> set[str]:
    """Names of tensors that depend on weights."""
    found: set[str] = set()
    for node in nodes:
        if any(tensor.name in found for tensor in needs(node)) or parameters_of([node], versions):
            found |= {tensor.name for tensor in node.outputs}
    return found


def _crossing(nodes: Sequence[gs.Node], outputs: Sequence[gs.Tensor], floats: Collection[str]) -> list[int]:
    """For each node, how many float tensors made by it or before are read after it."""
    last = {tensor.name: len(nodes) for tensor in outputs}
    for k in range(len(nodes) - 1, -1, -1):
        for tensor in needs(nodes[k]):
            last.setdefault(tensor.name, k)
    change = [0] * (len(nodes) + 1)
    for k, node in enumerate(nodes):
        for tensor in node.outputs:
            if tensor.name in floats and last.get(tensor.name, k) > k:
                change[k] += 1
                change[last[tensor.name]] -= 1
    count, result = 0, []
    for k in range(len(nodes)):
        count += change[k]
        result.append(count)
    return result


def _joined(nodes: Sequence[gs.Node], last: int, crossing: Sequence[int], floats: Collection[str]) -> int:
    """The last place of all: the first of the narrowest behind the last operator."""
    end = last
    for k in range(last + 1, len(nodes)):
        if nodes[k].op not in JOINING and any(tensor.name in floats for tensor in nodes[k].outputs):
            break
        if 0 < crossing[k] < crossing[end]:
            end = k
    return end


def _ends(places: Sequence[int], last: int, crossing: Sequence[int], fewest: int) -> list[int]:
    """The node behind each boundary."""
    # between two weighted operators the last of the narrowest places stands for all
    gaps = [range(first, second) for first, second in pairwise(places)]
    narrow = [max(gap, key=lambda k: (-crossing[k], k)) for gap in gaps]
    ends, begun = [], 0
    for number, place in enumerate(narrow):
        ahead = [crossing[k] for k in [*narrow, last][number + 1 : number + 1 + AHEAD]]
        if number + 1 - begun >= fewest and crossing[place] <= min(ahead):
            ends.append(place + 1)
            begun = number + 1
    if ends and len(places) - begun < fewest:
        ends.pop()
    return [*ends, last + 1]


def _block(
    nodes: Sequence[gs.Node], start: int, end: int, outputs: Sequence[gs.Tensor], floats: Collection[str]
) -> Block:
    made = {tensor.name for node in nodes[start:end] for tensor in node.outputs if tensor.name}
    later = {tensor.name for node in nodes[end:] for tensor in needs(node)} | {t.name for t in outputs}
    makes = [
        t.name for node in nodes[start:end] for t in node.outputs if t.name in later and t.name in floats
    ]
    wanted, inside = set(makes), []
    for node in reversed(nodes[:end]):
        # shape arithmetic and constants that are computed are the block's own, wherever they are made
        own = [t.name for t in node.outputs if t.name in wanted and (t.name in made or t.name not in floats)]
        if own:
            inside.append(node)
            wanted |= {t.name for t in needs(node) if not isinstance(t, gs.Constant)}
    given = {tensor.name for node in inside for tensor in node.outputs}
    reads = dict.fromkeys(
        t.name
        for node in reversed(inside)
        for t in needs(node)
        if t.name not in given and not isinstance(t, gs.Constant)
    )
    return Block(tuple(reversed(inside)), tuple(reads), tuple(makes))
