"""Random axis expressions of a given size, and what is observable of them: which positions fall with which index."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

import numpy as np
from hypothesis import strategies as st

from surgeon.axes import Atom, Axis, Concat, Pin, Product, Selection, atoms_of, mask

Blueprint = tuple  # ("atom", name, size, pinned) | ("concat", parts) | ("product", factors) | ("select", base, indices)


@dataclass
class Names:
    """Names of atoms handed out so far, by size, so that expressions can share some."""

    by_size: dict[int, list[str]] = field(default_factory=dict)
    fresh: count = field(default_factory=count)


@st.composite
def blueprints(draw, size: int, names: Names, depth: int = 2, selections: bool = True) -> Blueprint:
    """A blueprint of an axis of ``size`` positions; atoms of the same size are sometimes the same."""
    divisors = [d for d in range(2, size) if size % d == 0]
    kinds = ["atom"]
    if depth and size > 1:
        kinds += ["concat", "concat"] + ["product", "product"] * bool(divisors) + ["select"] * selections
    kind = draw(st.sampled_from(kinds))

    def inner(size: int) -> Blueprint:
        return draw(blueprints(size, names, depth - 1, selections))

    if kind == "concat":
        first = draw(st.integers(1, size - 1))
        return ("concat", (inner(first), inner(size - first)))
    if kind == "product":
        outer = draw(st.sampled_from(divisors))
        return ("product", (inner(outer), inner(size // outer)))
    if kind == "select":
        base = draw(st.integers(size, size + 3))
        indices = draw(st.lists(st.integers(0, base - 1), min_size=size, max_size=size))
        return ("select", inner(base), tuple(indices))
    known = names.by_size.setdefault(size, [])
    if known and draw(st.booleans()):
        name = draw(st.sampled_from(known))
    else:
        name = f"{size}#{next(names.fresh)}"
        known.append(name)
    return ("atom", name, size, draw(st.integers(0, 5)) == 0)


def build(blueprint: Blueprint, atoms: dict[str, Atom]) -> Axis:
    """The axis of a blueprint; atoms of the same name are one."""
    kind = blueprint[0]
    if kind == "atom":
        _, name, size, pinned = blueprint
        return atoms.setdefault(name, Atom(size, Pin("test", "wanted") if pinned else None))
    if kind == "select":
        return Selection(build(blueprint[1], atoms), np.array(blueprint[2], dtype=np.int64))
    return (Concat if kind == "concat" else Product)([build(part, atoms) for part in blueprint[1]])


@st.composite
def worlds(draw, axes: int = 2, largest: int = 12, selections: bool = True) -> list[Blueprint]:
    """Blueprints of several axes of one size that may share atoms."""
    size, names = draw(st.integers(1, largest)), Names()
    return [draw(blueprints(size, names, selections=selections)) for _ in range(axes)]


def free_atoms(*axes: Axis) -> list[Atom]:
    """Every atom that may shrink."""
    return list(dict.fromkeys(a for axis in axes for a in atoms_of(axis) if a.pinned is None))


def removals(*axes: Axis) -> frozenset[tuple[bytes, ...]]:
    """What is observable: for every index of every free atom, which positions of each axis fall with it."""
    found = set()
    for atom in free_atoms(*axes):
        for index in range(atom.size):
            kept = np.arange(atom.size) != index
            masks = [mask(axis, {atom: kept}) for axis in axes]
            if not all(each.all() for each in masks):
                found.add(tuple(each.tobytes() for each in masks))
    return frozenset(found)


def random_keep(data: st.DataObject, *axes: Axis) -> dict[Atom, np.ndarray]:
    """Random flags for every free atom, at least one kept."""
    keep = {}
    for atom in free_atoms(*axes):
        flags = data.draw(st.lists(st.booleans(), min_size=atom.size, max_size=atom.size))
        keep[atom] = np.array(flags)
        keep[atom][data.draw(st.integers(0, atom.size - 1))] = True
    return keep
