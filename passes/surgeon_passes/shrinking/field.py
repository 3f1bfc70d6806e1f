"""The groups and operators between which a target is shared out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from surgeon_passes.pruning.choose import candidates_of
from surgeon_passes.shrinking.share import Operator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surgeon.allocate import Candidate
    from surgeon.analysis import Analysis
    from surgeon_passes.factorizing.curves import Curves
    from surgeon_passes.factorizing.splits import Divisible
    from surgeon_passes.pruning.cutting import Cutting

UNKNOWN = "what its removal does to the outputs is not known: no product with finite inputs sums over it"


def comparable(cutting: Cutting) -> tuple[list[Candidate], dict[str, str]]:
    """The groups whose scores are errors of the model's outputs, and why others stay whole."""
    found = candidates_of(cutting.options, cutting.model, cutting.context, cutting.ranking, cutting.refused)
    curves = cutting.ranking.eliminator.curves
    able = [each for each in found.candidates if each.id in curves]
    unknown = {each.id: UNKNOWN for each in found.candidates if each.id not in curves}
    return able, found.reasons | unknown


def operators(analysis: Analysis, work: Sequence[Divisible], curves: Curves) -> list[Operator]:
    """What can be split, as the allocation sees it."""
    result = []
    for each in work:
        name = each.view.op.node.outputs[0].name
        axes = analysis.axes.get(each.view.op.node.inputs[each.view.weight].name)
        if name in curves.ways and axes:
            ways = curves.ways[name]
            result.append(
                Operator(
                    inputs=axes[each.inputs_axis],
                    outputs=axes[each.outputs_axis],
                    macs=each.macs,
                    errors=np.array([way.error for way in ways]) * curves.weights[name],
                    reading=np.array([way.rank * way.split.reading if way.split else 0.0 for way in ways]),
                    writing=np.array([way.rank * way.split.writing if way.split else 0.0 for way in ways]),
                )
            )
    return result
