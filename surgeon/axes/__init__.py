"""The algebra of axes: what a tensor axis is made of, and what follows when parts of it are removed."""

from surgeon.axes.expression import (
    ONE,
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
    product,
)
from surgeon.axes.mask import Coordinates, Keep, coordinates, count, mask
from surgeon.axes.unify import cut_at, select, unify

__all__ = [
    "ONE",
    "Atom",
    "Axis",
    "Concat",
    "Coordinates",
    "Keep",
    "Pin",
    "Product",
    "Selection",
    "atoms_of",
    "coordinates",
    "count",
    "cut_at",
    "is_fixed",
    "mask",
    "normal",
    "pin",
    "product",
    "select",
    "unify",
]
