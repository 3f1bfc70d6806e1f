"""How many zeros each weight gets, so that the errors of all together are least."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from surgeon_passes.sparsifying.curves import LEVELS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from surgeon_passes.sparsifying.curves import Curve


def spread(curves: Mapping[str, Curve], zeros: float) -> dict[str, float]:
    """The fraction of zeros of each weight, ``zeros`` of all together.

    Errors are taken to add up, and to grow evenly between the levels that were measured. Then the least sum follows from
    taking steps along the lower convex hulls of all curves, the one that costs least for each zero first.

    Args:
        curves: By name of the weight.
        zeros: How many of all their numbers are to be zero; at most the last of the levels of each.
    """
    steps = []
    for name, curve in curves.items():
        points = _hull([0.0, *LEVELS], [0.0, *(error * curve.share for error in curve.errors)])
        for (low, before), (high, after) in itertools.pairwise(points):
            count = (high - low) * curve.size
            steps.append(((after - before) / count, name, low, high, count))
    steps.sort(key=lambda step: step[0])
    left = zeros
    result = dict.fromkeys(curves, 0.0)
    for _, name, low, high, count in steps:
        part = min(1.0, left / count)
        result[name] = low + part * (high - low)
        left -= part * count
        if part < 1:
            break
    return result


def _hull(across: Sequence[float], up: Sequence[float]) -> list[tuple[float, float]]:
    """The lower convex hull of points whose first coordinates ascend."""
    points: list[tuple[float, float]] = []
    for point in zip(across, np.maximum.accumulate(up).tolist(), strict=True):
        while len(points) > 1 and _above(points[-2], points[-1], point):
            points.pop()
        points.append(point)
    return points


def _above(first: tuple[float, float], middle: tuple[float, float], last: tuple[float, float]) -> bool:
    """Whether the middle point is on or above the line from the first to the last."""
    slope = (last[1] - first[1]) / (last[0] - first[0])
    return middle[1] >= first[1] + slope * (middle[0] - first[0])
