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
    return {
        group.id: [
            _positions((model.analysis.axes[name] or [])[axis], group.atom)
            for name, axis in group.members
            if name in weights
        ]
        for group in groups
    }


def _positions(axis: Axis, atom: Atom) -> int:
    axis = normal(axis)
    if isinstance(axis, Concat):
        return sum(_positions(part, atom) for part in axis.parts)
    if isinstance(axis, Product):
        return sum(_positions(factor, atom) * (axis.size // factor.size) for factor in axis.factors)
    if isinstance(axis, Selection):
        return _positions(axis.base, atom) * axis.size // axis.base.size
    return int(axis is atom)
