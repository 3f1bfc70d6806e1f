"""The pass ``apply``: cuts and masks another checkpoint of a model the way a plan says."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from surgeon.passes import Pass

if TYPE_CHECKING:
    from surgeon.engine import Model
    from surgeon.passes import Context, Graph
    from surgeon.plan import Plan
    from surgeon.verify import Certificate


@dataclass(frozen=True)
class Apply(Pass):
    """Removes what a plan removes, and zeroes what it zeroes, in another checkpoint of the same graph.

    The weights that are left are the checkpoint's own: nothing is refitted, folded or renamed.

    Attributes:
        plan: The plan file: of `surgeon plan`, or the one a run wrote beside its output.
    """

    name: ClassVar[str] = "apply"
    requires: ClassVar[frozenset[str]] = frozenset({"prunable"})

    plan: str

    def run(self, graph: Graph, context: Context) -> Graph:
        """Masks, cuts and proves.

        Raises:
            UsageError: The plan cannot be read, or the graph is not the one it is for.
            GateError: The plan was changed, or the cut does not equal the masked model.
        """
        from surgeon.engine import analyse
        from surgeon.errors import GateError
        from surgeon.graph.copy import copy_of
        from surgeon.plan import Plan
        from surgeon.trace import check_structure, imposed, kept_in, named
        from surgeon_passes.pruning.interface import note_interface

        loaded = Plan.load(Path(self.plan))
        plan = named(loaded, self.plan)
        check_structure(plan, graph, context.source_path)
        masked = imposed(graph, plan, self.plan)
        model = analyse(copy_of(masked), cut_cache=bool(plan.interface))
        smaller, cut = model.cut(kept_in(plan, model, self.plan), context.model_sha256)
        if loaded.file_groups is None and (plan.tensors, plan.interface) != (cut.tensors, cut.interface):
            raise GateError("the tensors it lists do not follow from its groups", where=self.plan)
        context.record["groups"] = _groups(model, cut)
        context.record["masks"] = {
            "weights": len(plan.masks),
            "zeros": sum(int((~mask.array()).sum()) for mask in plan.masks.values()),
        }
        cut = replace(cut, masks=plan.masks)
        if not cut.groups:
            context.record["changed"] = bool(plan.masks)
            context.plan = cut
            return masked
        certificate = _prove(model, smaller, cut, context)
        context.record["certificate"] = certificate.to_json()
        # what the masks took is missing in the model that later passes aim at, unless they get the one without
        context.note_cut(
            model if masked is graph else analyse(copy_of(graph), cut_cache=bool(cut.interface)), cut
        )
        note_interface(graph, smaller, cut, context)
        return smaller


def _prove(model: Model, smaller: Graph, cut: Plan, context: Context) -> Certificate:
    from surgeon.verify import prove

    chosen = {group.id for group in cut.groups}
    started = time.perf_counter()
    certificate = prove(
        model.analysis,
        smaller,
        cut.tensors,
        structural=any(group.structural for group in model.groups if group.id in chosen),
        feeds=[next(iter(context.data))[0]] if context.data is not None else [],
        threads=context.threads,
        folder=context.scratch,
        interface=cut.interface,
    )
    context.record["proof_seconds"] = time.perf_counter() - started
    return certificate


def _groups(model: Model, cut: Plan) -> dict[str, Any]:
    chosen = {group.id for group in cut.groups}
    whole = [
        {"group": group.id, "size": group.size, "reason": "the plan keeps all of it"}
        for group in model.groups
        if group.id not in chosen
    ]
    return {"total": len(model.groups), "cut": len(chosen), "whole": whole}
