"""The score ``obs``: the order and the cost of optimal-brain-surgeon elimination, from calibration data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from surgeon.refit.curves import error_curves

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from surgeon.engine import Model
    from surgeon.groups import Group
    from surgeon.passes import Context


def obs_scores(
    model: Model, groups: Sequence[Group], context: Context, memory: int
) -> dict[str, NDArray[np.float64]]:
    """Per group what removing each index adds to the error of its consumers, in the order in which they go best.

    The error is relative to the energy of the streams the consumers write into, so that groups can be compared.
    Groups that no operator with constant weights sums over are left out.
    """
    feeds = [batch[0] for batch in context.calibration()]
    with context.progress("measure", len(model.analysis.ops)) as advance:
        curves = error_curves(
            model.analysis,
            groups,
            feeds,
            seed=context.seed_for("obs"),
            threads=context.threads,
            limit_bytes=memory,
            progress=advance,
        )
    result = {}
    for group in groups:
        curve = curves.get(group.id)
        if curve is not None:
            # a later step never counts less than an earlier one: what goes first has to be the cheapest
            steps = np.maximum.accumulate(np.maximum(curve.steps, 0.0))
            result[group.id] = np.empty(group.size)
            result[group.id][list(curve.order)] = steps * (1 + 1e-9 * np.arange(group.size))
    return result
