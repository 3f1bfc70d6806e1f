"""The grid of a weight that is stored as integers: which numbers its entries can have, and how they are set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.graph.weights import peek
from surgeon.stats.weight import is_rounded, moved, steps_of, weight_chain

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    Array = NDArray[Any]

_BYTE = 255


@dataclass(frozen=True)
class Grid:
    """``(integer - zero) * scale`` for integers from ``least`` to ``most``, entry by entry.

    Attributes:
        scale: In the shape of the weight.
        zero: The zero points, in the same shape.
        least: The smallest integer.
        most: The largest one. Up to 8 bits both are as far from the zero points as any integer that is stored, so that
            a weight that does not use the whole range of its type, such as a symmetric one, or one of 7 bits, stays so.
        places: Which entry of the flat constant each entry of the weight is.
    """

    scale: Array
    zero: Array
    least: int
    most: int
    places: NDArray[np.int64]

    def nearest(self, values: Array) -> Array:
        """The integers nearest to ``values``, halves to even as QuantizeLinear does."""
        scale = np.where(self.scale == 0, 1.0, self.scale)  # of a channel that is all zero
        steps: Array = np.rint(np.asarray(values, np.float64) / scale) + self.zero
        return np.clip(steps, self.least, self.most)

    def numbers(self, integers: Array) -> Array:
        """What integers stand for."""
        return np.asarray((integers - self.zero) * self.scale)


def grid_of(tensor: gs.Tensor) -> Grid:
    """The grid of a weight.

    Raises:
        ValueError: It is not stored as integers.
    """
    chain = weight_chain(tensor)
    if chain is None or not is_rounded(tensor):
        raise ValueError(f"{tensor.name} is not stored as integers")
    stored = peek(chain[0])
    places = np.arange(stored.size).reshape(stored.shape)
    scale = zero = places.astype(np.float64)  # until the DequantizeLinear is met
    for each in chain[1:]:
        node = each.inputs[0]
        if node.op == "DequantizeLinear":
            scale, zero = (array.astype(np.float64) for array in steps_of(node, places.shape))
        elif node.op != "Cast":
            places = moved(node, places)
            scale, zero = moved(node, scale), moved(node, zero)
    low, high = bounds(stored.dtype)
    if high <= _BYTE and stored.size:
        reach = int(np.abs(stored.astype(np.int64).ravel()[places] - zero).max())
        low, high = max(low, int(zero.min()) - reach), min(high, int(zero.max()) + reach)
    return Grid(scale, zero, low, high, places)


def set_integers(tensor: gs.Tensor, integers: Array) -> None:
    """Store other integers for a weight.

    Args:
        tensor: The weight, stored as integers that nobody else reads.
        integers: In the shape of the weight.

    Raises:
        ValueError: It is not stored as integers.
    """
    chain = weight_chain(tensor)
    if chain is None or not is_rounded(tensor):
        raise ValueError(f"{tensor.name} is not stored as integers")
    stored = peek(chain[0])
    flat = np.array(stored.astype(np.int64)).ravel()
    flat[grid_of(tensor).places] = integers
    chain[0].values = flat.reshape(stored.shape).astype(stored.dtype)


def integers_of(tensor: gs.Tensor) -> NDArray[np.int64]:
    """The integers of a weight, in its shape."""
    chain = weight_chain(tensor)
    if chain is None:
        raise ValueError(f"{tensor.name} is no weight")
    flat: NDArray[np.int64] = peek(chain[0]).astype(np.int64).ravel()
    return flat[grid_of(tensor).places]


def bounds(kind: np.dtype[Any]) -> tuple[int, int]:
    """The smallest and the largest integer of a type, those of fewer than 8 bits included."""
    name = np.dtype(kind).name
    bits, signed = int(name.removeprefix("u").removeprefix("int")), not name.startswith("u")
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
