"""Channel groups: what can be removed from a network, with everything that must go along."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from surgeon.axes import Atom, Axis, Concat, Pin, Product, Selection, atoms_of, normal
from surgeon.zeros import vanishing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from surgeon.analysis import Analysis
    from surgeon.ops.op import Op

RECURRENT = ("LSTM", "GRU", "RNN")
CONVOLUTIONS = (
    "Conv",
    "ConvTranspose",
    "ConvInteger",
    "FusedConv",
    "NhwcConv",
    "NhwcFusedConv",
    "QLinearConv",
)


@dataclass(eq=False)
class Group:
    """Channels, heads or hidden units that stand and fall together, index by index.

    Attributes:
        id: A stable name: the first weight (or tensor) axis the group occurs in.
        kind: channel, group, head, head_dim, hidden, expert or unit.
        size: Number of indices.
        members: (tensor, axis) pairs whose axis mentions the group.
        producers: Nodes whose weights write these channels.
        consumers: Nodes whose weights or operands are summed over these channels.
        structural: Why removing indices cannot be exact, or None.
    """

    id: str
    kind: str
    size: int
    atom: Atom
    members: list[tuple[str, int]] = field(default_factory=list)
    producers: list[str] = field(default_factory=list)
    consumers: list[str] = field(default_factory=list)
    structural: str | None = None


@dataclass(frozen=True)
class Pinned:
    """Axes that must keep their size: why, and where."""

    size: int
    reason: Pin
    members: tuple[tuple[str, int], ...]


def find_groups(analysis: Analysis) -> list[Group]:
    """Every unpinned atom of size >= 2 that reaches an activation, in graph order."""
    found: dict[Atom, Group] = {}
    constants = set()
    for name, axes, constant in _tensors(analysis):
        for k, axis in enumerate(axes):
            for atom in dict.fromkeys(atoms_of(axis)):
                if atom.pinned is not None or atom.size < 2:
                    continue
                group = found.setdefault(atom, Group("", "unit", atom.size, atom))
                group.members.append((name, k))
                if not constant:
                    constants.add(atom)
    # what runs along the weights of one operator only, as the dimensions of fused heads do
    constants |= {atom for op in analysis.ops for axis, _ in op.facts.kinds for atom in atoms_of(axis)}
    groups = [group for atom, group in found.items() if atom in constants]
    by_atom = {group.atom: group for group in groups}
    for op in analysis.ops:
        _note_roles(op, analysis, by_atom)
    _note_structural(analysis, by_atom)
    _name(groups, analysis)
    return groups


def find_pinned(analysis: Analysis) -> list[Pinned]:
    """Every pinned atom of size >= 2 with its reason, merged by reason and size."""
    members: dict[tuple[int, Pin], list[tuple[str, int]]] = {}
    for name, axes, _ in _tensors(analysis):
        for k, axis in enumerate(axes):
            for atom in dict.fromkeys(atoms_of(axis)):
                if atom.pinned is not None:
                    members.setdefault((atom.size, atom.pinned), []).append((name, k))
    return [Pinned(size, reason, tuple(dict.fromkeys(where))) for (size, reason), where in members.items()]


def products_of(analysis: Analysis) -> list[list[list[Atom]]]:
    """For each distinct product of unpinned factors: the atoms of each factor, the slowest factor first."""
    seen: dict[tuple[int, ...], list[list[Atom]]] = {}
    for _, axes, _ in _tensors(analysis):
        for axis in axes:
            for levels in _levels(axis):
                seen.setdefault(tuple(a.serial for level in levels for a in level), levels)
    return list(seen.values())


def _levels(axis: Axis) -> Iterator[list[list[Atom]]]:
    axis = normal(axis)
    if isinstance(axis, Product):
        levels = [[a for a in atoms_of(factor) if a.pinned is None and a.size > 1] for factor in axis.factors]
        levels = [level for level in levels if level]
        if len(levels) > 1:
            yield levels
        for factor in axis.factors:
            yield from _levels(factor)
    elif isinstance(axis, Selection):
        yield from _levels(axis.base)
    elif isinstance(axis, Concat):
        for part in axis.parts:
            yield from _levels(part)


def _tensors(analysis: Analysis) -> Iterator[tuple[str, list[Axis], bool]]:
    constants: list[str] = []
    variables: list[str] = []
    seen: set[str] = set()
    for tensor in [t for op in analysis.ops for t in (*op.node.inputs, *op.node.outputs)]:
        if tensor.name not in seen:
            seen.add(tensor.name)
            (constants if isinstance(tensor, gs.Constant) else variables).append(tensor.name)
    for names, constant in ((constants, True), (variables, False)):
        for name in names:
            axes = analysis.axes.get(name)
            if axes:
                yield name, axes, constant


def _note_roles(op: Op, analysis: Analysis, groups: dict[Atom, Group]) -> None:
    """Producers, consumers and kinds, read off the solved axes of weighted operators."""
    for axis, kind in op.facts.kinds:
        for atom in set(atoms_of(axis)) & groups.keys():
            groups[atom].kind = kind
    if not op.facts.contracted:
        return
    name = op.node.name or op.node.outputs[0].name
    weighted = [k for k, t in enumerate(op.node.inputs) if t.name and derived_from_constants(t)]
    contracted = {a for axes in op.facts.contracted.values() for axis in axes for a in atoms_of(axis)}
    for atom in contracted & groups.keys():
        groups[atom].consumers.append(name)
    written = {
        a
        for k in weighted
        for axis in analysis.axes.get(op.node.inputs[k].name) or ()
        for a in atoms_of(axis)
        if a not in contracted
    }
    for atom in sorted(written & groups.keys(), key=lambda a: a.serial):
        groups[atom].producers.append(name)
    touched = sorted((contracted | written) & groups.keys(), key=lambda a: a.serial)
    for atom in touched:
        if op.node.op in CONVOLUTIONS and groups[atom].kind == "unit":
            groups[atom].kind = "channel"
        elif op.node.op in RECURRENT and any(a is atom for a in atoms_of(op.axes[op.node.inputs[2].name][2])):  # type: ignore[index]  # the rule ran
            groups[atom].kind = "hidden"
    if not weighted and len(op.node.inputs) > 1 and not op.facts.kinds and op.node.op not in RECURRENT:
        _note_heads(op, analysis, groups, contracted)


def _note_heads(op: Op, analysis: Analysis, groups: dict[Atom, Group], contracted: set[Atom]) -> None:
    """A product of two activations: shared leading axes are heads, the others their dimensions."""
    inputs = [analysis.axes.get(t.name) or [] for t in op.node.inputs[:2]]
    both = set.intersection(*({a for axis in axes for a in atoms_of(axis)} for axes in inputs))
    either = {a for axes in inputs for axis in axes for a in atoms_of(axis)}
    for atom in either & groups.keys():
        shared = atom in both and atom not in contracted
        groups[atom].kind = "head" if shared else "head_dim"


def derived_from_constants(tensor: gs.Tensor) -> bool:
    """Whether ``tensor`` is a constant, or computed from constants by unary operators (Transpose, Cast, ...)."""
    for _ in range(64):
        if isinstance(tensor, gs.Constant):
            return True
        if not tensor.inputs or not tensor.inputs[0].inputs:
            return False
        node = tensor.inputs[0]
        if not all(isinstance(t, gs.Constant) for t in node.inputs[1:]):
            return False
        tensor = node.inputs[0]
    return False


def _note_structural(analysis: Analysis, groups: dict[Atom, Group]) -> None:
    zero = vanishing(analysis)
    for op in analysis.ops:
        summed = {a for axes in op.facts.contracted.values() for axis in axes for a in atoms_of(axis)}
        masked = set[Atom]().union(*(zero.get(tensor.name, ()) for tensor in op.node.inputs))
        for atom in (summed & groups.keys()) - masked:
            groups[atom].structural = (
                groups[atom].structural or f"{op.name}: sums over it, and what is removed is not zero there"
            )
        for reduction in op.facts.reductions:
            for atom in set(atoms_of(reduction.axis)) & groups.keys():
                if reduction.exact_on_zeros and atom in zero.get(reduction.tensor, ()):
                    continue
                groups[atom].structural = (
                    groups[atom].structural or f"{op.name}: {reduction.why} runs over it"
                )


def _name(groups: list[Group], analysis: Analysis) -> None:
    del analysis
    used: dict[str, int] = {}
    for group in groups:
        base = f"{group.members[0][0]}:{group.members[0][1]}"
        used[base] = used.get(base, 0) + 1
        group.id = base if used[base] == 1 else f"{base}#{used[base]}"
