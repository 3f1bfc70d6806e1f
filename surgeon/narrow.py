"""Feeds and outputs of a model whose caches were cut: what is left of them, and what stands in for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Kept = Mapping[str, Mapping[int, Sequence[int]]]
    Arrays = dict[str, NDArray[Any]]


def narrowed(arrays: Mapping[str, NDArray[Any]], kept: Kept) -> Arrays:
    """The arrays without what is not kept.

    Args:
        arrays: Feeds or outputs of the original model by name.
        kept: For each input and output that shrinks, per axis the indices kept.
    """
    return {name: _taken(array, kept.get(name, {})) for name, array in arrays.items()}


def zeroed(arrays: Mapping[str, NDArray[Any]], kept: Kept) -> Arrays:
    """The arrays with zeros where nothing is kept, as the masked original would have handed them out."""
    result = {}
    for name, array in arrays.items():
        result[name] = array
        for axis, indices in kept.get(name, {}).items():
            removed = np.setdiff1d(np.arange(array.shape[axis]), np.asarray(indices, dtype=np.int64))
            result[name] = result[name].copy()
            result[name][(slice(None),) * axis + (removed,)] = 0
    return result


def _taken(array: NDArray[Any], axes: Mapping[int, Sequence[int]]) -> NDArray[Any]:
    for axis, indices in axes.items():
        array = np.take(array, np.asarray(indices, dtype=np.int64), axis=axis)
    return array
