"""Choosing what to keep: eligible groups, their scores, and the ratio, targets or exact indices to meet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from surgeon.allocate import Candidate, Limits, by_ratio, evenly_to_target, to_target
from surgeon.cost import count
from surgeon.errors import GateError, UsageError
from surgeon.states import find_states
from surgeon.surgery import keep_of
from surgeon_passes.pruning.eligible import eligible, one_factor
from surgeon_passes.pruning.exact import Wish, wishes
from surgeon_passes.pruning.goals import Goal, goals
from surgeon_passes.pruning.spread import positions_in_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.engine import Model
    from surgeon.groups import Group
    from surgeon.passes import Context
    from surgeon.refit.carry import Current
    from surgeon_passes.prune import Prune
    from surgeon_passes.pruning.rank import Ranking

    Wishes = Mapping[str, Wish]

TRIES = 4


class OutOfReachError(GateError):
    """No cut within the limits meets the targets."""


@dataclass
class Choice:
    """What is kept of each group, and why others stay whole."""

    kept: dict[str, NDArray[np.bool_]]
    reasons: dict[str, str] = field(default_factory=dict)


def choose(
    options: Prune,
    model: Model,
    context: Context,
    ranking: Ranking,
    targets: Mapping[str, float] | None,
    refused: Mapping[str, str],
    current: Current | None = None,
    share: float = 1.0,
) -> Choice:
    """Choose what to keep.

    Args:
        options: The options of the pass.
        model: The analysed model.
        context: What the run offers.
        ranking: How indices rank.
        targets: What to reach; None where the pass has a ratio, or exact indices only.
        refused: Groups that have to stay whole, and why.
        current: What was cut so far and stays gone.
        share: Which part of the pass's ratio is to be gone.

    Raises:
        UsageError: A pattern matches nothing, or exact indices cannot be kept or dropped.
        GateError: The targets cannot be met, or a group named by ``drop`` has to stay whole.
    """
    groups, reasons = eligible(options, model, context)
    wished = wishes(model, options.keep, options.drop)
    _check_wishes(wished, groups, reasons, refused)
    if options.drop and options.ratio is None and targets is None:
        return _only_drop(model, wished, reasons | dict(refused))
    found = candidates_of(options, model, context, ranking, refused, current)
    candidates, reasons = found.candidates, found.reasons
    if not candidates:
        return Choice({}, reasons)
    if targets is None:
        choice = Choice(by_ratio(candidates, (options.ratio or 0.0) * share), reasons)
        for each in candidates:
            if choice.kept[each.id].all():
                reasons[each.id] = (
                    f"{each.size} cannot lose {options.ratio or 0:.0%} of its indices within the limits"
                )
        return choice
    wanted = goals(targets, model, context)
    return Choice(_to_goals(options, model, candidates, wanted, one_sided=found.one_sided), reasons)


@dataclass(frozen=True)
class Field:
    """The groups to choose from.

    Attributes:
        candidates: Those that may be cut, and those that lose what was named and no more.
        reasons: Why others stay whole.
        one_sided: Whether some do because the other factor of a product shrinks.
    """

    candidates: list[Candidate]
    reasons: dict[str, str]
    one_sided: bool


def candidates_of(
    options: Prune,
    model: Model,
    context: Context,
    ranking: Ranking,
    refused: Mapping[str, str],
    current: Current | None = None,
) -> Field:
    """The groups to choose from; arguments as for `choose`.

    Raises:
        UsageError: A pattern matches nothing.
    """
    groups, reasons = eligible(options, model, context)
    groups = [group for group in groups if group.id not in refused]
    limits = Limits(options.min_keep, options.max_ratio, options.multiple_of)
    groups, blocked = one_factor(
        model, groups, options.product, lambda group: _can_shrink(options, group, limits)
    )
    wished = wishes(model, options.keep, options.drop)
    candidates = _candidates(model, groups, wished, limits, ranking, current)
    return Field(candidates, reasons | dict(refused) | blocked, bool(blocked))


def least_left(
    options: Prune, model: Model, context: Context, ranking: Ranking, refused: Mapping[str, str], target: str
) -> float:
    """The fraction that is left of what a target measures when every group is at its limit; arguments as above."""
    candidates = candidates_of(options, model, context, ranking, refused).candidates
    if not candidates:
        return 1.0
    return _at_limits(model, candidates, goals({target: 1.0}, model, context))[0]


def _to_goals(
    options: Prune, model: Model, candidates: Sequence[Candidate], wanted: Sequence[Goal], *, one_sided: bool
) -> dict[str, NDArray[np.bool_]]:
    """Allocate, and once more where the cut model holds more than the terms of the cost say."""
    whole = vars(model.cost.evaluate())
    allocate = to_target if options.ranking == "global" else evenly_to_target
    targets: dict[str, float] = {}
    for goal in wanted:
        targets[goal.kind] = min(targets.get(goal.kind, np.inf), goal.fraction(whole[goal.kind]))
    lowered = dict(targets)
    for _ in range(TRIES):
        kept = allocate(candidates, model.cost, lowered)
        if kept is None:
            break
        excess = _excess(model, kept, targets)
        if not excess:
            return kept
        lowered |= {kind: targets[kind] - more / whole[kind] for kind, more in excess.items()}
    raise _unreachable(options, model, candidates, wanted, one_sided=one_sided)


def _excess(
    model: Model, kept: Mapping[str, NDArray[np.bool_]], targets: Mapping[str, float]
) -> dict[str, float]:
    """Where folded arithmetic that reads what is cut makes a target missed: what the model has more than expected."""
    if not any(getattr(model.cost.folded, kind) for kind in targets):
        return {}
    smaller, plan = model.cut(kept)
    found, whole = vars(count(smaller)), vars(model.cost.evaluate())
    expected = vars(model.cost.after(keep_of(plan.kept(), {group.id: group.atom for group in model.groups})))
    return {
        kind: found[kind] - expected[kind]
        for kind, fraction in targets.items()
        if found[kind] > expected[kind] and found[kind] > whole[kind] * fraction
    }


def _check_wishes(
    wished: Wishes, groups: Sequence[Group], reasons: Mapping[str, str], refused: Mapping[str, str]
) -> None:
    """What the user drops by name must be allowed to go."""
    able = {group.id for group in groups}
    for name, wish in wished.items():
        if not wish.goes.any():
            continue
        if name not in able:
            raise UsageError(f"group {name} must stay whole: {reasons[name]}", where="prune.drop")
        if name in refused:
            raise GateError(f"group {name} must stay whole: {refused[name]}", where="prune.drop")


def _only_drop(model: Model, wished: Wishes, reasons: dict[str, str]) -> Choice:
    kept = {name: ~wish.goes for name, wish in wished.items() if wish.goes.any()}
    others = {group.id: "not named by drop" for group in model.groups if group.id not in kept}
    return Choice(kept, others | reasons)


def _can_shrink(options: Prune, group: Group, limits: Limits) -> bool:
    candidate = Candidate(group.id, group.atom, np.zeros(group.size), limits)
    if options.ratio is None:
        return candidate.least < group.size
    return candidate.at_ratio(options.ratio, options.multiple_of or 1) < group.size


def _candidates(
    model: Model,
    groups: Sequence[Group],
    wished: Wishes,
    limits: Limits,
    ranking: Ranking,
    current: Current | None,
) -> list[Candidate]:
    scores = ranking.of(groups, current)
    positions = positions_in_weights(model, groups)
    result = []
    for group in model.groups:
        wish = wished.get(group.id)
        stays, goes = (wish.stays, wish.goes) if wish else (None, None)
        if current is not None and group.atom in current.keep:
            gone = ~current.keep[group.atom]
            goes = gone if goes is None else goes | gone
        if group.id in scores:
            block = max(1, min(positions[group.id], default=1))
            result.append(Candidate(group.id, group.atom, scores[group.id], limits, block, stays, goes))
        elif goes is not None and goes.any():
            whole = Limits(min_keep=group.size)
            result.append(Candidate(group.id, group.atom, np.zeros(group.size), whole, 1, stays, goes))
    return result


def _unreachable(
    options: Prune, model: Model, candidates: Sequence[Candidate], wanted: Sequence[Goal], *, one_sided: bool
) -> OutOfReachError:
    parts = []
    for goal, left in zip(wanted, _at_limits(model, candidates, wanted), strict=True):
        name = "macs" if goal.name == "latency" else goal.name  # what latency comes to is not known before
        parts.append(f"{name}={left:.3f}")
    hint = "looser min_keep, max_ratio, multiple_of or exclude, or allow_structural, free more"
    if one_sided:
        hint += "; so does product=both, which lets both factors of a product shrink"
    if not options.cut_cache and find_states(model.analysis):
        hint += (
            "; so does cut_cache, which lets caches and states shrink, and the model's interface with them"
        )
    return OutOfReachError(
        f"the target is out of reach: the most that can be removed within the limits leaves {', '.join(parts)}",
        where="prune",
        hint=hint,
    )


def _at_limits(model: Model, candidates: Sequence[Candidate], wanted: Sequence[Goal]) -> list[float]:
    """The fraction that is left of each goal when every candidate has lost what it may."""
    least = vars(model.cost.evaluate({each.atom: float(each.least) for each in candidates}))
    whole = vars(model.cost.evaluate())
    left = [goal.whole - (whole[goal.kind] - least[goal.kind]) for goal in wanted]
    return [max(rest, 0.0) / max(goal.whole, 1.0) for goal, rest in zip(wanted, left, strict=True)]
