"""Mirrored images as further samples, where a model hardly tells them from those that were mirrored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    Feeds = Mapping[str, NDArray[Any]]

MOST_CHANNELS, SMALLEST = 4, 16  # of what is taken for an image
ALIKE = 0.5  # of the outputs' variance; what does not know left from right stays far below
LOOKED_AT = 4  # batches


def mirrored(feeds: Sequence[Feeds]) -> list[dict[str, NDArray[Any]]] | None:
    """The same batches with left and right exchanged, or None where some input is no image."""
    axes = {name: _width(array) for name, array in feeds[0].items()}
    if any(axis is None for axis in axes.values()):
        return None
    return [
        {name: np.ascontiguousarray(np.flip(array, axes[name])) for name, array in batch.items()}
        for batch in feeds
    ]


def is_symmetric(graph: gs.Graph, feeds: Sequence[Feeds], twins: Sequence[Feeds], threads: int = 1) -> bool:
    """Whether a model puts out nearly the same for mirrored images, compared with how samples differ.

    Args:
        graph: The model.
        feeds: Batches.
        twins: The same, mirrored.
        threads: Threads for onnxruntime.
    """
    runner = session(to_model(graph), threads=threads)
    pairs = [
        (run(runner, batch), run(runner, twin))
        for batch, twin in zip(feeds[:LOOKED_AT], twins[:LOOKED_AT], strict=True)
    ]
    for outputs in zip(*(zip(*pair, strict=True) for pair in pairs), strict=True):
        if np.asarray(outputs[0][0]).dtype.kind != "f" or np.ndim(outputs[0][0]) == 0:
            continue
        one, other = (np.concatenate([np.asarray(pair[k], np.float64) for pair in outputs]) for k in (0, 1))
        spread = np.square(one - one.mean(axis=0)).sum()
        if not np.square(one - other).sum() < ALIKE * spread:
            return False
    return True


def _width(array: NDArray[Any]) -> int | None:
    """The axis from left to right of images ``[N, C, H, W]`` or ``[N, H, W, C]``."""
    if array.ndim != 4 or array.dtype.kind not in "fu":
        return None
    if array.shape[1] <= MOST_CHANNELS and min(array.shape[2:]) >= SMALLEST:
        return 3
    if array.shape[3] <= MOST_CHANNELS and min(array.shape[1:3]) >= SMALLEST:
        return 2
    return None
