"""What remains of an axis when indices of its atoms are removed: masks, sizes and coordinates."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from surgeon.axes.expression import Atom, Axis, Concat, Product, Selection, normal

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
    """The coordinate of every position of ``axis`` in ``atom``; see `Coordinates`."""
    return Coordinates(axis).of(atom)


class Coordinates:
    """The coordinates of every position of an axis in each of its atoms, found in one pass over the axis."""

    def __init__(self, axis: Axis) -> None:
        self.size = axis.size
        self._found = _occurrences(axis)

    def of(self, atom: Atom) -> list[NDArray[np.int64]]:
        """The coordinate of every position in ``atom``.

        Returns:
            One int64 array ``[axis.size]`` for each time the atom occurs along a product (usually one; none where it
            does not occur at all); -1 where the position does not depend on that occurrence.
        """
        result = []
        for places, indices in self._found.get(atom, ()):
            dense = np.full(self.size, -1, np.int64)
            dense[places] = indices
            result.append(dense)
        return result


# Positions of an axis, and for each the index of the atom it belongs to.
_Places: TypeAlias = "tuple[NDArray[np.int64], NDArray[np.int64]]"


def _occurrences(axis: Axis) -> dict[Atom, list[_Places]]:
    """Where each atom occurs, once for each time that it does along a product."""
    axis = normal(axis)
    if isinstance(axis, Atom):
        every = np.arange(axis.size, dtype=np.int64)
        return {axis: [(every, every)]}
    if isinstance(axis, Selection):
        return _of_selection(axis)
    return _of_concat(axis) if isinstance(axis, Concat) else _of_product(axis)


def _of_selection(axis: Selection) -> dict[Atom, list[_Places]]:
    result: dict[Atom, list[_Places]] = {}
    for atom, found in _occurrences(axis.base).items():
        result[atom] = []
        for places, indices in found:
            dense = np.full(axis.base.size, -1, np.int64)
            dense[places] = indices
            picked = dense[axis.indices]
            here = np.flatnonzero(picked >= 0)
            result[atom].append((here, picked[here]))
    return result


def _of_concat(axis: Concat) -> dict[Atom, list[_Places]]:
    """What occurs in several parts is joined: the first time in each of them, the second time, and so on."""
    joined: dict[Atom, list[list[_Places]]] = {}
    start = 0
    for part in axis.parts:
        for atom, found in _occurrences(part).items():
            several = joined.setdefault(atom, [])
            for number, (places, indices) in enumerate(found):
                if number == len(several):
                    several.append([])
                several[number].append((places + start, indices))
        start += part.size
    return {
        atom: [
            pieces[0]
            if len(pieces) == 1
            else (np.concatenate([p for p, _ in pieces]), np.concatenate([i for _, i in pieces]))
            for pieces in several
        ]
        for atom, several in joined.items()
    }


def _of_product(axis: Product) -> dict[Atom, list[_Places]]:
    result: dict[Atom, list[_Places]] = {}
    slower = 1
    for factor in axis.factors:
        faster = axis.size // (slower * factor.size) if factor.size else 0
        blocks = np.arange(slower, dtype=np.int64)[:, None, None] * (factor.size * faster)
        inside = np.arange(faster, dtype=np.int64)
        for atom, found in _occurrences(factor).items():
            for places, indices in found:
                every = blocks + places[:, None] * faster + inside
                spread = np.broadcast_to(indices[:, None], every.shape)
                result.setdefault(atom, []).append((every.ravel(), spread.ravel()))
        slower *= factor.size
    return result
