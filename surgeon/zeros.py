"""Where tensors of the masked model are zero: for each tensor, the atoms along which removed slices vanish."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, TypeAlias

import onnx_graphsurgeon as gs

from surgeon.axes import Atom, atoms_of, coordinates
from surgeon.graph.weights import peek

if TYPE_CHECKING:
    from collections.abc import Callable

    from surgeon.analysis import Analysis
    from surgeon.ops.op import Op, Zeros

    Atoms: TypeAlias = Callable[[str], frozenset[Atom]]


def vanishing(analysis: Analysis) -> dict[str, set[Atom]]:
    """Propagate zeros from the masked weights forward, by what each rule stated.

    Returns:
        For each tensor the atoms such that the tensor is zero at every position whose coordinate was removed.
    """

    @cache
    def atoms(name: str) -> frozenset[Atom]:
        """The unpinned atoms of a tensor's axes."""
        axes = analysis.axes.get(name) or ()
        return frozenset(a for axis in axes for a in atoms_of(axis) if a.pinned is None)

    result = _masked_constants(analysis, atoms)
    for op in analysis.ops:
        _forward(op, atoms, result)
    return result


def _masked_constants(analysis: Analysis, atoms: Atoms) -> dict[str, set[Atom]]:
    """Constants vanish along all their atoms; copies of one vector of the file only where all of them do."""
    copies: dict[str, dict[str, gs.Constant]] = {}
    for op in analysis.ops:
        for tensor in op.node.inputs:
            if isinstance(tensor, gs.Constant):
                copies.setdefault(getattr(tensor, "origin", tensor.name), {})[tensor.name] = tensor
    result: dict[str, set[Atom]] = {}
    for tensors in copies.values():
        own = {name: set(atoms(name)) for name in tensors}
        if len(own) > 1 and peek(next(iter(tensors.values()))).any():
            same = set.intersection(*own.values())
            same = {atom for atom in same if len({_places(analysis, name, atom) for name in own}) == 1}
            own = dict.fromkeys(own, same)
        result |= own
    return result


def _places(analysis: Analysis, name: str, atom: Atom) -> bytes:
    """Where along the (only) axis of a vector the indices of ``atom`` are."""
    return b"".join(
        place.tobytes() for axis in analysis.axes[name] or () for place in coordinates(axis, atom)
    )


def _forward(op: Op, atoms: Atoms, zero: dict[str, set[Atom]]) -> None:
    for index, tensor in enumerate(op.node.outputs):
        stated = op.facts.zeros_of.get(index, op.facts.zeros)
        if index in op.facts.one_of:
            found = set.intersection(*(zero.get(name, set()) for name in op.facts.one_of[index]))
            zero[tensor.name] = found & atoms(tensor.name)
        elif stated is not None and stated.always:
            zero[tensor.name] = set(atoms(tensor.name))
        elif stated is not None:
            found = _found(stated, [each.name for each in op.node.inputs], atoms, zero)
            zero[tensor.name] = found & atoms(tensor.name)


def _found(stated: Zeros, names: list[str], atoms: Atoms, zero: dict[str, set[Atom]]) -> set[Atom]:
    found: set[Atom] | None = None
    if stated.factors:
        found = set().union(*(zero.get(names[k], set()) for k in stated.factors if k < len(names)))
    if stated.parts:
        found = _joined(names, atoms, zero)
    for k in stated.terms:
        term = zero.get(names[k], set())
        found = set(term) if found is None else found & term
    return found or set()


def _joined(names: list[str], atoms: Atoms, zero: dict[str, set[Atom]]) -> set[Atom]:
    """Along a concatenation an atom vanishes if it does in every part that mentions it."""
    mentioned, somewhere_else = set[Atom](), set[Atom]()
    for name in dict.fromkeys(names):
        mentioned |= atoms(name)
        somewhere_else |= atoms(name) - zero.get(name, set())
    return mentioned - somewhere_else
