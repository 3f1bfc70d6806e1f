"""Which constants a block of a graph has to itself, so that it can learn them, and why others are learned by none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from surgeon.grad.parameters import parameters_of
from surgeon.graph.schemas import opsets

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    import onnx_graphsurgeon as gs

    from surgeon.grad.blocks import Block

EXCLUDED = "it is to be left alone"
PUT_OUT = "the model puts it out"
OUTSIDE = "the body of an operator reads it"  # of all nodes of a graph these alone are outside
SEVERAL = "several blocks read it"
NOTHING = "its block has nothing to learn from"
NOWHERE = "nothing that is learned from depends on it"


@dataclass(frozen=True)
class Ownership:
    """Who may learn which constants of a graph.

    Attributes:
        graph: The graph.
        carrying: Tensors that depend on its inputs.
        excluded: Whether a node or tensor, by name, is to be left alone.
    """

    graph: gs.Graph
    carrying: Collection[str]
    excluded: Callable[[str], bool]

    def of(self, block: Block) -> dict[str, gs.Constant]:
        """Constants that a block alone reads, and that nobody wants left alone, by name."""
        inside = {id(node) for node in block.nodes}
        return {
            name: constant
            for name, constant in self._known(block.nodes).items()
            if not any(self._hindrances(constant, inside))
        }

    def unlearned(self, learned: Collection[str], blocks: Collection[Block]) -> dict[str, str]:
        """The constants that nobody wants left alone and that are not among those learned, with the reason."""
        found = {}
        inside = {id(node) for node in self.graph.nodes}
        owned = {name for block in blocks for name in self.of(block)}
        read = {name for block in blocks for name in self._known(block.nodes)}
        for name, constant in self._known(self.graph.nodes).items():
            hindrances = list(self._hindrances(constant, inside))
            if name not in learned and EXCLUDED not in hindrances:
                why = NOTHING if name in owned else SEVERAL if name in read else NOWHERE
                found[name] = next(iter(hindrances), why)
        return found

    def _known(self, nodes: Iterable[gs.Node]) -> dict[str, gs.Constant]:
        """The constants that nodes could learn."""
        return {
            name: constant
            for name, constant in parameters_of(nodes, opsets(self.graph)).items()
            if constant.dtype == np.float32 and not self.excluded(name)
        }

    def _hindrances(self, tensor: gs.Tensor, inside: Collection[int]) -> Iterator[str]:
        """Why the nodes inside, by identity, do not have a constant, and what is computed of it alone, to themselves."""
        seen, waiting = {tensor.name}, [tensor]
        for each in waiting:
            if any(each is output for output in self.graph.outputs):
                yield PUT_OUT
            for user in each.outputs:
                if self.excluded(user.name):
                    yield EXCLUDED
                if id(user) not in inside:
                    yield OUTSIDE
                for made in user.outputs:
                    if made.name not in self.carrying and made.name not in seen:
                        seen.add(made.name)
                        waiting.append(made)
