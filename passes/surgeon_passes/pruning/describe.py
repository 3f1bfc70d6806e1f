"""What the run takes note of and the report says: what was cut, how it was proved, and how the rest was refitted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.refit.definite import MOST_INPUTS, has_inverse
from surgeon.stats.linear import linear_views
from surgeon.stats.promises import noted
from surgeon.stats.sequences import name_of
from surgeon_passes.pruning.interface import note_interface

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from surgeon.engine import Model
    from surgeon.passes import Context
    from surgeon.refit.sweep import Refitted
    from surgeon_passes.pruning.cutting import Cut, Cutting

DIGITS = 4


def note(found: Cut, cutting: Cutting, context: Context) -> None:
    """Take note of a cut: in the report, in the plan, and in what later passes know."""
    model = cutting.model
    kept = {name for name, flags in found.choice.kept.items() if not flags.all()}
    context.record["groups"] = _groups(model, kept, found.choice.reasons)
    if found.proved is None:
        context.record["certificate"] = {"status": "none", "max_rel_err": None, "probes": 0}
        return
    context.record["certificate"] = found.proved.certificate.to_json()
    context.note_cut(model, found.proved.plan)
    note_interface(cutting.graph, found.graph, found.proved.plan, context)
    if found.refitted is not None:
        _describe(found.refitted, kept, found, cutting, context)


def _groups(model: Model, kept: Container[str], reasons: Mapping[str, str]) -> dict[str, Any]:
    whole = [
        {"group": g.id, "size": g.size, "reason": reasons.get(g.id, "nothing of it had to go")}
        for g in model.groups
        if g.id not in kept
    ]
    return {"total": len(model.groups), "cut": sum(g.id in kept for g in model.groups), "whole": whole}


def _large(cutting: Cutting) -> set[str]:
    """The operators whose weights have too many inputs to be fitted."""
    return {
        name_of(op.node)
        for op in cutting.model.analysis.ops
        if any(not has_inverse(view, op.node) for view in linear_views(op))
    }


def _describe(
    refitted: Refitted, cut: Container[str], found: Cut, cutting: Cutting, context: Context
) -> None:
    """Record what the refit did, and what was measured before."""
    if not refitted.errors:
        context.warn("no weights were refitted: only constants of floats are; expect to lose accuracy")
    if refitted.spilled:
        context.warn(
            f"activations took more than prune.memory ({cutting.options.memory} MB) and went to temporary files, "
            "which takes longer; fewer samples or more memory avoid it"
        )
    behind = {name for group in cutting.model.groups if group.id in cut for name in group.consumers}
    if large := sorted(behind & _large(cutting)):
        context.warn(
            f"not refitted, for they have {MOST_INPUTS} inputs or more, whose channels rank by what they add: {', '.join(large)}"
        )
    context.record["reconstruct"] = {
        "seconds": found.seconds,
        "operators": [
            {"node": name, "error_before": before, "error_after": after}
            for name, (before, after) in refitted.errors.items()
        ],
        "folded": [
            {
                "node": name,
                "error_deleted": each.deleted,
                "error_folded": each.folded,
                "chosen": "folded" if each.better else "deleted",
            }
            for name, each in refitted.folded.items()
        ],
        "products": [
            {"node": name, "error_selected": each.selected, "error_projected": each.projected}
            for name, each in refitted.products.items()
        ],
    }
    if kept := noted(found.graph):
        context.record["kept"] = kept
    measured = cutting.ranking.eliminator
    if measured.curves:
        context.record["curves"] = {name: _curve(cutting, name) for name in measured.curves}


def _curve(cutting: Cutting, name: str) -> dict[str, object]:
    """The error of a group's consumers after each removal, and what one cut of it alone did to the outputs."""
    measured = cutting.ranking.eliminator
    errors = np.cumsum(np.maximum(measured.curves[name].steps, 0.0))
    probe = measured.probes.get(name)
    return {
        "order": list(measured.curves[name].order),
        "errors": [float(f"{error:.{DIGITS}g}") for error in errors],
        "sensitivity": None
        if probe is None
        else {"removed": probe.removed, "local": probe.local, "outputs": probe.outputs},
    }
