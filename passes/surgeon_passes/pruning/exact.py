"""Exact positions that the user wants kept or gone, translated to indices of channel groups.

A position of an axis stays if all of its coordinates do, so keeping one is always possible. Removing an index of a
group takes every position with that coordinate along, so only whole such sets can go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from surgeon.axes import Axis, atoms_of, coordinates, normal
from surgeon.errors import UsageError
from surgeon.suggest import did_you_mean
from surgeon_passes.pruning.positions import Positions, parse

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from surgeon.axes import Atom
    from surgeon.engine import Model
    from surgeon.groups import Group

    Flags = NDArray[np.bool_]

SHOWN = 12


@dataclass
class Wish:
    """What the user decided about one group: the indices that stay and those that go, ``[size]`` each."""

    stays: Flags
    goes: Flags

    @staticmethod
    def none(size: int) -> Wish:
        """No wish about a group of ``size``."""
        return Wish(np.zeros(size, bool), np.zeros(size, bool))


def wishes(model: Model, keep: Sequence[str], drop: Sequence[str]) -> dict[str, Wish]:
    """Translate the options ``keep`` and ``drop``.

    Returns:
        For each group id about which there is a wish, the wish.

    Raises:
        UsageError: A tensor, axis or position does not exist, positions cannot go without others, or two entries
            contradict each other.
    """
    result: dict[str, Wish] = {}
    for text in keep:
        entry = parse(text, "prune.keep")
        axis = _axis(model, entry, "prune.keep")
        wanted = _flags(entry, axis.size, "prune.keep")
        for group, places in _occurrences(model, axis):
            wish = result.setdefault(group.id, Wish.none(group.size))
            wish.stays[places[wanted & (places >= 0)]] = True
    for text in drop:
        entry = parse(text, "prune.drop")
        axis = _axis(model, entry, "prune.drop")
        for group, goes in _removed(model, entry, axis):
            result.setdefault(group.id, Wish.none(group.size)).goes |= goes
    for name, wish in result.items():
        if wish.goes.all():
            raise UsageError(
                f"nothing would be left of the {len(wish.goes)} indices of group {name}", where="prune.drop"
            )
        both = np.flatnonzero(wish.stays & wish.goes)
        if len(both):
            raise UsageError(
                f"{_listed(both)} of group {name} can not be both kept and dropped", where="prune.drop"
            )
    return {name: wish for name, wish in result.items() if wish.stays.any() or wish.goes.any()}


def _axis(model: Model, entry: Positions, where: str) -> Axis:
    axes = model.analysis.axes.get(entry.tensor)
    if axes is None:
        raise UsageError(
            f"there is no tensor {entry.tensor!r} with a known shape",
            where=where,
            hint=did_you_mean(entry.tensor, [name for name, known in model.analysis.axes.items() if known]),
        )
    if not -len(axes) <= entry.axis < len(axes):
        raise UsageError(f"{entry.tensor} has {len(axes)} axes, not {entry.axis}", where=where)
    return normal(axes[entry.axis])


def _flags(entry: Positions, size: int, where: str) -> Flags:
    flags = np.zeros(size, bool)
    for first, last in entry.ranges:
        if last >= size:
            raise UsageError(f"{entry.tensor}:{entry.axis} has {size} positions, not {last}", where=where)
        flags[first : last + 1] = True
    return flags


def _occurrences(model: Model, axis: Axis) -> Iterator[tuple[Group, NDArray[np.int64]]]:
    """Each group that the axis mentions, with the index every position belongs to, once per occurrence."""
    groups: dict[Atom, Group] = {group.atom: group for group in model.groups}
    for atom in dict.fromkeys(atoms_of(axis)):
        if atom in groups:
            for places in coordinates(axis, atom):
                yield groups[atom], places


def _removed(model: Model, entry: Positions, axis: Axis) -> list[tuple[Group, Flags]]:
    """The indices whose removal removes exactly the positions of ``entry``."""
    wanted = _flags(entry, axis.size, "prune.drop")
    found: dict[str, tuple[Group, Flags]] = {}
    occurrences = list(_occurrences(model, axis))
    for group, places in occurrences:
        _, whole = found.setdefault(group.id, (group, np.ones(group.size, bool)))
        here = places >= 0
        whole[places[here & ~wanted]] = False  # some of its positions have to stay
        if not here.any():
            whole[:] = False
    gone = np.zeros(axis.size, bool)
    for group, places in occurrences:
        here = places >= 0
        present = np.zeros(group.size, bool)
        present[places[here]] = True
        found[group.id][1][~present] = False  # a selection may lack some indices altogether
        gone[here] |= found[group.id][1][places[here]]
    left = np.flatnonzero(wanted & ~gone)
    if len(left):
        raise UsageError(_why_not(entry, axis, int(left[0]), occurrences), where="prune.drop")
    return list(found.values())


def _why_not(
    entry: Positions, axis: Axis, position: int, occurrences: Sequence[tuple[Group, NDArray[np.int64]]]
) -> str:
    ways = []
    for group, places in occurrences:
        if places[position] >= 0:
            together = np.flatnonzero(places == places[position])
            ways.append(f"{_listed(together)} (index {places[position]} of group {group.id}, {group.kind})")
    name = f"{entry.tensor}:{entry.axis}"
    if not ways:
        reason = next(
            (atom.pinned for atom in atoms_of(axis) if atom.pinned is not None), "it belongs to no group"
        )
        return f"position {position} of {name} must stay: {reason}"
    return f"position {position} of {name} cannot go without others; possible are {', or '.join(ways)}"


def _listed(numbers: NDArray[np.int64]) -> str:
    """Numbers as ranges, ``0-7, 12``; long lists are cut short."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ", ".join(texts[:SHOWN]) + (", …" if len(texts) > SHOWN else "")
