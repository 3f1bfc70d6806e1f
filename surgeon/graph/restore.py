"""Emitting what a cut does not touch as it was: shape arithmetic that was folded for the analysis comes back.

A folded value stays a constant only where the arithmetic behind it reads something that the cut changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from surgeon.graph.order import bodies, every_node, graphs, ordered

if TYPE_CHECKING:
    from collections.abc import Callable


def restore(smaller: gs.Graph, original: gs.Graph, touched: Callable[[str], bool]) -> int:
    """Put the nodes that computed folded constants back into ``smaller``, in place.

    Args:
        smaller: A cut of the canonical form of ``original``.
        original: The graph before it was brought to canonical form; its nodes are copied.
        touched: Whether the tensor of that name lost anything in the cut.

    Returns:
        How many nodes came back.
    """
    return _Restorer(smaller, original, touched).run()


class _Restorer:
    def __init__(self, smaller: gs.Graph, original: gs.Graph, touched: Callable[[str], bool]) -> None:
        self.smaller, self.touched = smaller, touched
        self.makers: dict[str, gs.Node] = {}
        self.homes: dict[str, gs.Graph] = {}
        self._pair(original, smaller)
        self.tensors: dict[str, gs.Tensor] = {}
        self.made: set[str] = set()
        for each in graphs(smaller):
            self.tensors |= {tensor.name: tensor for tensor in each.inputs}
            self.made |= {tensor.name for tensor in each.inputs}
        for node in every_node(smaller):
            for tensor in (*node.inputs, *node.outputs):
                self.tensors.setdefault(tensor.name, tensor)
            self.made |= {tensor.name for tensor in node.outputs}
        self.sound: dict[str, bool] = {}
        self.back: list[tuple[gs.Graph, gs.Node]] = []

    def _pair(self, original: gs.Graph, smaller: gs.Graph) -> None:
        """Note who made what, and which graph or body it belongs into; bodies that are gone have no place."""
        there = {node.outputs[0].name: node for node in smaller.nodes if node.outputs}
        for node in original.nodes:
            for tensor in node.outputs:
                if tensor.name:
                    self.makers[tensor.name], self.homes[tensor.name] = node, smaller
            same = there.get(node.outputs[0].name) if node.outputs else None
            for name, body in node.attrs.items():
                other = same.attrs.get(name) if same is not None else None
                if isinstance(body, gs.Graph) and isinstance(other, gs.Graph):
                    self._pair(body, other)

    def run(self) -> int:
        folded = [
            (node, index, tensor.name)
            for node in every_node(self.smaller)
            for index, tensor in enumerate(node.inputs)
            if isinstance(tensor, gs.Constant) and tensor.name in self.makers
        ]
        for node, index, name in folded:
            if not self.touched(name) and self._is_sound(name):
                node.inputs[index] = self._variable(name)
        for each in {id(graph): graph for graph, _ in self.back}.values():
            each.nodes = ordered([*each.nodes, *(node for graph, node in self.back if graph is each)])
        return len(self.back)

    def _is_sound(self, name: str) -> bool:
        """Whether everything ``name`` is computed from is still there and unchanged; without recursion."""
        pending = [(name, False)]
        while pending:
            current, seen = pending.pop()
            if current in self.sound:
                continue
            maker = self.makers.get(current)
            if maker is None or bodies(maker):
                self.sound[current] = False
                continue
            needed = [t for t in maker.inputs if t.name]
            if seen:
                self.sound[current] = all(self._leaf_is_sound(t) for t in needed)
            else:
                pending.append((current, True))
                pending += [
                    (t.name, False)
                    for t in needed
                    if not isinstance(t, gs.Constant) and t.name not in self.made and t.name not in self.sound
                ]
        return self.sound[name]

    def _leaf_is_sound(self, tensor: gs.Tensor) -> bool:
        if isinstance(tensor, gs.Constant) or tensor.name in self.made:
            return not self.touched(tensor.name)
        return self.sound.get(tensor.name, False)

    def _variable(self, name: str) -> gs.Variable:
        """The computed tensor, with the nodes behind it brought back; without recursion."""
        pending = [name]
        while pending:
            current = pending.pop()
            if current in self.made:
                continue
            maker = self.makers[current]
            outputs = [self._fresh(tensor) for tensor in maker.outputs]
            self.made |= {tensor.name for tensor in maker.outputs}
            inputs = [self._input(tensor) for tensor in maker.inputs]
            node = gs.Node(maker.op, maker.name, dict(maker.attrs), inputs, outputs, maker.domain)
            self.back.append((self.homes[current], node))
            pending += [t.name for t in maker.inputs if t.name and not isinstance(t, gs.Constant)]
        return self.tensors[name]

    def _fresh(self, tensor: gs.Tensor) -> gs.Variable:
        known = self.tensors.get(tensor.name)
        if tensor.name and isinstance(known, gs.Variable):
            return known
        variable = gs.Variable(tensor.name, tensor.dtype)
        if tensor.name:
            self.tensors[tensor.name] = variable
        return variable

    def _input(self, tensor: gs.Tensor) -> gs.Tensor:
        if not tensor.name:
            return gs.Variable.empty()
        if isinstance(tensor, gs.Constant):
            known = self.tensors.get(tensor.name)
            if isinstance(known, gs.Constant):
                return known
            self.tensors[tensor.name] = gs.Constant(tensor.name, tensor._values)  # noqa: SLF001  # shared and unread
            return self.tensors[tensor.name]
        return self._fresh(tensor)
