"""How much information is lost by cutting a histogram off and rounding what is left: Kullback-Leibler divergences.

Source: S. Migacz, "8-bit inference with TensorRT", GTC 2017.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

NOTHING = (
    1e-4  # what a level counts that is needed and that nothing falls into; onnxruntime smooths by as much
)


def divergences(counts: Array, *, levels: int, before: float = 0.0, step: int = 1) -> tuple[Array, Array]:
    """Tries every number of bins that are kept, from as many as there are levels to all.

    Keeping n bins, P is what the bins hold, where values beyond have been added to the last bin and ``before`` to the
    first. For Q the n bins, without what was cut off, are merged into levels, level l having the bins from
    ``l * n // levels``; what a level holds is then spread evenly over those of its bins where P is not zero. The
    divergence is ``sum P log(P / Q)``, both normalised.

    Args:
        counts: What the bins hold, ``[bins]``.
        levels: How many values there are after rounding.
        before: What has been cut off at the other end.
        step: Try every step-th number only; all bins are always tried.

    Returns:
        The numbers of bins that are kept, ``[tried]``, and their divergences in nats. With fewer bins than levels
        nothing is lost, and only all bins are tried. Keeping nothing but empty bins loses infinitely much.
    """
    bins = len(counts)
    if bins <= levels:
        return np.array([bins]), np.zeros(1)
    kept = np.unique(np.append(np.arange(levels, bins, step), bins))
    inside = np.append(0.0, np.cumsum(counts, dtype=np.float64))
    total = inside[-1] + before
    first = np.where(np.arange(bins) == 0, before, 0.0) + counts
    # sums over bins of P log P, of its non-zero bins, and of P: all but the last bin of each n
    logs = np.append(0.0, np.cumsum(_self_information(first)))
    filled = np.append(0, np.cumsum(first > 0))
    last = first[kept - 1] + (inside[-1] - inside[kept])
    own = logs[kept - 1] + _self_information(last)
    edges = np.arange(levels + 1) * kept[:, np.newaxis] // levels  # [tried, levels + 1]
    held = np.diff(inside[edges], axis=1)
    true = held.copy()
    true[:, 0] += before
    true[:, -1] += inside[-1] - inside[kept]
    places = np.diff(filled[edges], axis=1)
    places[:, -1] += (last > 0) & (first[kept - 1] == 0)
    spread = np.log(np.maximum(held, NOTHING) / np.maximum(places, 1))
    cross = (true * spread).sum(axis=1)
    within = np.maximum(held, np.where(true > 0, NOTHING, 0.0)).sum(axis=1)
    some = inside[kept] > 0
    lost = np.full(len(kept), np.inf)
    if some.any():
        lost[some] = (own - cross)[some] / total - np.log(total / within[some])
    return kept, lost


def _self_information(counts: Array) -> Array:
    """``x log x``, zero for zero."""
    safe = np.where(counts > 0, counts, 1.0)
    return np.asarray(safe * np.log(safe))
