"""Axis expressions: atoms, and the concatenations, products and selections made of them.

An axis of size 12 may be one atom, ``Concat(4, 8)`` (two feature maps joined), ``Product(3, 4)`` (three heads of four,
leftmost is the slowest index) or a ``Selection`` of another axis by constant indices. Atoms are unification
variables: they can later be bound to an expression, and everything that mentions them sees the refinement.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

_serial = itertools.count()


@dataclass(frozen=True)
class Pin:
    """Why an axis must keep its size: the operator that says so, and the reason in words."""

    op: str
    why: str

    def __str__(self) -> str:
        return f"{self.op}: {self.why}" if self.op else self.why


class Atom:
    """A dimension that is indivisible so far.

    Attributes:
        size: Number of positions, >= 0.
        bound: The expression this atom was refined to, or None.
        pinned: Why the atom must not shrink, or None.
        serial: Creation order, used to make every choice between atoms deterministic.
    """

    __slots__ = ("bound", "pinned", "serial", "size")

    def __init__(self, size: int, pinned: Pin | None = None) -> None:
        self.size = size
        self.bound: Axis | None = None
        self.pinned = pinned
        self.serial = next(_serial)

    def __repr__(self) -> str:
        return f"{'!' if self.pinned else 'a'}{self.serial}:{self.size}"


class Concat:
    """Parts laid one after the other; sizes add."""

    __slots__ = ("parts", "size")

    def __init__(self, parts: Sequence[Axis]) -> None:
        self.parts = tuple(parts)
        self.size: int = sum(p.size for p in self.parts)

    def __repr__(self) -> str:
        return "(" + " + ".join(map(repr, self.parts)) + ")"


class Product:
    """Factors indexed jointly, the leftmost slowest; sizes multiply. No factors at all is an axis of size 1."""

    __slots__ = ("factors", "size")

    def __init__(self, factors: Sequence[Axis]) -> None:
        self.factors = tuple(factors)
        self.size: int = prod(f.size for f in self.factors)

    def __repr__(self) -> str:
        return "(" + " * ".join(map(repr, self.factors)) + ")" if self.factors else "1"


class Selection:
    """Positions of another axis picked by constant indices: a permutation, a subset, or repeats.

    Attributes:
        indices: int64 array ``[size]`` with values in ``[0, base.size)``.
    """

    __slots__ = ("base", "indices", "size")

    def __init__(self, base: Axis, indices: NDArray[np.int64]) -> None:
        self.base = base
        self.indices = indices
        self.size: int = len(indices)

    def __repr__(self) -> str:
        return f"{self.base!r}[{self.size} of {self.base.size}]"


Axis: TypeAlias = Atom | Concat | Product | Selection
ONE = Product(())


def product(*factors: Axis) -> Axis:
    """The product of ``factors``; a single factor is returned as it is."""
    return factors[0] if len(factors) == 1 else Product(factors)


def normal(axis: Axis) -> Axis:
    """``axis`` with bindings followed, nesting of the same kind flattened, empty parts and unit factors dropped."""
    while isinstance(axis, Atom) and axis.bound is not None:
        axis = axis.bound
    if isinstance(axis, Atom):
        return ONE if axis.size == 1 else axis
    if isinstance(axis, Selection):
        if axis.size == 1:
            return ONE
        base = normal(axis.base)
        return axis if base is axis.base else Selection(base, axis.indices)
    if isinstance(axis, Concat):
        parts = [q for p in axis.parts if p.size for q in _flat(normal(p), Concat)]
        if len(parts) == 1:
            return parts[0]
        return axis if _same(parts, axis.parts) else Concat(parts)
    if axis.size == 1:
        return ONE
    factors = [q for f in axis.factors for q in _flat(normal(f), Product)]
    if len(factors) == 1:
        return factors[0]
    return axis if _same(factors, axis.factors) else Product(factors)


def _same(new: list[Axis], old: tuple[Axis, ...]) -> bool:
    return len(new) == len(old) and all(a is b for a, b in zip(new, old, strict=True))


def _flat(axis: Axis, kind: type[Concat | Product]) -> tuple[Axis, ...]:
    if kind is Concat and isinstance(axis, Concat):
        return axis.parts
    if kind is Product and isinstance(axis, Product):
        return axis.factors
    return (axis,)


def atoms_of(axis: Axis) -> Iterator[Atom]:
    """The unbound atoms ``axis`` is made of, left to right, with repeats; atoms of size 1 are skipped."""
    stack: list[Axis] = [axis]
    while stack:
        top = stack.pop()
        if isinstance(top, Atom):
            if top.bound is not None:
                stack.append(top.bound)
            elif top.size != 1:
                yield top
        elif isinstance(top, Selection):
            stack.append(top.base)
        else:
            stack.extend(reversed(top.parts if isinstance(top, Concat) else top.factors))


def is_fixed(axis: Axis) -> bool:
    """Whether every atom of ``axis`` is pinned, so that the axis is only a number and may be re-split in any way."""
    return all(atom.pinned is not None for atom in atoms_of(axis))


def pin(axis: Axis, reason: Pin) -> None:
    """Forbid every atom of ``axis`` to shrink; the first reason given to an atom is kept."""
    for atom in atoms_of(axis):
        if atom.pinned is None:
            atom.pinned = reason


def pin_of(axis: Axis) -> Pin | None:
    """The first reason found on the atoms of ``axis``."""
    return next((atom.pinned for atom in atoms_of(axis) if atom.pinned is not None), None)
