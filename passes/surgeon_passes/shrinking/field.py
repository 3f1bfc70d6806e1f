"""The groups and operators between which a target is shared out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgeon_passes.pruning.choose import candidates_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surgeon.allocate import Candidate
    from surgeon.engine import Model
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


def touched(model: Model, work: Sequence[Divisible], curves: Curves) -> dict[str, list[str]]:
    """Of each group, by id, the operators that can be split and whose weights it runs through, by first output."""
    weights = {
        each.view.op.node.outputs[0].name: {tensor.name for tensor in each.view.op.node.inputs}
        for each in work
    }
    return {
        group.id: [name for name in curves.ways if weights[name] & {tensor for tensor, _ in group.members}]
        for group in model.groups
    }
