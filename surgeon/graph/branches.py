"""Branches decided beforehand: those an If always takes, in the If's place; and all of them, for trying both ways."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.graph.copy import copy_of
from surgeon.graph.order import bodies, every_node, graphs
from surgeon.graph.weights import peek

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from surgeon.graph.shapes import Shapes


def inline_branches(graph: gs.Graph, shapes: Shapes) -> int:
    """Replaces every If whose condition is the same for every input of the model; returns how many there were.

    Tensors keep their names, and so do the outputs of the If; a node whose name another one has is named ``NAME__2`` and so
    on. Exporters write ``squeeze`` as an If on the size of the squeezed axis.
    """
    taken, before = 0, {id(node) for node in graph.nodes}
    pending, done = list(reversed(graph.nodes)), []
    while pending:
        node = pending.pop()
        condition = _condition(node, shapes)
        if condition is None:
            done.append(node)
            continue
        taken += 1
        pending += reversed(_spliced(node, node.attrs["then_branch" if condition else "else_branch"]))
    if taken:
        old = [node for node in done if id(node) in before]
        _name_apart(old, [node for node in done if id(node) not in before])
        graph.nodes = done
    return taken + sum(inline_branches(body, shapes) for node in done for body in bodies(node))


def _condition(node: gs.Node, shapes: Shapes) -> bool | None:
    if node.op != "If" or node.domain:
        return None
    tensor = node.inputs[0]
    if isinstance(tensor, gs.Constant):
        return bool(peek(tensor).reshape(-1)[0])
    known = shapes.values.get(tensor.name)
    return bool(known.data.reshape(-1)[0]) if known is not None and known.static and known.data.size else None


def _spliced(node: gs.Node, branch: gs.Graph) -> list[gs.Node]:
    """The nodes of a branch, making the outputs of the If; the If and its branches are taken apart."""
    inside = list(branch.nodes)
    made = {id(tensor) for inner in inside for tensor in inner.outputs}
    outputs = list(node.outputs)
    for other in node.attrs.values():
        if isinstance(other, gs.Graph) and other is not branch:
            _take_apart(other)
    node.attrs.clear()
    node.inputs.clear()
    node.outputs.clear()
    renamed: dict[int, gs.Tensor] = {}
    for output, result in zip(outputs, branch.outputs, strict=True):
        if not output.name:
            continue
        if id(result) in made and id(result) not in renamed:
            renamed[id(result)] = output
            (maker,) = result.inputs
            maker.outputs[_place(maker.outputs, result)] = output
            for user in list(result.outputs):
                for index in [k for k, tensor in enumerate(user.inputs) if tensor is result]:
                    user.inputs[index] = output
        else:
            inside.append(gs.Node("Identity", output.name, {}, [renamed.get(id(result), result)], [output]))
    return inside


def _name_apart(old: Iterable[gs.Node], new: Sequence[gs.Node]) -> None:
    """Names in branches beside each other may be equal, those in one graph may not."""
    taken = {node.name for node in old}
    known = taken | {node.name for node in new}
    for node in new:
        if node.name and node.name in taken:
            number = next(number for number in count(2) if f"{node.name}__{number}" not in known)
            node.name = f"{node.name}__{number}"
            known.add(node.name)
        taken.add(node.name)


def _place(tensors: list[gs.Tensor], wanted: gs.Tensor) -> int:
    return next(k for k, tensor in enumerate(tensors) if tensor is wanted)


def _take_apart(graph: gs.Graph) -> None:
    """Its nodes no longer count as users of the tensors around them."""
    for each in graphs(graph):
        for node in each.nodes:
            node.inputs.clear()
            node.outputs.clear()


def decided(graph: gs.Graph, condition: bool) -> gs.Graph | None:
    """A copy in which every If takes the same branch, whatever it depends on; None where there is no If."""
    if not any(node.op == "If" and not node.domain for node in every_node(graph)):
        return None
    copy = copy_of(graph)
    constant = gs.Constant("surgeon/condition", np.array(condition))
    for node in every_node(copy):
        if node.op == "If" and not node.domain:
            node.inputs[0] = constant
    return copy
