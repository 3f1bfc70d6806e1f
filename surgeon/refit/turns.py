"""What of a graph is trained in turn: each of its blocks, and neighbours among them as one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from surgeon.grad.blocks import Block, find_blocks, together
from surgeon.graph.order import needs, ordered
from surgeon.graph.shapes import Shapes, infer
from surgeon.stats.weight import FLOATS

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


@dataclass(frozen=True)
class Turn:
    """What is trained at a time.

    Attributes:
        block: A block of the graph, or neighbours as one.
        count: How many.
        joint: The number of the turn in which a block is trained once more, with its neighbours, and before which it need
            not be finished. None for the last blocks, which fit the samples closely as it is and gain little together.
    """

    block: Block
    count: int = 1
    joint: int | None = None


def find_trainable(graph: gs.Graph) -> list[Block]:
    """The blocks of a graph."""
    return find_blocks(graph, carrying(graph, infer(graph)))


def turns_of(graph: gs.Graph, neighbours: int = 1) -> list[Turn]:
    """What is trained of a graph in turn: each block, and so many neighbours as one behind the last of them."""
    blocks = find_trainable(graph)
    if neighbours == 1:
        return [Turn(block) for block in blocks]
    turns: list[Turn] = []
    for place, block in enumerate(blocks):
        ahead = neighbours - place % neighbours  # turns until that of the neighbours
        last = place >= len(blocks) - neighbours
        turns.append(Turn(block, joint=None if last else len(turns) + ahead))
        if ahead == 1:
            turns.append(Turn(together(graph, blocks, place + 1 - neighbours, place + 1), neighbours))
    return turns


def depending(graph: gs.Graph) -> set[str]:
    """Tensors that depend on the graph's inputs, and these."""
    found = {tensor.name for tensor in graph.inputs}
    for node in ordered(graph.nodes):
        if any(tensor.name in found for tensor in needs(node)):
            found |= {tensor.name for tensor in node.outputs}
    return found


def carrying(graph: gs.Graph, shapes: Shapes) -> set[str]:
    """Tensors that depend on the graph's inputs, and are floats or rounded ones."""
    found = depending(graph)
    rounded = {node.outputs[0].name for node in graph.nodes if node.op == "QuantizeLinear"}
    return {name for name in found if name in rounded or shapes.dtypes.get(name) in FLOATS}
