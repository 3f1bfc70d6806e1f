"""What a model offers: its channel groups, what they cost, how far it could shrink, and what is pinned and why."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from surgeon.engine import analyse
from surgeon.graph.copy import copy_of
from surgeon.measure import parameters
from surgeon.ops import RULES
from surgeon.report import amount

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import onnx_graphsurgeon as gs
    from rich.console import RenderableType
    from rich.table import Table

    from surgeon.engine import Model
    from surgeon.groups import Group, Pinned

SHOWN_NAMES = 2
SHOWN_REASONS = 40


def inspect(graph: gs.Graph) -> dict[str, Any]:
    """Analyses a model without changing it.

    Args:
        graph: The model.

    Returns:
        The object that ``surgeon inspect --json`` prints: ``nodes``, ``params``, ``macs``, ``unknown_ops``,
        ``groups``, ``pinned`` and ``ceiling``. Parameters and MACs are those of ``surgeon run``; a group's own are
        what would vanish with all of it.
    """
    nodes, params = len(graph.nodes), parameters(graph)
    model = analyse(copy_of(graph))
    whole = model.cost.evaluate()
    least = model.cost.evaluate({group.atom: 1.0 for group in model.groups})
    return {
        "schema": 1,
        "nodes": nodes,
        "params": params,
        "macs": round(whole.macs),
        "unknown_ops": unknown_operators(model),
        "groups": [_group(group, model) for group in model.groups],
        "pinned": [_pinned(each) for each in model.pinned],
        "ceiling": {
            "params": least.params / whole.params if whole.params else 1.0,
            "macs": least.macs / whole.macs if whole.macs else 1.0,
        },
    }


def unknown_operators(model: Model) -> dict[str, int]:
    """How often each operator without a rule occurs; everything such an operator touches is pinned."""
    names = [
        op.node.op
        for op in model.analysis.ops
        if RULES.find(op.node.op, op.node.domain or "", op.opset) is None
    ]
    return dict(sorted(Counter(names).items()))


def _group(group: Group, model: Model) -> dict[str, Any]:
    return {
        "id": group.id,
        "kind": group.kind,
        "size": group.size,
        "members": _members(group.members),
        "producers": list(group.producers),
        "consumers": list(group.consumers),
        "params": round(model.cost.controlled(group.atom, "params")),
        "macs": round(model.cost.controlled(group.atom, "macs")),
        "structural": group.structural,
    }


def _pinned(pinned: Pinned) -> dict[str, Any]:
    return {
        "size": pinned.size,
        "reason": str(pinned.reason),
        "op": pinned.reason.op,
        "why": pinned.reason.why,
        "members": _members(pinned.members),
    }


def _members(pairs: Iterable[tuple[str, int]]) -> list[dict[str, Any]]:
    return [{"tensor": tensor, "axis": axis} for tensor, axis in pairs]


def render(facts: Mapping[str, Any]) -> RenderableType:
    """The same for people: a table of groups, one of reasons, and what they add up to."""
    from rich.console import Group as Together

    groups, pinned = facts["groups"], facts["pinned"]
    parts: list[RenderableType] = [_text(_headline(facts))]
    if groups:
        parts += [_text(""), _group_table(groups, facts)]
    notes = sorted({each["structural"] for each in groups if each["structural"]})
    if notes:
        parts += [_text(""), _text("* cannot be cut exactly; only with prune.allow_structural:")]
        parts += [_text(f"  {each}") for each in _first(notes, SHOWN_REASONS)]
    if pinned:
        parts += [_text(""), _pinned_table(pinned)]
    if facts["unknown_ops"]:
        listed = ", ".join(f"{name} ({count} ×)" for name, count in facts["unknown_ops"].items())
        parts += [_text(""), _text(f"operators without a rule, which pin all they touch: {listed}")]
    return Together(*parts, _text(""), _text(_ceiling(facts)))


def _headline(facts: Mapping[str, Any]) -> str:
    return (
        f"{facts['nodes']} nodes, {amount(facts['params'])} parameters, {amount(facts['macs'])} MACs, "
        f"{len(facts['groups'])} channel groups"
    )


def _ceiling(facts: Mapping[str, Any]) -> str:
    if not facts["groups"]:
        return "nothing can be removed"
    left = facts["ceiling"]
    return (
        f"if every group kept one index, {left['params']:.1%} of the parameters and {left['macs']:.1%} of the MACs "
        "would be left; no plan goes lower"
    )


def _group_table(groups: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> RenderableType:
    table = _table("group", "kind", "size", "written by → read by", "parameters", "MACs", right=(2, 4, 5))
    for each in groups:
        table.add_row(
            _text(each["id"]),
            each["kind"] + (" *" if each["structural"] else ""),
            str(each["size"]),
            _text(f"{_names(each['producers'])} → {_names(each['consumers'])}"),
            _share(each["params"], facts["params"]),
            _share(each["macs"], facts["macs"]),
        )
    return table


def _pinned_table(pinned: Sequence[Mapping[str, Any]]) -> RenderableType:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for each in pinned:
        found.setdefault(each["why"], []).append(each)
    rows = sorted(found.items(), key=lambda row: -sum(len(each["members"]) for each in row[1]))
    table = _table("pinned because", "axes", "sizes", "by", right=(1,))
    for why, entries in rows[:SHOWN_REASONS]:
        axes = {(member["tensor"], member["axis"]) for each in entries for member in each["members"]}
        sizes = sorted({each["size"] for each in entries})
        pinners = list(dict.fromkeys(each["op"] for each in entries if each["op"]))
        table.add_row(_text(why), str(len(axes)), _names(map(str, sizes), 6), _text(_names(pinners)))
    if len(rows) > SHOWN_REASONS:
        table.add_row(_text(f"and {len(rows) - SHOWN_REASONS} other reasons (--json lists all)"))
    return table


def _names(names: Iterable[str], limit: int = SHOWN_NAMES) -> str:
    return ", ".join(_first(list(names), limit)) or "–"


def _first(items: Sequence[str], limit: int) -> list[str]:
    more = len(items) - limit
    return [*items[:limit], *([f"+{more}"] if more > 0 else [])]


def _share(part: int, whole: int) -> str:
    return f"{amount(part)} ({part / whole:.0%})" if whole else amount(part)


def _text(content: str) -> RenderableType:
    from rich.text import Text

    return Text(content)


def _table(*heads: str, right: Sequence[int] = ()) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index in right else "left", overflow="fold")
    return table
