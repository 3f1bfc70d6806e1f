"""A plan: which indices of which groups are kept. A value that can be saved, diffed and replayed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from surgeon.errors import GateError, UsageError
from surgeon.masks import Mask

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from surgeon.structure import Structure

    Kept: TypeAlias = Mapping[str, Mapping[int, tuple[int, ...]]]

SCHEMA = 1


@dataclass(frozen=True)
class GroupPlan:
    """One group: its id, kind, original size and the indices kept, ascending."""

    id: str
    kind: str
    size: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """What to keep of a model.

    Attributes:
        model_sha256: The model file the plan is for.
        groups: The groups that lose something.
        tensors: For each weight of the input file that shrinks, per axis the indices kept.
        after: Lossless passes that ran before the cut (their names), to be replayed before it is.
        interface: For each input and output of the model that shrinks (caches), per axis the indices kept.
        file_groups: The same cut as groups of the model file itself, without what ran before; None where that is ``groups``,
            or where the cut cannot be made in the file.
        masks: For each weight of the model file that was made sparse, in its shape there, which entries stay.
        structure: What the model file is made of, weights' values aside, so that other checkpoints of it are recognised.
    """

    model_sha256: str
    groups: tuple[GroupPlan, ...]
    tensors: Mapping[str, Mapping[int, tuple[int, ...]]] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    interface: Mapping[str, Mapping[int, tuple[int, ...]]] = field(default_factory=dict)
    file_groups: tuple[GroupPlan, ...] | None = None
    masks: Mapping[str, Mask] = field(default_factory=dict)
    structure: Structure | None = None

    def kept(self) -> dict[str, np.ndarray]:
        """Group id to a boolean array ``[size]`` of what is kept."""
        result = {}
        for group in self.groups:
            result[group.id] = np.zeros(group.size, bool)
            result[group.id][list(group.kept)] = True
        return result

    def then(self, later: Plan) -> Plan:
        """Both cuts as one: this, and a later one of what it left."""
        groups = {group.id: group for group in self.groups}
        for group in later.groups:
            first = groups.get(
                group.id, GroupPlan(group.id, group.kind, group.size, tuple(range(group.size)))
            )
            kept = tuple(first.kept[k] for k in group.kept)
            groups[group.id] = GroupPlan(group.id, group.kind, first.size, kept)
        return replace(
            self,
            groups=tuple(groups.values()),
            tensors=_narrowed(self.tensors, later.tensors),
            interface=_narrowed(self.interface, later.interface),
        )

    def to_json(self) -> dict[str, Any]:
        """The plan file's object; ``sha256`` is the hash of everything else in it."""
        body: dict[str, Any] = {
            "schema": SCHEMA,
            "model_sha256": self.model_sha256,
            "after": list(self.after),
            "groups": _groups_to_json(self.groups),
            "tensors": _indices_to_json(self.tensors),
        }
        if self.interface:
            body["interface"] = _indices_to_json(self.interface)
        if self.file_groups is not None:
            body["file_groups"] = _groups_to_json(self.file_groups)
        if self.masks:
            body["masks"] = {name: mask.to_json() for name, mask in self.masks.items()}
        if self.structure is not None:
            body["structure"] = {kind: dict(things) for kind, things in self.structure.items()}
        return {**body, "sha256": _digest(body)}

    def to_text(self) -> str:
        """The content of the plan file."""
        return json.dumps(self.to_json(), separators=(",", ":")) + "\n"

    def save(self, path: Path) -> None:
        """Write the plan file."""
        path.write_text(self.to_text())

    @staticmethod
    def load(path: Path) -> Plan:
        """Read a plan file.

        Raises:
            UsageError: It cannot be read, or is not a plan.
            GateError: It was changed after it was written.
        """
        try:
            body = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read the plan: {error}", where=str(path)) from error
        if not isinstance(body, dict) or body.get("schema") != SCHEMA:
            raise UsageError(f"not a plan of schema {SCHEMA}", where=str(path))
        if body.pop("sha256", None) != _digest(body):
            raise GateError("the plan was changed after it was written", where=str(path))
        try:
            tensors, interface = (_indices(kept) for kept in (body["tensors"], body.get("interface", {})))
            return Plan(
                body["model_sha256"],
                _groups(body["groups"]),
                tensors,
                tuple(body.get("after", ())),
                interface,
                _groups(body["file_groups"]) if "file_groups" in body else None,
                _masks(body.get("masks", {})),
                body.get("structure"),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"not a plan of schema {SCHEMA}: {error!r}", where=str(path)) from error


def _narrowed(first: Kept, later: Kept) -> Kept:
    """Indices that are left of both."""
    result = {name: dict(axes) for name, axes in first.items()}
    for name, axes in later.items():
        known = result.setdefault(name, {})
        for axis, kept in axes.items():
            known[axis] = tuple(known[axis][k] for k in kept) if axis in known else kept
    return result


def _groups_to_json(groups: tuple[GroupPlan, ...]) -> list[dict[str, Any]]:
    return [{"id": g.id, "kind": g.kind, "size": g.size, "kept": list(g.kept)} for g in groups]


def _groups(groups: list[Mapping[str, Any]]) -> tuple[GroupPlan, ...]:
    return tuple(GroupPlan(g["id"], g["kind"], g["size"], tuple(g["kept"])) for g in groups)


def _masks(masks: Mapping[str, Mapping[str, Any]]) -> dict[str, Mask]:
    found = {name: Mask(tuple(mask["shape"]), mask["bits"]) for name, mask in masks.items()}
    for mask in found.values():
        mask.array()  # what does not unpack is said now
    return found


def _indices_to_json(kept: Mapping[str, Mapping[int, tuple[int, ...]]]) -> dict[str, dict[str, list[int]]]:
    return {name: {str(axis): list(each) for axis, each in axes.items()} for name, axes in kept.items()}


def _indices(kept: Mapping[str, Mapping[str, list[int]]]) -> dict[str, dict[int, tuple[int, ...]]]:
    return {name: {int(axis): tuple(each) for axis, each in axes.items()} for name, axes in kept.items()}


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
