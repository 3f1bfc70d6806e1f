"""What remains of an axis when indices of its atoms are removed: masks, sizes and coordinates."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from surgeon.axes.expression import Atom, Axis, Concat, Product, Selection, atoms_of, normal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

Keep: TypeAlias = "Mapping[Atom, NDArray[np.bool_]]"


def mask(axis: Axis, keep: Keep) -> NDArray[np.bool_]:
    """Which positions of ``axis`` stay.

    Args:
        axis: Any axis expression.
        keep: Boolean array ``[atom.size]`` for each atom that is cut; atoms not named stay whole.

    Returns:
        Boolean array ``[axis.size]``.
    """
    axis = normal(axis)
    if isinstance(axis, Atom):
        kept = keep.get(axis)
        return np.ones(axis.size, bool) if kept is None else kept
    if isinstance(axis, Selection):
        return mask(axis.base, keep)[axis.indices]
    if isinstance(axis, Concat):
        return np.concatenate([mask(part, keep) for part in axis.parts]) if axis.parts else np.ones(0, bool)
    result = np.ones(1, bool)
    for factor in axis.factors:
        result = np.logical_and.outer(result, mask(factor, keep)).ravel()
    return result


def count(axis: Axis, sizes: Mapping[Atom, float]) -> float:
    """The size of ``axis`` when its atoms have ``sizes``; a polynomial in them (selections shrink with their base)."""
    axis = normal(axis)
    if isinstance(axis, Atom):
        return sizes.get(axis, axis.size)
    if isinstance(axis, Selection):
        return count(axis.base, sizes) * axis.size / axis.base.size
    if isinstance(axis, Concat):
        return sum(count(part, sizes) for part in axis.parts)
    return reduce(lambda total, factor: total * count(factor, sizes), axis.factors, 1.0)


def coordinates(axis: Axis, atom: Atom) -> list[NDArray[np.int64]]:
    """The coordinate of every position of ``axis`` in ``atom``.

    Returns:
        One int64 array ``[axis.size]`` for each time the atom occurs along a product (usually one; none where it does
        not occur at all); -1 where the position does not depend on that occurrence.
    """
    axis = normal(axis)
    if isinstance(axis, Atom):
        return [np.arange(axis.size, dtype=np.int64)] if axis is atom else []
    if all(other is not atom for other in atoms_of(axis)):
        return []
    if isinstance(axis, Selection):
        return [found[axis.indices] for found in coordinates(axis.base, atom)]
    if isinstance(axis, Concat):
        return _concat_coordinates(axis, atom)
    return _product_coordinates(axis, atom)


def _concat_coordinates(axis: Concat, atom: Atom) -> list[NDArray[np.int64]]:
    found = [coordinates(part, atom) for part in axis.parts]
    return [
        np.concatenate(
            [
                each[k] if k < len(each) else np.full(part.size, -1, np.int64)
                for part, each in zip(axis.parts, found, strict=True)
            ]
        )
        for k in range(max(map(len, found)))
    ]


def _product_coordinates(axis: Product, atom: Atom) -> list[NDArray[np.int64]]:
    result: list[NDArray[np.int64]] = []
    slower = 1
    for factor in axis.factors:
        faster = axis.size // (slower * factor.size) if factor.size else 0
        result += [np.tile(np.repeat(each, faster), slower) for each in coordinates(factor, atom)]
        slower *= factor.size
    return result
