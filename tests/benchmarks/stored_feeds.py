"""Calibration batches in a folder of .npz files, one file for each batch, so that every quantizer reads the same ones.

Also a ``--data`` file of ``surgeon run``: the folder is named by SURGEON_FEEDS. Needs numpy and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feeds = dict[str, NDArray[Any]]


def samples_in(feeds: Mapping[str, NDArray[Any]]) -> int:
    """How many samples a batch holds: the first dimension, where all inputs have the same; otherwise it is one."""
    sizes = {array.shape[0] if array.ndim else 1 for array in feeds.values()}
    return sizes.pop() if len(sizes) == 1 else 1


def part(feeds: Mapping[str, NDArray[Any]], start: int, stop: int) -> Feeds:
    """Samples ``start`` to ``stop`` of a batch of several."""
    return {name: array[start:stop] for name, array in feeds.items()}


def singles(batches: Iterable[Feeds]) -> Iterator[Feeds]:
    """One sample at a time."""
    for feeds in batches:
        count = samples_in(feeds)
        if count == 1:
            yield feeds
        else:
            yield from (part(feeds, k, k + 1) for k in range(count))


def limited(batches: Iterable[Feeds], samples: int) -> Iterator[Feeds]:
    """The first so many samples, in the batches they come in; the last one may be cut."""
    left = samples
    for feeds in batches:
        if left <= 0:
            return
        count = samples_in(feeds)
        yield feeds if count <= left else part(feeds, 0, left)
        left -= count


def store(batches: Iterable[Feeds], folder: Path) -> int:
    """Writes batches into a folder; returns the number of samples."""
    count = 0
    for index, feeds in enumerate(batches):
        np.savez(folder / f"{index:05d}.npz", **feeds)
        count += samples_in(feeds)
    return count


def stored(folder: Path) -> Iterator[Feeds]:
    """The batches of a folder; one is in memory at a time."""
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as arrays:
            yield dict(arrays)


def calibration() -> Iterator[Feeds]:
    """The batches of the folder that SURGEON_FEEDS names."""
    yield from stored(Path(os.environ["SURGEON_FEEDS"]))
