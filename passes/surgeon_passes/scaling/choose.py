"""Choosing factors: activations' ranges against those of weights, by what rounding is foretold to cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon_passes.scaling.noise import Noise, Weight

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.scaling.classes import Class
    from surgeon.scaling.fields import Scaling
    from surgeon.scaling.ranges import Range

    Array = NDArray[Any]

POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
FLOOR = (
    1e-2  # channels smaller than this part of the largest count as this: what is hardly seen may still come
)
GAIN = 0.99  # factors are taken where they leave less than this part of the error
SWEEPS = 10


@dataclass(frozen=True)
class Chosen:
    """What was chosen for one class: errors as foretold and how uneven its channels are, before and after."""

    error: tuple[float, float]
    spread: tuple[float, float]


def candidate(size: Array, weight: Array, activation_power: float, weight_power: float) -> Array:
    """Factors ``weight^q / size^p`` (SmoothQuant: p = α, q = 1 - α), their geometric mean 1."""
    small, light = (np.maximum(each / max(each.max(), 1e-30), FLOOR) for each in (size, weight))
    logarithms = weight_power * np.log(light) - activation_power * np.log(small)
    return np.asarray(np.exp(logarithms - logarithms.mean()))


def equalized(
    classes: Sequence[Class], scaling: Scaling, ranges: Mapping[str, Range], *, per_channel: bool
) -> tuple[Array, dict[str, Chosen]]:
    """Choose the factors of all classes, over and over until nothing changes: neighbours share weights.

    Returns:
        ``[scaling.size]`` factors, and what was chosen by name of class, for those that were changed.
    """
    factors = np.ones(scaling.size)
    demands = {id(d): d for each in classes for d in (*each.readers, *each.writers)}
    weights = {key: Weight.of(demand, ranges) for key, demand in demands.items()}
    noises = [Noise(each, scaling, ranges, weights, per_channel=per_channel) for each in classes]
    before = [(noise(factors), noise.spread(factors)) for noise in noises]
    for _ in range(SWEEPS):
        moved = [_improve(noise, factors) for noise in noises]
        if not any(moved):
            break
    found = {}
    for each, noise, (error, spread) in zip(classes, noises, before, strict=True):
        if not np.all(factors[each.labels] == 1):
            found[each.name] = Chosen((error, noise(factors)), (spread, noise.spread(factors)))
    return factors, found


def _improve(noise: Noise, factors: Array) -> bool:
    """Give one class the best of the candidates, in place, if it is clearly better than what it has."""
    size, weight = noise.magnitudes(factors)
    if not size.any() or not weight.any():
        return False
    best: Array | None = None
    least = noise(factors) * GAIN
    own = factors[noise.labels]
    trial = factors.copy()
    for p in POWERS:
        for q in POWERS:
            trial[noise.labels] = own * candidate(size, weight, p, q)
            error = noise(trial)
            if error < least:
                least, best = error, trial[noise.labels].copy()
    if best is None:
        return False
    factors[noise.labels] = best
    return True
