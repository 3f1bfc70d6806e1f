"""The model that a smaller one is measured against: its graph, and what of its tensors the smaller one still has."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from surgeon.surgery import axis_masks, keep_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from surgeon.engine import Model
    from surgeon.plan import Plan

    Masks: TypeAlias = Mapping[str, Mapping[int, NDArray[np.bool_]]]


@dataclass(frozen=True)
class Reference:
    """A graph and what is left of its tensors.

    Attributes:
        graph: As it was before anything was cut or changed in value.
        kept: For each tensor that shrank, per axis which positions are left.
        factors: For each tensor whose channels were scaled, what it is multiplied by; broadcastable to what is left of it.
    """

    graph: gs.Graph
    kept: Masks = field(default_factory=dict)
    factors: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def left(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """What is left of a tensor of the graph."""
        for axis, flags in self.kept.get(name, {}).items():
            array = np.compress(flags, array, axis=axis)
        if name in self.factors:
            array = (array * _fitting(self.factors[name], array)).astype(array.dtype)
        return array

    def scaled(self, factors: Mapping[str, NDArray[np.float64]]) -> Reference:
        """The reference after tensors of the smaller model were multiplied by factors."""
        both = {**self.factors}
        for name, array in factors.items():
            both[name] = both[name] * array if name in both else array
        return replace(self, factors=both)


def narrowed(reference: Reference | None, model: Model, plan: Plan) -> Reference:
    """The reference after one more cut.

    Args:
        reference: What it was before; None: the model itself.
        model: What was cut.
        plan: How.
    """
    kept = left_of(model, plan)
    if reference is None or not reference.kept:
        return Reference(model.analysis.graph, kept)
    return Reference(reference.graph, joined(reference.kept, kept), _cut_factors(reference.factors, kept))


def left_of(model: Model, plan: Plan) -> Masks:
    """What a cut leaves: for each tensor that shrinks, per axis which positions."""
    keep = keep_of(plan.kept(), {group.id: group.atom for group in model.groups})
    return {name: masks for name, axes in model.analysis.axes.items() if (masks := axis_masks(axes, keep))}


def joined(first: Masks, later: Masks) -> Masks:
    """Two cuts as one: which positions are left after both, in the coordinates of before the first."""
    result = dict(first)
    for name, masks in later.items():
        before = dict(result.get(name, {}))
        for axis, flags in masks.items():
            whole = before.get(axis, np.ones(len(flags), bool)).copy()
            whole[whole] = flags
            before[axis] = whole
        result[name] = before
    return result


def _fitting(factors: NDArray[np.float64], array: NDArray[Any]) -> NDArray[np.float64]:
    """Factors for an array; along an axis that is longer or shorter (batch times heads) they repeat themselves."""
    for axis, (have, need) in enumerate(zip(factors.shape, array.shape, strict=True)):
        if have not in (1, need):
            period = int(np.gcd(have, need))
            factors = np.repeat(np.take(factors, range(period), axis)[None], need // period, 0)
            factors = np.concatenate(list(factors), axis)
    return factors


def _cut_factors(factors: Mapping[str, NDArray[np.float64]], kept: Masks) -> dict[str, NDArray[np.float64]]:
    result = dict(factors)
    for name in factors.keys() & kept.keys():
        for axis, flags in kept[name].items():
            if result[name].shape[axis] == len(flags):
                result[name] = np.compress(flags, result[name], axis=axis)
    return result
