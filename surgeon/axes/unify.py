"""Unification of axis expressions: stating that two axes are the same, and what that refines or pins.

Never wrong, only sometimes cautious: where the structures of two axes cannot be made to agree both are pinned, with
the reason. An axis that is pinned throughout is only a number and agrees with anything of its size.
"""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING

import numpy as np

from surgeon.axes.expression import (
    Atom,
    Axis,
    Concat,
    Pin,
    Product,
    Selection,
    atoms_of,
    is_fixed,
    normal,
    pin,
    pin_of,
    product,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SINGLES = "single positions laid side by side"


def unify(left: Axis, right: Axis, op: str = "") -> None:
    """State that ``left`` and ``right`` index the same things.

    Args:
        left: An axis.
        right: An axis of the same size (of another size: both are pinned).
        op: The operator that says so, used in the reasons of pins.
    """
    work = [(left, right)]
    while work:
        a, b = (normal(axis) for axis in work.pop())
        if a is b:
            continue
        if a.size != b.size:
            _clash(a, b, op, f"sizes {a.size} and {b.size} are used as one")
        elif is_fixed(a) or is_fixed(b):
            _spread_pin(a, b, op)
        elif isinstance(a, Atom) or isinstance(b, Atom):
            _bind(a, b, op)
        elif isinstance(a, Concat) and isinstance(b, Concat):
            work += _pair_parts(a, b, op)
        elif isinstance(a, Product) and isinstance(b, Product):
            work += _pair_factors(a, b, op)
        elif isinstance(a, Selection) and isinstance(b, Selection):
            work += _pair_selections(a, b, op)
        elif isinstance(a, Concat) and isinstance(b, Product):
            work += _factor_concat(a, b, op)
        elif isinstance(a, Product) and isinstance(b, Concat):
            work += _factor_concat(b, a, op)
        else:
            _clash(a, b, op, "a selection of channels meets another arrangement of them")


def cut_at(axis: Axis, size: int, op: str = "") -> tuple[Axis, Axis]:
    """Refine ``axis`` to a concatenation whose first part has ``size`` positions; returns both parts."""
    axis = normal(axis)
    if size in (0, axis.size):
        return (axis, Concat(())) if size else (Concat(()), axis)
    if is_fixed(axis):
        reason = pin_of(axis) or Pin(op, SINGLES)
        return Atom(size, reason), Atom(axis.size - size, reason)
    if isinstance(axis, Atom):
        head, tail = Atom(size), Atom(axis.size - size)
        axis.bound = Concat((head, tail))
        return head, tail
    if isinstance(axis, Selection):
        return _narrowed(axis, axis.indices[:size], op), _narrowed(axis, axis.indices[size:], op)
    if isinstance(axis, Concat):
        return _cut_concat(axis, size, op)
    rest = product(*axis.factors[1:])
    if size % rest.size == 0:
        first, second = cut_at(axis.factors[0], size // rest.size, op)
        return product(first, rest), product(second, rest)
    pin(axis, Pin(op, f"split at {size}, inside a block of {rest.size}"))
    return cut_at(axis, size, op)


def select(axis: Axis, indices: Sequence[int] | np.ndarray, op: str = "") -> Axis:
    """``axis`` restricted to constant ``indices``; a contiguous run becomes a part of a concatenation."""
    picked = np.asarray(indices, dtype=np.int64)
    if len(picked) and np.array_equal(picked, np.arange(picked[0], picked[0] + len(picked))):
        _, tail = cut_at(axis, int(picked[0]), op)
        return cut_at(tail, len(picked), op)[0]
    axis = normal(axis)
    if is_fixed(axis):
        return Atom(len(picked), pin_of(axis) or Pin(op, "constant indices"))
    if isinstance(axis, Selection):
        return _narrowed(axis, axis.indices[picked], op)
    return Selection(axis, picked)


def _narrowed(axis: Selection, indices: NDArray[np.int64], op: str) -> Axis:
    """A selection of the same base. A single position becomes a part of it, since an axis of size 1 must not vanish."""
    return select(axis.base, indices, op) if len(indices) == 1 else Selection(axis.base, indices)


def _clash(a: Axis, b: Axis, op: str, why: str) -> None:
    for axis in (a, b):
        pin(axis, Pin(op, why))


def _spread_pin(a: Axis, b: Axis, op: str) -> None:
    reason = pin_of(a) or pin_of(b) or Pin(op, SINGLES)
    pin(a, reason)
    pin(b, reason)


def _bind(a: Axis, b: Axis, op: str) -> None:
    if isinstance(a, Atom) and isinstance(b, Atom) and a.serial < b.serial:
        a, b = b, a  # the younger atom follows the older one
    if not isinstance(a, Atom):
        a, b = b, a
    assert isinstance(a, Atom)
    if any(atom is a for atom in atoms_of(b)):
        _clash(a, b, op, "an axis would have to contain itself")
        return
    if a.pinned is not None:
        pin(b, a.pinned)
    a.bound = b


def _pair_parts(a: Concat, b: Concat, op: str) -> list[tuple[Axis, Axis]]:
    pairs: list[tuple[Axis, Axis]] = []
    left, right = list(reversed(a.parts)), list(reversed(b.parts))
    while left and right:
        x, y = left.pop(), right.pop()
        if x.size > y.size:
            x, rest = cut_at(x, y.size, op)
            left.append(rest)
        elif y.size > x.size:
            y, rest = cut_at(y, x.size, op)
            right.append(rest)
        pairs.append((x, y))
    return pairs


def _pair_factors(a: Product, b: Product, op: str) -> list[tuple[Axis, Axis]]:
    pairs: list[tuple[Axis, Axis]] = []
    left, right = list(reversed(a.factors)), list(reversed(b.factors))
    while left and right:
        x, y = left.pop(), right.pop()
        common = gcd(x.size, y.size)
        if common == 1:
            for axis in (x, y, *left, *right):
                pin(axis, Pin(op, f"blocks of {x.size} and {y.size} do not line up"))
            break
        if x.size > common:
            x, rest = _split(x, common, op)
            left.append(rest)
        if y.size > common:
            y, rest = _split(y, common, op)
            right.append(rest)
        pairs.append((x, y))
    return pairs


def _split(axis: Axis, outer: int, op: str) -> tuple[Axis, Axis]:
    """Refine ``axis`` to a product whose left factor has size ``outer``."""
    axis = normal(axis)
    inner = axis.size // outer
    if isinstance(axis, Atom) and axis.pinned is None:
        left, right = Atom(outer), Atom(inner)
        axis.bound = Product((left, right))
        return left, right
    if isinstance(axis, Concat) and all(part.size % inner == 0 for part in axis.parts):
        right = Atom(inner)
        lefts = [Atom(part.size // inner) for part in axis.parts]
        for part, left in zip(axis.parts, lefts, strict=True):
            unify(part, Product((left, right)), op)
        return Concat(lefts), right
    reason = Pin(op, f"{axis.size} channels are regrouped as {outer} x {inner}")
    pin(axis, reason)
    reason = pin_of(axis) or reason
    return Atom(outer, reason), Atom(inner, reason)


def _factor_concat(parts: Concat, factors: Product, op: str) -> list[tuple[Axis, Axis]]:
    for k in range(1, len(factors.factors)):
        right = product(*factors.factors[k:])
        if all(part.size % right.size == 0 for part in parts.parts):
            lefts = [Atom(part.size // right.size) for part in parts.parts]
            pairs: list[tuple[Axis, Axis]] = [
                (part, Product((left, right))) for part, left in zip(parts.parts, lefts, strict=True)
            ]
            return [*pairs, (Concat(lefts), product(*factors.factors[:k]))]
    _clash(parts, factors, op, "joined parts do not line up with the blocks they are reshaped to")
    return []


def _pair_selections(a: Selection, b: Selection, op: str) -> list[tuple[Axis, Axis]]:
    if a.base.size == b.base.size and np.array_equal(a.indices, b.indices):
        return [(a.base, b.base)]
    _clash(a, b, op, "two different selections of channels are used as one")
    return []


def _cut_concat(axis: Concat, size: int, op: str) -> tuple[Axis, Axis]:
    head: list[Axis] = []
    parts = list(reversed(axis.parts))
    while size:
        part = parts.pop()
        if part.size > size:
            part, rest = cut_at(part, size, op)
            parts.append(rest)
        head.append(part)
        size -= part.size
    return Concat(head), Concat(list(reversed(parts)))
