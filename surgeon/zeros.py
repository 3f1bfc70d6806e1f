"""Where tensors of the masked model are zero: for each tensor, the atoms along which removed slices vanish."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from surgeon.axes import Atom, atoms_of

if TYPE_CHECKING:
    from surgeon.analysis import Analysis
    from surgeon.ops.op import Op


def vanishing(analysis: Analysis) -> dict[str, set[Atom]]:
    """Propagate zeros from the masked weights forward, by what each rule stated.

    Returns:
        For each tensor the atoms such that the tensor is zero at every position whose coordinate was removed.
    """
    result: dict[str, set[Atom]] = {}
    for op in analysis.ops:
        for tensor in op.node.inputs:
            if isinstance(tensor, gs.Constant) and tensor.name not in result:
                result[tensor.name] = _atoms(analysis, tensor.name)
        _forward(op, analysis, result)
    return result


def _atoms(analysis: Analysis, name: str) -> set[Atom]:
    return {a for axis in analysis.axes.get(name) or () for a in atoms_of(axis) if a.pinned is None}


def _forward(op: Op, analysis: Analysis, zero: dict[str, set[Atom]]) -> None:
    stated = op.facts.zeros
    if stated is None:
        return
    names = [tensor.name for tensor in op.node.inputs]
    found: set[Atom] | None = None
    if stated.factors:
        found = set().union(*(zero.get(names[k], set()) for k in stated.factors if k < len(names)))
    if stated.parts:
        found = _joined(analysis, names, zero)
    for k in stated.terms:
        term = zero.get(names[k], set())
        found = set(term) if found is None else found & term
    for tensor in op.node.outputs:
        zero[tensor.name] = (found or set()) & _atoms(analysis, tensor.name)


def _joined(analysis: Analysis, names: list[str], zero: dict[str, set[Atom]]) -> set[Atom]:
    """Along a concatenation an atom vanishes if it does in every part that mentions it."""
    atoms = set().union(*(_atoms(analysis, name) for name in names))
    return {a for a in atoms if all(a in zero.get(n, ()) for n in names if a in _atoms(analysis, n))}
