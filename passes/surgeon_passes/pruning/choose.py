"""Choosing what to keep: eligible groups, their scores, and the ratio or targets to meet."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from surgeon.allocate import Limits, by_ratio, to_target
from surgeon.errors import GateError, UsageError
from surgeon.groups import products_of
from surgeon_passes.pruning.rank import rank

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from surgeon.axes import Atom
    from surgeon.engine import Model
    from surgeon.groups import Group
    from surgeon.passes import Context
    from surgeon_passes.prune import Prune


@dataclass
class Choice:
    """What is kept of each group, and why others stay whole."""

    kept: dict[str, NDArray[np.bool_]]
    reasons: dict[str, str] = field(default_factory=dict)


def choose(options: Prune, model: Model, context: Context, refused: Mapping[str, str]) -> Choice:
    """Choose what to keep.

    Args:
        options: The options of the pass.
        model: The analysed model.
        context: What the run offers.
        refused: Groups that have to stay whole, and why.

    Raises:
        UsageError: A pattern matches nothing.
        GateError: The targets cannot be met.
    """
    choice = Choice({})
    groups = _eligible(options, model, context, choice)
    choice.reasons |= refused
    groups = [group for group in groups if group.id not in refused]
    limits = Limits(options.min_keep, options.max_ratio, options.multiple_of)
    groups = _one_factor(options, model, groups, limits, choice)
    if not groups:
        return choice
    scores = rank(options, model, groups, context)
    if options.ratio is not None:
        for group in groups:
            count = by_ratio(group.size, options.ratio, limits)
            choice.kept[group.id] = _top(scores[group.id], count)
            if count == group.size:
                choice.reasons[group.id] = f"{group.size} cannot lose {options.ratio:.0%} of its indices"
        return choice
    targets = options.targets(context)
    kept = to_target(groups, scores, model.cost, targets, limits)
    if kept is None:
        raise GateError(_unreachable(model, groups, targets, limits), where="prune")
    choice.kept = kept
    return choice


def _top(scores: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    keep = np.zeros(len(scores), bool)
    keep[np.argsort(-scores, kind="stable")[:count]] = True
    return keep


def _eligible(options: Prune, model: Model, context: Context, choice: Choice) -> list[Group]:
    """Groups that options and exactness allow to be cut."""
    names = {group.id: _names(group) for group in model.groups}
    for option, patterns in (("include", options.include), ("exclude", options.exclude)):
        for pattern in patterns:
            if not any(fnmatch.filter(each, pattern) for each in names.values()):
                raise UsageError(f"{pattern!r} matches no group", where=f"prune.{option}")
    result = []
    for group in model.groups:
        mine = names[group.id]
        hit = next((p for p in (*options.exclude, *context.exclude) if fnmatch.filter(mine, p)), None)
        if hit is not None:
            choice.reasons[group.id] = f"excluded by {hit!r}"
        elif options.include and not any(fnmatch.filter(mine, p) for p in options.include):
            choice.reasons[group.id] = "not included"
        elif group.structural and not options.allow_structural:
            choice.reasons[group.id] = f"{group.structural}, so a cut cannot be exact (see allow_structural)"
        else:
            result.append(group)
    return result


def _names(group: Group) -> list[str]:
    return [group.id, *group.producers, *group.consumers, *dict.fromkeys(name for name, _ in group.members)]


def _one_factor(
    options: Prune, model: Model, groups: list[Group], limits: Limits, choice: Choice
) -> list[Group]:
    """Of every product of groups let only one factor shrink, so that a ratio means what it says."""
    if options.product == "both":
        return groups
    allowed = {group.atom: group for group in groups}
    blocked: set[Atom] = set()
    for levels in products_of(model.analysis):
        chosen = False
        for level in levels if options.product == "outer" else reversed(levels):
            able = [a for a in level if a in allowed and a not in blocked and limits.least(a.size) < a.size]
            if chosen:
                blocked.update(able)
            chosen = chosen or bool(able)
    for atom in blocked:
        choice.reasons[allowed[atom].id] = (
            f"the {options.product} factor of its axes shrinks instead (see product)"
        )
    return [group for group in groups if group.atom not in blocked]


def _unreachable(model: Model, groups: list[Group], targets: dict[str, float], limits: Limits) -> str:
    whole, least = (
        vars(model.cost.evaluate()),
        vars(model.cost.evaluate({g.atom: float(limits.least(g.size)) for g in groups})),
    )
    parts = [f"{kind}={least[kind] / max(whole[kind], 1):.3f}" for kind in targets]
    return f"the target is out of reach: the most that can be removed within the limits leaves {', '.join(parts)}"
