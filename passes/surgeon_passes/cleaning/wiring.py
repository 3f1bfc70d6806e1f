"""Re-wiring a graph in linear time, with the names that must survive kept in view.

graphsurgeon's own lists remove one consumer at a time by comparing nodes; for a constant that thousands of nodes
share that is quadratic, so consumers are filtered here in one go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.graph.order import bodies
from surgeon.graph.weights import peek

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from surgeon.graph.weights import DerivedValues


class Wiring:
    """A graph and the tensors of it that must keep their name.

    Attributes:
        graph: The graph that is edited.
        outputs: Names of graph outputs.
        captured: Names that bodies of control flow (If, Loop, Scan) mention.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self.graph = graph
        self.outputs = {tensor.name for tensor in graph.outputs}
        self.captured = {name for node in graph.nodes for name in captured_names(node)}
        self._inputs = {id(tensor) for tensor in graph.inputs}
        self._taken: set[str] | None = None
        self._numbers: dict[str, int] = {}
        self._made: dict[str, list[gs.Constant]] = {}
        self._stale: dict[int, gs.Tensor] = {}  # tensors whose list of readers still names some that left

    def is_bound(self, tensor: gs.Tensor) -> bool:
        """Whether ``tensor`` is seen by name from outside the nodes: a graph output, or used in a body."""
        return tensor.name in self.outputs or tensor.name in self.captured

    def is_input(self, tensor: gs.Tensor) -> bool:
        """Whether ``tensor`` is a graph input."""
        return id(tensor) in self._inputs

    def only_consumer(self, tensor: gs.Tensor) -> gs.Node | None:
        """The one node that reads ``tensor``, if nothing else can see it."""
        if len(tensor.outputs) != 1 or self.is_bound(tensor):
            return None
        return tensor.outputs[0]

    def set_constant(
        self, node: gs.Node, index: int, values: NDArray[Any] | DerivedValues, name: str
    ) -> None:
        """Make input ``index`` of ``node`` a constant with ``values``.

        A constant that nothing else uses keeps its name; otherwise the node gets another, so that other users keep the old
        values. Nodes that get the same values under the same name share them: they shared a weight before. Arrays are never
        written into: other copies of the graph may hold them.
        """
        if index < len(node.inputs):
            old = node.inputs[index]
            if isinstance(old, gs.Constant) and self.only_consumer(old) is node:
                old.values = values
                return
        while len(node.inputs) <= index:
            node.inputs.append(gs.Variable.empty())
        made = self._made.setdefault(name, [])
        constant = next((each for each in made if _holds(each, values)), None)
        if constant is None:
            constant = gs.Constant(self.fresh(name), values)
            made.append(constant)
        self.set_input(node, index, constant)

    def set_input(self, node: gs.Node, index: int, tensor: gs.Tensor) -> None:
        """Replace one input of a node; the tensor it read forgets it at the next `drop`."""
        old = node.inputs[index]
        self._stale[id(old)] = old
        list.__setitem__(node.inputs, index, tensor)
        list.append(tensor.outputs, node)

    def keep_inputs(self, node: gs.Node, count: int) -> None:
        """Let a node read its first ``count`` inputs only; the others forget it at the next `drop`."""
        self._stale |= {id(tensor): tensor for tensor in node.inputs[count:]}
        _set(node.inputs, node.inputs[:count])

    def fresh(self, name: str) -> str:
        """``name``, or with a number appended if a tensor has it already."""
        if self._taken is None:
            self._taken = {
                tensor.name for node in self.graph.nodes for tensor in (*node.inputs, *node.outputs)
            }
            self._taken |= self.captured | {tensor.name for tensor in self.graph.inputs}
        result, number = name, self._numbers.get(name, 2)
        while result in self._taken:
            number, result = number + 1, f"{name}__{number}"
        self._numbers[name] = number
        self._taken.add(result)
        return result

    def bypass(self, node: gs.Node, source: gs.Tensor) -> bool:
        """Let everything that reads the node's first output read ``source`` instead.

        Where that output is a graph output, its name moves to the producer of ``source``. Nothing happens, and False is
        returned, where a name would have to change. The node itself is left for `drop`.
        """
        target = node.outputs[0]
        if target.name in self.captured:
            return False
        if target.name not in self.outputs:
            move_consumers(target, source)
            return True
        if self.is_bound(source) or self.is_input(source) or len(source.inputs) != 1:
            return False
        producer = source.inputs[0]
        position = next(k for k, tensor in enumerate(producer.outputs) if tensor is source)
        _set(target.inputs, [])
        _set(source.inputs, [])
        list.__setitem__(producer.outputs, position, target)
        list.append(target.inputs, producer)
        _set(source.outputs, [reader for reader in source.outputs if reader is not node])
        _set(node.inputs, [])
        _set(node.outputs, [])
        move_consumers(source, target)
        return True

    def drop(self, dead: Iterable[gs.Node]) -> int:
        """Remove nodes and return how many; their tensors forget them."""
        gone = {id(node) for node in dead}
        touched, self._stale = self._stale, {}
        for node in self.graph.nodes:
            if id(node) in gone:
                touched |= {
                    id(tensor): tensor for tensor in (*node.inputs, *node.outputs, *body_tensors(node))
                }
                gone |= {id(inner) for inner in body_nodes(node)}
        for tensor in touched.values():
            readers = {id(node): node for node in tensor.outputs if id(node) not in gone}.values()
            _set(tensor.outputs, [node for node in readers for other in node.inputs if other is tensor])
            _set(tensor.inputs, [node for node in tensor.inputs if id(node) not in gone])
        before = len(self.graph.nodes)
        self.graph.nodes = [node for node in self.graph.nodes if id(node) not in gone]
        return before - len(self.graph.nodes)


