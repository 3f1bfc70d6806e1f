"""Explanations in sentences: what `surgeon.explain.explain` found, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SHOWN = 4
SHOWN_OPS = 10


def render(answer: Mapping[str, Any]) -> str:
    """The answer as text, one fact a line."""
    return "\n".join(_together(answer) if "names" in answer else _alone(answer))


def _alone(answer: Mapping[str, Any]) -> Iterable[str]:
    node = answer["node"]
    yield f"{answer['name']} is {_article(answer['is'])}" + (f": {node['name']}" if node else "")
    if answer["note"]:
        yield f"  {answer['note']}"
    if node:
        yield from _node(node)
    told: set[str] = set()
    for axis in answer["axes"]:
        yield from _axis(axis, told)
    if not answer["axes"] and not answer["note"]:
        yield "  it has no axes, so there is nothing to remove"
    flow = answer["flow"]
    if not flow["outputs"] and not answer["note"]:
        yield "  no output of the model depends on it"


def _article(kind: str) -> str:
    return {"axis": "an axis", "group": "a channel group"}.get(kind, f"a {kind}")


def _node(node: Mapping[str, Any]) -> Iterable[str]:
    if node["barrier"]:
        yield f"  everything it touches is pinned: {node['barrier']}"
    if node["writes"]:
        yield f"  writes {_few(node['writes'])}"
    if node["reads"]:
        yield f"  sums over {_few(node['reads'])}"


def _axis(axis: Mapping[str, Any], told: set[str]) -> Iterable[str]:
    """One axis; what was ``told`` of a group before is not said again."""
    yield _head(axis)
    for group in axis["groups"]:
        first = group["id"] not in told
        told.add(group["id"])
        more = f", {_roles(group)}" if first else ", see above"
        yield f"  can shrink: {group['kind']}({group['size']}) is group {group['id']}{more}"
        if group["structural"] and first:
            yield f"    but not exactly, only with prune.allow_structural: {group['structural']}"
    for pinned in axis["pinned"]:
        yield f"  cannot shrink: pinned({pinned['size']}), {pinned['reason']}"
        yield from _path(pinned["path"])
    if not axis["groups"] and not axis["pinned"] and axis["size"] > 1:
        yield "  cannot shrink: no activation has this axis, so removing it would save nothing"


def _head(axis: Mapping[str, Any]) -> str:
    size = "size not fixed, looked at with " if axis["dynamic"] else "size "
    made = f" = {axis['made_of']}" if axis["size"] != 1 else ""
    return f"{axis['tensor']}:{axis['axis']}  {size}{axis['size']}{made}"


def _roles(group: Mapping[str, Any]) -> str:
    written, read = _few(group["producers"]), _few(group["consumers"])
    parts = [f"written by {written}" if written else "", f"read by {read}" if read else ""]
    return "; ".join([*filter(None, parts), f"{group['members']} axes go along"])


def _path(path: Sequence[Mapping[str, str]] | None) -> Iterable[str]:
    """``a:1 — Relu r — Conv c — b:1``; where an operator comes last it is the one that gave the reason."""
    if not path:
        return
    ops = [step["op"] for step in path]
    if len(ops) > SHOWN_OPS:
        half = SHOWN_OPS // 2
        ops = [*ops[:half], f"… {len(ops) - 2 * half} more …", *ops[-half:]]
    last = [path[-1]["to"]] if path[-1]["to"] != path[-1]["from"] else []
    yield "    " + " — ".join([path[0]["from"], *ops, *last])


def _together(answer: Mapping[str, Any]) -> Iterable[str]:
    first, second = answer["names"]
    if not answer["coupled"]:
        yield f"{first} and {second} are not coupled: no channel of one is a channel of the other"
        yield from _between(answer["between"])
        for axis in (axis for side in answer["sides"] for axis in side["axes"]):
            pinned = "; ".join(each["reason"] for each in axis["pinned"])
            yield _head(axis) + (f", pinned by {pinned}" if pinned else "")
        return
    yield f"{first} and {second} are coupled"
    for each in answer["couplings"]:
        if each["pinned"]:
            yield f"  both have pinned({each['size']}), which must keep its size: {each['pinned']}"
        elif each["group"]:
            yield f"  both shrink together: {each['kind']}({each['size']}) is group {each['group']}"
        else:
            yield f"  both have an axis of weights of size {each['size']} in common"
        yield from _path(each["path"]) if each["path"] else _same(each["axes"])


def _same(axes: Sequence[str]) -> Iterable[str]:
    if axes:
        yield f"    {', '.join(axes)} is in both"


def _between(between: Mapping[str, Any]) -> Iterable[str]:
    if between["from"] is not None:
        through = between["through"]
        way = f" through {_few(through, 12)}" if through else ""
        yield f"  data go from {between['from']} to {between['to']}{way}"
    elif between["common"] is not None:
        yield f"  neither is computed from the other; the last operator both depend on is {between['common']}"
    else:
        yield "  neither is computed from the other"


def _few(names: Sequence[str], limit: int = SHOWN) -> str:
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
