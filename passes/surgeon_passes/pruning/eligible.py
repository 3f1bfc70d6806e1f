"""Which groups may be cut: patterns, exactness, and one factor of every product."""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from typing import TYPE_CHECKING

from surgeon.errors import UsageError
from surgeon.groups import products_of
from surgeon.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from surgeon.axes import Atom
    from surgeon.engine import Model
    from surgeon.groups import Group
    from surgeon.passes import Context
    from surgeon_passes.prune import Prune


def eligible(options: Prune, model: Model, context: Context) -> tuple[list[Group], dict[str, str]]:
    """Groups that the options allow to be cut, and why the others stay whole.

    Raises:
        UsageError: A pattern matches nothing.
    """
    names = names_of(model)
    _check_patterns(options, context, model, names)
    result: list[Group] = []
    reasons: dict[str, str] = {}
    for group in model.groups:
        mine = names[group.id]
        hit = next((p for p in (*options.exclude, *context.exclude) if matches(mine, p)), None)
        if hit is not None:
            reasons[group.id] = f"excluded by {hit!r}"
        elif options.include and not any(matches(mine, p) for p in options.include):
            reasons[group.id] = "not included"
        elif group.structural and not options.allow_structural:
            reasons[group.id] = f"{group.structural}, so a cut cannot be exact (see allow_structural)"
        else:
            result.append(group)
    return result, reasons


def names_of(model: Model) -> dict[str, set[str]]:
    """Per group id: its id, the tensors whose axes mention it and the nodes that touch these."""
    touching: dict[str, set[str]] = defaultdict(set)
    for op in model.analysis.ops:
        for tensor in (*op.node.inputs, *op.node.outputs):
            if tensor.name:
                touching[tensor.name].update({op.node.name, getattr(tensor, "origin", tensor.name)} - {""})
    return {
        group.id: {group.id, *(n for name, _ in group.members for n in (name, *touching.get(name, ())))}
        for group in model.groups
    }


def matches(names: Iterable[str], pattern: str) -> bool:
    """Whether one of ``names`` is ``pattern`` or matches it as shell wildcards do."""
    return pattern in names or any(fnmatch.fnmatchcase(name, pattern) for name in names)


def _check_patterns(
    options: Prune, context: Context, model: Model, names: Mapping[str, Iterable[str]]
) -> None:
    """Refuses patterns that mean nothing: they are misspelt, and silence would cut what must stay."""
    grouped = {name for mine in names.values() for name in mine}
    everything = grouped | model.analysis.axes.keys() | {node.name for node in model.analysis.graph.nodes}
    for option, patterns, known in (
        ("include", options.include, grouped),
        ("exclude", options.exclude, everything),
    ):
        for pattern in patterns:
            if not matches(known, pattern):
                what = "matches no node and no tensor"
                if matches(everything, pattern):
                    what = (
                        "matches nothing that belongs to a channel group (surgeon explain says what pins it)"
                    )
                raise UsageError(
                    f"{pattern!r} {what}", where=f"prune.{option}", hint=did_you_mean(pattern, known)
                )
    for pattern in context.exclude:
        if not matches(everything, pattern):
            context.warn(
                f"--exclude {pattern} protects nothing: the passes before prune removed what it names"
            )


def one_factor(
    model: Model, groups: Sequence[Group], order: str, can_shrink: Callable[[Group], bool]
) -> tuple[list[Group], dict[str, str]]:
    """Of every product of groups let one factor shrink, so that a ratio means what it says.

    A tensor axis of heads x head_dim that lost half of both would keep a quarter. Groups are admitted one by one, those
    nearest to the end that ``order`` names first, unless another factor of one of their axes has been admitted; so
    every such axis loses the share of exactly one factor.

    Args:
        model: The analysed model.
        groups: What may be cut.
        order: ``outer`` (slowest factor first), ``inner`` or ``both`` (no restriction).
        can_shrink: Whether a group would lose anything.

    Returns:
        The groups that are left, and why the others stay whole.
    """
    if order == "both":
        return list(groups), {}
    allowed = {group.atom: group for group in groups if can_shrink(group)}
    depth: dict[Atom, int] = dict.fromkeys(allowed, 0)
    rivals: dict[Atom, set[Atom]] = defaultdict(set)
    for levels in products_of(model.analysis):
        ordered = levels if order == "outer" else levels[::-1]
        for k, level in enumerate(ordered):
            others = {atom for other in ordered if other is not level for atom in other}
            for atom in set(level) & allowed.keys():
                depth[atom] = max(depth[atom], k)
                rivals[atom] |= others - {atom}
    admitted: set[Atom] = set()
    reasons: dict[str, str] = {}
    for atom in sorted(allowed, key=lambda each: (depth[each], each.serial)):
        winner = min(rivals[atom] & admitted, key=lambda each: each.serial, default=None)
        if winner is None:
            admitted.add(atom)
        else:
            reasons[allowed[atom].id] = (
                f"{allowed[winner].id} shrinks instead, the {order} factor of an axis they share (see product)"
            )
    return [group for group in groups if group.id not in reasons], reasons
