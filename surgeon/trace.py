"""What a run removed, said of the file it started from, so that other checkpoints of it can be cut alike.

A plan speaks of the graph that was cut, and passes that ran before (`clean`) may have renamed its tensors or removed
nodes and channels. Tensors that are still there keep their names: through what is left of these the cut is found again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from surgeon.axes import atoms_of, coordinates
from surgeon.engine import analyse
from surgeon.errors import GateError, UsageError
from surgeon.graph.copy import copy_of
from surgeon.masks import ROUNDED, found_in, impose, violations, weights_of
from surgeon.plan import Plan
from surgeon.stats.matrices import weights_of as multiplying
from surgeon.structure import first_difference, structure_of
from surgeon.surgery import axis_masks, keep_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from surgeon.axes import Axis
    from surgeon.engine import Model
    from surgeon.groups import Group
    from surgeon.masks import Mask
    from surgeon.passes import Context
    from surgeon.pipeline import Outcome
    from surgeon.reference import Masks

    Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Traced:
    """What a run removed.

    Attributes:
        plan: The plan of the run, with what other checkpoints need.
        by_name: The same as a plan of the file itself, with nothing before the cut; None where there is none.
        why_not: Why there is none.
    """

    plan: Plan
    by_name: Plan | None
    why_not: str | None = None


def trace(graph: gs.Graph, outcome: Outcome, context: Context) -> Traced | None:
    """Completes the plan of a run; None where it neither cut anything nor made anything sparse.

    Args:
        graph: The model file's graph, as it was loaded.
        outcome: What the run made of it.
        context: The run.
    """
    plan = context.plan or Plan(context.model_sha256, ())
    by_name, why_not = plan, None
    if any(each["changed"] for each in outcome.passes[: len(plan.after)]) or not plan.groups:
        try:
            by_name = _plan_of_file(graph, outcome.graph, context.left, plan) if context.left else plan
        except GateError as error:
            by_name, why_not = plan, str(error)
    if why_not is None and (plan.after or not plan.groups):
        plan = replace(plan, file_groups=by_name.groups)
    masks = {} if why_not else _masks(graph, context.unrounded or outcome.graph, by_name, context)
    if not (plan.groups or plan.file_groups or masks or why_not):
        return None
    structure = structure_of(graph)
    plan = replace(plan, masks=masks, structure=structure)
    if why_not is not None:
        return Traced(plan, None, why_not)
    return Traced(plan, replace(by_name, after=(), masks=masks, structure=structure))


def _masks(graph: gs.Graph, result: gs.Graph, plan: Plan, context: Context) -> dict[str, Mask]:
    """The masks of a plan that still hold, and those of the zeros that a run made besides."""
    masks, strange = found_in(graph, result, plan.tensors, context.kept.get(ROUNDED, {}))
    if (
        not masks
    ):  # nothing was made sparse that the file has: then what zeros a weight has count, and no others
        multiplied = {weight.name for weight in multiplying(result)}
        strange = [name for name in strange if name in multiplied]
    if strange:
        context.warn(
            f"{strange[0]} has zeros but is no weight of the model file, so the plan says nothing of them"
            + (f" (and {len(strange) - 1} more)" if strange[1:] else "")
        )
    return masks | {
        name: plan.masks[name] for name, wrong in violations(result, plan.masks, plan.tensors) if wrong == 0
    }


def named(plan: Plan, where: Path | str) -> Plan:
    """A plan of the model file itself: the groups to cut in it, by the names it has.

    Raises:
        UsageError: The plan does not say.
    """
    if plan.file_groups is not None:
        return replace(plan, groups=plan.file_groups, tensors={}, after=(), file_groups=None)
    if plan.after and plan.groups:
        raise UsageError(
            f"its cut follows {', '.join(plan.after)} and is not known by names of the model file",
            where=str(where),
            hint="make it again with --no-clean",
        )
    return replace(plan, after=())


def check_structure(plan: Plan, graph: gs.Graph, where: Path | str) -> None:
    """Makes sure that a graph is the one a plan is for, whatever its weights are.

    Raises:
        UsageError: It is another one, or the plan does not say which it is for.
    """
    if plan.structure is None:
        raise UsageError(
            "the plan does not say what graph it is for", where=str(where), hint="make it again: surgeon plan"
        )
    difference = first_difference(structure_of(graph), plan.structure)
    if difference is not None:
        raise UsageError(f"is not a checkpoint of the plan's graph: {difference}", where=str(where))


def imposed(graph: gs.Graph, plan: Plan, where: Path | str) -> gs.Graph:
    """The graph with zeros where the plan's masks say so; the graph itself where it has no masks.

    Raises:
        GateError: A mask does not fit.
    """
    if not plan.masks:
        return graph
    weights = weights_of(graph)
    for name, mask in plan.masks.items():
        if name not in weights or tuple(weights[name].shape) != mask.shape:
            raise GateError(
                f"the model has no weight {name} of shape {list(mask.shape)}, as its mask", where=str(where)
            )
    masked = copy_of(graph)
    impose(masked, plan.masks)
    return masked


def _plan_of_file(graph: gs.Graph, result: gs.Graph, left: Masks, plan: Plan) -> Plan:
    """Finds the cut again in the file's graph.

    Raises:
        GateError: The same positions cannot be removed there.
    """
    model = analyse(copy_of(graph), cut_cache=bool(plan.interface))
    axes = {name: found or [] for name, found in model.analysis.axes.items() if name not in _copies(model)}
    left = {name: _of_size(masks, axes[name]) for name, masks in left.items() if name in axes}
    kept = {group.id: _kept(group, axes, left) for group in model.groups}
    kept = {name: flags for name, flags in kept.items() if not flags.all()}
    keep = keep_of(kept, {group.id: group.atom for group in model.groups})
    still_there = set(result.tensors())
    for name, found in axes.items():
        wanted, here = left.get(name, {}), axis_masks(found, keep)
        if not wanted and name not in still_there:
            continue
        for axis in wanted.keys() | here.keys():
            whole = np.ones(found[axis].size, bool)
            if not np.array_equal(here.get(axis, whole), wanted.get(axis, whole)):
                raise GateError(
                    f"without the passes before the cut, axis {axis} of {name} would not lose the same"
                    + _why(found[axis])
                )
    _, cut = model.cut(kept, plan.model_sha256)
    return cut


def _copies(model: Model) -> set[str]:
    """Constants that stand for one use of a shared vector; their names depend on who else uses it."""
    tensors = (tensor for op in model.analysis.ops for tensor in op.node.inputs)
    return {tensor.name for tensor in tensors if "origin" in vars(tensor)}


def _of_size(masks: Mapping[int, Flags], axes: Sequence[Axis]) -> dict[int, Flags]:
    """The masks that are about axes of the file's tensor, and not of another one that has got its name."""
    return {
        axis: flags for axis, flags in masks.items() if axis < len(axes) and axes[axis].size == len(flags)
    }


