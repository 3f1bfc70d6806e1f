"""K-means of numbers, each with a weight of its own: the values of a codebook.

Numbers on a line are sorted once; then each value has a run of them, and a step of Lloyd's algorithm is one search and a
difference of running sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

Start = Literal["k-means++", "linear", "density", "random"]
STEPS = 100
ENOUGH = 1e-7


def kmeans(numbers: Numbers, weights: Numbers, count: int, start: Start, seed: int) -> Numbers:
    """Values such that the weighted squared distances of the numbers from the nearest are small.

    Args:
        numbers: ``[n]``.
        weights: ``[n]``, positive.
        count: How many values.
        start: The first values: linear, evenly from the smallest number to the largest; density, with the same weight
            between each two; random, some of the numbers; k-means++, some that are likely to be far apart (Arthur and
            Vassilvitskii 2007).
        seed: Of what is random in that.

    Returns:
        ``[count]``, ascending; where there are fewer different numbers, these and the last of them again.
    """
    order = np.argsort(numbers, kind="stable")
    numbers, weights = numbers[order], weights[order]
    different = np.unique(numbers)
    if len(different) <= count:
        last = different[-1] if len(different) else 0.0
        return np.concatenate([different, np.full(count - len(different), last)])
    total, moment = (np.concatenate([[0.0], np.cumsum(each)]) for each in (weights, weights * numbers))
    values, before = _first(numbers, weights, count, start, seed), np.inf
    square = float(np.sum(weights * numbers**2))
    for _ in range(STEPS):
        ends = np.concatenate([[0], np.searchsorted(numbers, (values[1:] + values[:-1]) / 2), [len(numbers)]])
        mass, sums = np.diff(total[ends]), np.diff(moment[ends])
        values = np.sort(np.divide(sums, mass, out=values.copy(), where=mass > 0))
        cost = square - float(np.sum(np.divide(sums**2, mass, out=np.zeros_like(sums), where=mass > 0)))
        if not cost < before * (1 - ENOUGH):
            break
        before = cost
    return np.asarray(values)


def _first(numbers: Numbers, weights: Numbers, count: int, start: Start, seed: int) -> Numbers:
    random = np.random.default_rng(seed)
    if start == "linear":
        return np.linspace(numbers[0], numbers[-1], count)
    if start == "density":
        shares = np.cumsum(weights) / np.sum(weights)
        return np.asarray(
            numbers[np.searchsorted(shares, (np.arange(count) + 0.5) / count).clip(0, len(numbers) - 1)]
        )
    if start == "random":
        return np.sort(random.choice(np.unique(numbers), count, replace=False))
    chosen = [float(random.choice(numbers))]
    nearest = np.square(numbers - chosen[0])
    for _ in range(count - 1):
        likely = np.cumsum(nearest * weights)
        place = int(np.searchsorted(likely, random.random() * likely[-1], side="right"))
        chosen.append(float(numbers[min(place, len(numbers) - 1)]))
        nearest = np.minimum(nearest, np.square(numbers - chosen[-1]))
    return np.sort(chosen)
