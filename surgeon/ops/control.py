"""Control flow: the axes of bodies follow from those of the node's inputs, the node's outputs from those of bodies.

What a body captures needs no rule: it is the same tensor inside and outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgeon.ops.op import Axes, Op
from surgeon.ops.operator import Barrier
from surgeon.ops.registry import rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surgeon.graph.shapes import Shapes


@rule("If", needs_shapes=False)
def if_(op: Op, cond: Axes | None) -> list[Axes | None]:
    """Either branch may run, so both results are the output."""
    del cond
    then, other = op.enter("then_branch", []), op.enter("else_branch", [])
    for k in range(len(op.node.outputs)):
        op.one_of(k, [op.body_outputs("then_branch")[k], op.body_outputs("else_branch")[k]])
    return [
        _same(op, k, [a, b], "the branches disagree")
        for k, (a, b) in enumerate(zip(then, other, strict=True))
    ]


@rule("Loop", needs_shapes=False)
def loop(op: Op, m: Axes | None, cond: Axes | None, *initial: Axes | None) -> list[Axes | None]:
    """State goes round: before, in, out and after are one; what iterations yield is stacked along a new first axis."""
    del m, cond
    given = [_kept(op, axes, 2 + k) for k, axes in enumerate(initial)]
    found = op.enter("body", [None, None, *given])[1:]
    results = op.body_outputs("body")[1:]
    outputs: list[Axes | None] = []
    for k, axes in enumerate(found):
        if k < len(given):
            op.one_of(k, [op.node.inputs[2 + k].name, results[k]])
            op.carry(2 + k, k)
            outputs.append(
                _same(op, k, [given[k], initial[k], axes], "it changes from one iteration to the next")
            )
        else:
            op.one_of(k, [results[k]])
            outputs.append(_stacked(op, k, axes, 0))
    op.repeats(lambda shapes: _trips(op, shapes))
    return outputs


@rule("Scan", since=9, needs_shapes=False)
def scan(op: Op, *inputs: Axes | None) -> list[Axes | None]:
    """As Loop, along an axis of some inputs: a step sees them without it, and what steps yield gets it back."""
    count = int(op.attribute("num_scan_inputs"))
    states, scans = inputs[: len(inputs) - count], inputs[len(inputs) - count :]
    steps: list[Axes | None] = []
    for axes, along in zip(scans, op.attribute("scan_input_axes") or [0] * count, strict=True):
        if axes is None:
            raise Barrier("the shape of what it runs along is not known")
        op.pin(axes[along], "time steps")
        steps.append([axis for k, axis in enumerate(axes) if k != along % len(axes)])
    op.repeats(lambda shapes: _length(op, shapes, len(states)))
    given = [_kept(op, axes, k) for k, axes in enumerate(states)]
    found = op.enter("body", [*given, *steps])
    results = op.body_outputs("body")
    places = op.attribute("scan_output_axes") or [0] * (len(found) - len(given))
    outputs: list[Axes | None] = []
    for k, axes in enumerate(found):
        if k < len(given):
            op.one_of(k, [op.node.inputs[k].name, results[k]])
            op.carry(k, k)
            outputs.append(_same(op, k, [given[k], states[k], axes], "it changes from one step to the next"))
        else:
            op.one_of(k, [results[k]])
            outputs.append(_stacked(op, k, axes, places[k - len(given)]))
    return outputs


def _kept(op: Op, initial: Axes | None, index: int) -> Axes | None:
    """The axes of state inside the body: those it starts with, unless an iteration changes their number or sizes."""
    inside = op.shapes.dims.get(op.body_input(index))
    if initial is None or inside is None or len(inside) != len(initial):
        return None
    return [
        axis if axis.size == size else op.fixed(size, "it changes from one iteration to the next")
        for axis, size in zip(initial, inside, strict=True)
    ]


def _same(op: Op, index: int, versions: Sequence[Axes | None], why: str) -> Axes | None:
    """Output ``index``, when all of these become it; axes of different sizes must not shrink."""
    known = [axes for axes in versions if axes is not None]
    name = op.node.outputs[index].name
    dims = op.shapes.dims.get(name) if name else tuple(axis.size for axis in known[0]) if known else None
    if dims is None or len(known) < len(versions) or any(len(axes) != len(dims) for axes in known):
        for axes in known:
            op.pin(axes, why)
        return None if dims is None else op.fixed_output(why, index)
    result: Axes = []
    for k, size in enumerate(dims):
        here = [axes[k] for axes in known]
        if any(axis.size != size for axis in here):
            op.pin(here, why)
            result.append(op.fixed(size, why))
            continue
        for other in here[1:]:
            op.unify(here[0], other)
        result.append(here[0])
    return result


def _stacked(op: Op, index: int, axes: Axes | None, place: int) -> Axes | None:
    dims = op.shapes.dims.get(op.node.outputs[index].name)
    if dims is None or axes is None or len(dims) != len(axes) + 1:
        op.pin(axes or [], "stacked to an unknown shape")
        return None if dims is None else op.fixed_output("iterations", index)
    place %= len(dims)
    return [*axes[:place], op.fixed(dims[place], "iterations"), *axes[place:]]


def _trips(op: Op, shapes: Shapes) -> float:
    known = shapes.values.get(op.node.inputs[0].name)
    if known is None:
        fixed = op.value(0) if op.has(0) else None
        return 1.0 if fixed is None else float(fixed.item())
    return float(known.data.item())


def _length(op: Op, shapes: Shapes, index: int) -> float:
    along = (op.attribute("scan_input_axes") or [0])[0]
    dims = shapes.dims.get(op.node.inputs[index].name)
    return float(dims[along]) if dims else 1.0