def _kept(group: Group, axes: Mapping[str, Sequence[Axis]], left: Masks) -> Flags:
    """Which indices of a group are left, by every tensor that shrank along it."""
    gone = np.zeros(group.size, bool)
    for name, axis in group.members:
        flags = left.get(name, {}).get(axis)
        if flags is None:
            continue
        for places in coordinates(axes[name][axis], group.atom):
            present, stays = np.zeros(group.size, bool), np.zeros(group.size, bool)
            present[places[places >= 0]] = True
            stays[places[flags & (places >= 0)]] = True
            gone |= present & ~stays
    return ~gone


def _why(axis: Axis) -> str:
    pinned = next((atom.pinned for atom in atoms_of(axis) if atom.pinned is not None), None)
    return "" if pinned is None else f": {pinned}"


def kept_in(plan: Plan, model: Model, where: Path | str) -> Mapping[str, Flags]:
    """What the plan keeps, after a check that its groups are those of the model.

    Raises:
        GateError: They are not.
    """
    known = {group.id: group for group in model.groups}
    for group in plan.groups:
        found = known.get(group.id)
        if found is None or found.size != group.size:
            raise GateError(
                f"the model has no channel group {group.id} of size {group.size}",
                where=str(where),
                hint="a plan can be checked by the version of surgeon that wrote it",
            )
        if not group.kept or list(group.kept) != sorted({*group.kept} & {*range(group.size)}):
            raise GateError(f"the kept indices of {group.id} are not ascending in its size", where=str(where))
    return plan.kept()
