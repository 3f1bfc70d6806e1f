"""Seeded random inputs shaped like a graph's inputs, for probes and for runs without data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from surgeon.errors import UnsupportedModelError
from surgeon.stats.chunks import Array, Chunk, Feeds, Input, InputLike, inputs_of
from surgeon.stats.data import Dataset, from_chunks

Bounds = Mapping[str, tuple[int, int]]
_MOST_VALUES = 2**28  # a gigabyte: no probe is meant to take that
_OTHER = 8  # size of a dynamic dimension nobody gave a size for
_BOUNDS = (0, 40)  # small enough for every vocabulary, position table and class list seen in practice


def synthetic(
    inputs: Sequence[InputLike],
    seed: int,
    batch: int = 1,
    sizes: Mapping[str, int] | None = None,
    bounds: Bounds | None = None,
) -> Feeds:
    """Makes one set of feeds.

    Floats are standard normal, integers uniform, booleans true; inputs with "mask" in their name are ones.

    Args:
        inputs: The graph's inputs.
        seed: Seed of the values; an input's values do not depend on the other inputs.
        batch: Size of a dynamic first dimension that ``sizes`` does not name, wherever its symbol occurs.
        sizes: Sizes of symbolic dimensions.
        bounds: For integer inputs by name: least value and the first one beyond the greatest.

    Raises:
        UnsupportedModelError: An input holds neither numbers nor booleans, or more of them than there is memory for.
    """
    feeds: Feeds = {}
    known = inputs_of(inputs)
    firsts = {entry.shape[0] for entry in known if entry.shape}
    given = {first: batch for first in firsts if isinstance(first, str)} | dict(sizes or {})
    for position, entry in enumerate(known):
        shape = tuple(
            _dimension(size, axis, batch=batch, sizes=given) for axis, size in enumerate(entry.shape)
        )
        random = np.random.default_rng([seed, position])
        feeds[entry.name] = _values(entry, shape, random, (bounds or {}).get(entry.name, _BOUNDS))
    return feeds


def synthetic_dataset(
    inputs: Sequence[InputLike],
    seed: int,
    samples: int = 64,
    *,
    batch: int = 8,
    sizes: Mapping[str, int] | None = None,
    bounds: Bounds | None = None,
) -> Dataset:
    """Makes a dataset of about ``samples`` unlabelled random samples."""
    known = inputs_of(inputs)

    def read() -> Iterator[Chunk]:
        for index in range(max(1, -(-samples // batch))):
            yield Chunk(synthetic(known, seed * 1_000_003 + index, batch, sizes, bounds))

    return from_chunks("synthetic data", known, read, batch)


def _dimension(size: int | str | None, axis: int, *, batch: int, sizes: Mapping[str, int]) -> int:
    if isinstance(size, int):
        return size
    if size is not None and size in sizes:
        return sizes[size]
    return batch if axis == 0 else _OTHER


def _values(
    entry: Input, shape: tuple[int, ...], random: np.random.Generator, bounds: tuple[int, int]
) -> Array:
    kind = entry.dtype.kind
    if kind not in "bfiu":
        raise UnsupportedModelError(f"cannot make up values of type {entry.dtype}", where=entry.name)
    if math.prod(shape) > _MOST_VALUES:
        raise UnsupportedModelError(f"is too large to make up values for: {list(shape)}", where=entry.name)
    if kind == "b":
        return np.ones(shape, np.bool_)
    if "mask" in entry.name.lower():
        return np.ones(shape, entry.dtype)
    if kind == "f":
        return random.standard_normal(shape).astype(entry.dtype)
    return random.integers(*bounds, shape).astype(entry.dtype)
