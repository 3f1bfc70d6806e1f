"""What a split does to the model's outputs: some operators are split alone, what is behind is refitted, the outputs compared.

An error curve ends at the operator's own outputs. What of it arrives at the model's depends on what comes behind. As in
`surgeon.refit.sensitivity` the comparison is made after a quick refit, and some operators stand for their neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from surgeon_passes.factorizing.curves import Way

PROBES = 16
TYPICAL = 0.03  # the error that operators are tried at: well above noise, and not far beyond what is split in the end
LEAST = 1e-6
SAMPLES = 128


def sensitivities(
    ways: Mapping[str, Sequence[Way]], outputs: Callable[[str, Way], float]
) -> dict[str, float]:
    """The error of the model's outputs over that of the operator, for each operator.

    Args:
        ways: What can become of operators, by first output and in order; the first is the whole.
        outputs: The error of the outputs with one operator split alone and what is behind it refitted.
    """
    names = list(ways)
    if len(names) < 2:
        return dict.fromkeys(names, 1.0)
    chosen = sorted({round(each) for each in np.linspace(0, len(names) - 1, PROBES)})
    found = []
    for k in chosen:
        way = tried(ways[names[k]])
        found.append(max(outputs(names[k], way), LEAST) / max(way.error, LEAST))
    logarithms = np.log(np.array(found))
    known = np.isfinite(logarithms)
    if not known.any():
        return dict.fromkeys(names, 1.0)
    weights = np.exp(np.interp(range(len(names)), np.array(chosen)[known], logarithms[known]))
    return dict(zip(names, map(float, weights), strict=True))


def tried(ways: Sequence[Way]) -> Way:
    """The way of an operator that it is tried with."""
    return min(ways[1:], key=lambda way: abs(np.log(max(way.error, LEAST) / TYPICAL)))
