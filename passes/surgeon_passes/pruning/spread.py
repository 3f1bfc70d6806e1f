"""In how many weights a group occurs, and how many channels of each go with one of its indices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from surgeon.axes import Concat, Product, Selection, normal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surgeon.axes import Atom, Axis
    from surgeon.engine import Model
    from surgeon.groups import Group


def positions_in_weights(model: Model, groups: Sequence[Group]) -> dict[str, list[int]]:
    """Per group id, for each axis of a weight that mentions the group, its positions per index: head_dim for heads."""
    weights = {
        tensor.name
        for op in model.analysis.ops
        for tensor in op.node.inputs
        if isinstance(tensor, gs.Constant) and len(tensor.shape) > 1
    }
    known: dict[tuple[str, int], dict[Atom, int]] = {}
    result: dict[str, list[int]] = {}
    for group in groups:
        result[group.id] = []
        for place in group.members:
            if place[0] in weights:
                if place not in known:
                    known[place] = _positions((model.analysis.axes[place[0]] or [])[place[1]])
                result[group.id].append(known[place].get(group.atom, 0))
    return result


def _positions(axis: Axis) -> dict[Atom, int]:
    """Positions per index of every atom of an axis."""
    axis = normal(axis)
    result: dict[Atom, int] = {}
    if isinstance(axis, Concat):
        parts = [(part, 1, 1) for part in axis.parts]
    elif isinstance(axis, Product):
        parts = [(factor, axis.size // max(factor.size, 1), 1) for factor in axis.factors]
    elif isinstance(axis, Selection):
        parts = [(axis.base, axis.size, axis.base.size)]
    else:
        return {axis: 1}
    for part, times, over in parts:
        for atom, number in _positions(part).items():
            result[atom] = result.get(atom, 0) + number * times // over
    return result
