"""What the values of a weight promise: zeros that stay zero, and few values that stay few.

Promises are read off the values themselves, so that they hold from one run to the next. Trained weights are hardly ever
zero, and hardly ever equal to one another: where a hundredth of them are zero, or values occur several times over, somebody
made them so. Rounding does as well, as in 8-bit weights that were made floats again, and promises nothing: its values are
multiples of one step, and it makes half as many zeros as there are weights of plus or minus one step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from surgeon.stats.matrices import weights_of
from surgeon.stats.weight import moved, sortable, weight_chain, weight_values

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from surgeon.stats.matrices import Weight

    Array = NDArray[Any]
    Sharing = Literal["", "channel", "tensor"]

FEWEST_ZEROS = 0.01  # of a weight
ROUNDED = (
    0.005  # of the numbers that others of their channel equal in size: with more of them all are rounded
)
MORE = 2  # times as many zeros as numbers of the smallest size are not from rounding
MOST_VALUES = 256
EACH = 2  # times that a value other than zero occurs in the mean, and more; copies of channels make it two
GRID = 16  # more values than these, evenly spaced, are what rounding has left, and nobody's table
COMMON = (
    1.25  # channels in the mean that have a value of the whole weight; with tables of their own it is one
)
OFF_GRID = 0.02  # of a step
ROWS = 2**16  # numbers that are looked at at once


@dataclass(frozen=True)
class Promise:
    """What a weight keeps.

    Attributes:
        zeros: Whether what is zero stays zero.
        sharing: Where its different values are few and stay so: in the whole ``tensor``, in each output ``channel``, or
            nowhere.
        values: How many: of the tensor, or of the channel that has most; 0 without sharing.
    """

    zeros: bool
    sharing: Sharing = ""
    values: int = 0


def promise_of(matrices: Array) -> Promise | None:
    """What the values of a weight promise; None for nothing.

    Args:
        matrices: ``[groups, ..., outputs]``: an output channel is a group's output.
    """
    matrices = sortable(matrices)
    filled = int(np.count_nonzero(matrices))
    zeros = matrices.size - filled
    columns = np.moveaxis(matrices, -1, 1).reshape(matrices.shape[0] * matrices.shape[-1], -1)
    sharing, values = _shared(columns, filled, bool(zeros))
    kept = zeros >= max(FEWEST_ZEROS * matrices.size, 1) and (bool(sharing) or _are_chosen(columns, filled))
    return Promise(kept, sharing, values) if kept or sharing else None


def promises_of(graph: gs.Graph) -> dict[str, tuple[Weight, Promise]]:
    """The weights of a graph that promise something, by the names of the constants they are made of."""
    found: dict[str, tuple[Weight, Promise]] = {}
    for weight in weights_of(graph):
        promise = promise_of(weight.matrices())
        if promise is not None:
            found.setdefault(weight.name, (weight, promise))
    return found


def noted(graph: gs.Graph) -> list[dict[str, Any]]:
    """The same for a report: name, zeros that stay, and how many different values, per tensor or channel."""
    result = []
    for name, (weight, promise) in promises_of(graph).items():
        values = weight_values(weight.tensor)
        result.append(
            {
                "name": name,
                "zeros": int(values.size - np.count_nonzero(values)) if promise.zeros else None,
                "values": promise.values or None,
                "per": promise.sharing or None,
            }
        )
    return result


def channels_of(weight: Weight) -> NDArray[np.int64]:
    """The output channel of every number of the constant that a weight is made of, in its shape."""
    values = weight_values(weight.tensor)
    shape = weight.matrices().shape
    numbers = np.arange(shape[0] * shape[-1]).reshape(shape[0], *[1] * (len(shape) - 2), shape[-1])
    inside = weight.outer(np.broadcast_to(numbers, shape), values.shape)
    chain = weight_chain(weight.tensor) or [weight.tensor]
    places = np.arange(values.size).reshape(chain[0].shape)
    for each in chain[1:]:
        places = moved(each.inputs[0], places)
    result = np.empty(values.size, np.int64)
    result[places.ravel()] = inside.ravel()
    return result.reshape(chain[0].shape)


def _are_chosen(columns: Array, filled: int) -> bool:
    """Whether somebody chose the zeros, so that they are not what rounding has left of small numbers."""
    different = smallest = empty = 0
    for ordered, first in _some_rows(np.abs(columns)):
        there = ordered > 0
        different += int((first & there).sum())
        least = np.min(ordered, axis=1, where=there, initial=np.inf, keepdims=True)
        smallest += int((ordered == least).sum())
        empty += int((~there.any(axis=1)).sum()) * columns.shape[1]
    if filled - different <= ROUNDED * filled or empty >= FEWEST_ZEROS * columns.size:
        return True
    return columns.size - filled - empty > MORE * smallest


def _shared(columns: Array, filled: int, zero: bool) -> tuple[Sharing, int]:
    """Where values are shared, and how many there are; across channels, if channels have them in common."""
    table = _table(columns)
    whole = table is not None and len(table) + zero > 1 and len(table) * EACH < filled
    if table is not None and whole:
        if _is_grid(table):
            return "", 0
        if len(columns) == 1 or _pairs(columns) >= COMMON * len(table):
            return "tensor", len(table) + zero
    found = _most_values(columns, filled)
    if found:
        return "channel", found
    return ("tensor", len(table) + zero) if table is not None and whole else ("", 0)


def _table(columns: Array) -> Array | None:
    """The values other than zero, ascending; None where there are too many."""
    known = np.zeros(0, columns.dtype)
    flat = columns.reshape(-1)
    for start in range(0, flat.size, ROWS):
        known = np.union1d(known, flat[start : start + ROWS])
        if len(known) > MOST_VALUES + 1:
            return None
    known = known[known != 0]
    return known if len(known) <= MOST_VALUES else None


def _most_values(columns: Array, filled: int) -> int:
    """The number of different values in the channel that has most; 0 where they are too many, or rounded ones."""
    pairs = most = 0
    rounded = False
    for ordered, first in _some_rows(columns):
        counts = (first & (ordered != 0)).sum(axis=1)
        pairs += int(counts.sum())
        if counts.max() > MOST_VALUES or pairs * EACH >= filled:
            return 0
        largest = int(first.sum(axis=1).argmax())
        if int(first[largest].sum()) > most:
            most = int(first[largest].sum())
            rounded = _is_grid(ordered[largest][first[largest]])
    return 0 if rounded or most < 2 else most


def _pairs(columns: Array) -> int:
    """How many different values other than zero there are, each channel's counted for itself."""
    return sum(int((first & (ordered != 0)).sum()) for ordered, first in _some_rows(columns))


def _some_rows(columns: Array) -> Iterator[tuple[Array, NDArray[np.bool_]]]:
    """Some channels at a time, each in ascending order, and which of its numbers differ from the one before."""
    step = max(ROWS // max(columns.shape[1], 1), 1)
    for start in range(0, len(columns), step):
        ordered = np.sort(columns[start : start + step], axis=1)
        first = np.ones(ordered.shape, bool)
        first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        yield ordered, first


def _is_grid(table: Array) -> bool:
    """Whether many values are all multiples of one step, as 8-bit numbers are that were made floats again."""
    if len(table) <= GRID:
        return False
    exact = table.astype(np.float64)
    ratios = exact / np.diff(exact).min()
    return bool((np.abs(ratios - np.rint(ratios)) < OFF_GRID).all())
