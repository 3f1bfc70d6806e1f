"""Caches and recurrent states: graph outputs that a later call of the model gets back as graph inputs.

They are found by structure, never by name: a graph input reaches an operator that carries it on (a Concat with
something computed, attention with a past, a recurrent layer, a loop), with nothing but views in between, and what
that operator hands on is a graph output, or part of one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from surgeon.analysis import Tie

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from surgeon.analysis import Analysis
    from surgeon.ops import Op

VIEWS = frozenset(
    {
        "Identity",
        "Cast",
        "Transpose",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Gather",
        "Slice",
        "Split",
        "Flatten",
    }
)
# What may still happen to a state before it is handed out.
FINISHING = VIEWS | {"Concat", "Add", "Sub", "Mul"}
LEAST_RANK = 2


def find_states(analysis: Analysis) -> list[Tie]:
    """The axes of fixed size of all caches and recurrent states; each graph input has at most one output."""
    users: dict[str, list[Op]] = {}
    for op in analysis.ops:
        for name in {tensor.name for tensor in op.node.inputs if tensor.name}:
            users.setdefault(name, []).append(op)
    outputs = {tensor.name for tensor in analysis.graph.outputs}
    result: list[Tie] = []
    for tensor in analysis.graph.inputs:
        handed_on = _handed_on(_reached([tensor.name], VIEWS, users), users)
        for name in _reached(handed_on, FINISHING, users):
            axes = _common_axes(analysis, tensor.name, name) if name in outputs else ()
            if axes:
                result += [Tie(tensor.name, name, axis) for axis in axes]
                break
    return result


def _reached(names: Iterable[str], operators: frozenset[str], users: dict[str, list[Op]]) -> list[str]:
    """The tensors that ``names`` become through these operators, themselves included, in order of discovery."""
    found = dict.fromkeys(names)
    pending = list(found)
    while pending:
        name = pending.pop(0)
        for op in users.get(name, ()):
            data = op.node.inputs[:1] if op.node.op in VIEWS else op.node.inputs
            if op.node.op in operators and any(tensor.name == name for tensor in data):
                new = [tensor.name for tensor in op.node.outputs if tensor.name and tensor.name not in found]
                found.update(dict.fromkeys(new))
                pending += new
    return list(found)


def _handed_on(names: Iterable[str], users: dict[str, list[Op]]) -> Iterator[str]:
    """What the operators that carry one of ``names`` on make of it."""
    for name in names:
        for op in users.get(name, ()):
            for index, output in op.facts.carries.items():
                given = index < len(op.node.inputs) and op.node.inputs[index].name == name
                if given and output < len(op.node.outputs) and _adds_something(op, index):
                    yield op.node.outputs[output].name


def _adds_something(op: Op, index: int) -> bool:
    """Whether a Concat puts something computed beside its input ``index``, and not only padding."""
    if op.node.op != "Concat":
        return True
    others = [tensor for k, tensor in enumerate(op.node.inputs) if k != index]
    return any(not isinstance(tensor, gs.Constant) and tensor.inputs for tensor in others)


def _common_axes(analysis: Analysis, first: str, second: str) -> tuple[int, ...]:
    """The axes of a fixed size that two tensors of one rank have in common; none where any differs."""
    one, two = analysis.axes.get(first), analysis.axes.get(second)
    if one is None or two is None or not LEAST_RANK <= len(one) == len(two):
        return ()
    moving = analysis.shapes.dynamic.get(first, ()), analysis.shapes.dynamic.get(second, ())
    return tuple(
        k
        for k, (a, b) in enumerate(zip(one, two, strict=True))
        if a.size == b.size > 1 and not any(flags[k] for flags in moving)
    )