def set_output(node: gs.Node, tensor: gs.Tensor) -> None:
    """Let ``tensor`` be the first output of ``node`` instead of the one it had; its former producer loses it."""
    for former in tensor.inputs:
        _set(former.outputs, [other for other in former.outputs if other is not tensor])
    _set(node.outputs[0].inputs, [])
    list.__setitem__(node.outputs, 0, tensor)
    _set(tensor.inputs, [node])


def move_consumers(old: gs.Tensor, new: gs.Tensor) -> None:
    """Let everything that reads ``old`` read ``new``."""
    readers = list(old.outputs)
    for reader in {id(node): node for node in readers}.values():
        for index, tensor in enumerate(reader.inputs):
            if tensor is old:
                list.__setitem__(reader.inputs, index, new)
    list.extend(new.outputs, readers)
    _set(old.outputs, [])


def body_nodes(node: gs.Node) -> Iterator[gs.Node]:
    """All nodes inside a node's bodies, however deep."""
    for body in bodies(node):
        for inner in body.nodes:
            yield inner
            yield from body_nodes(inner)


def body_tensors(node: gs.Node) -> Iterator[gs.Tensor]:
    """All tensors that a node's bodies mention, however deep, repeated as often as they are mentioned."""
    for inner in body_nodes(node):
        yield from inner.inputs
        yield from inner.outputs
    for body in bodies(node):
        yield from body.outputs
    for inner in body_nodes(node):
        for body in bodies(inner):
            yield from body.outputs


def captured_names(node: gs.Node) -> set[str]:
    """The names that a node's bodies mention: a superset of what they take from outside."""
    return {tensor.name for tensor in body_tensors(node) if tensor.name} if node.attrs else set()


def fixed_values(tensor: gs.Tensor) -> NDArray[Any] | None:
    """The values of a constant as an array that must not be written into, or None for anything else."""
    return peek(tensor) if isinstance(tensor, gs.Constant) else None


def _holds(constant: gs.Constant, values: NDArray[Any] | DerivedValues) -> bool:
    """Whether these are the constant's values, type and all."""
    if tuple(constant.shape) != tuple(values.shape) or constant.dtype != values.dtype:
        return False
    return np.array_equal(peek(constant), values if isinstance(values, np.ndarray) else values.load())


def _set(connections: list[Any], items: list[Any]) -> None:
    """Overwrite one side of a connection; the caller sees to the other side."""
    list.clear(connections)
    list.extend(connections, items)
