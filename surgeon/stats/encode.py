"""Weights of few values as small indices and a table, decoded by operators that onnxruntime runs once, when it loads a model.

A byte holds 8, 4, 2 or 1 indices of 1, 2, 4 or 8 bits. A table of all bytes, shared by the weights of one width, says which
indices are in a byte: so decoding is two Gathers and Casts, which every version of the operators has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from surgeon.graph.weights import peek
from surgeon.stats.matrices import weights_of
from surgeon.stats.weight import sortable, weight_values

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.stats.matrices import Weight

WIDTHS = (1, 2, 4, 8)
BYTES = 256
SLICE_TAKES_INPUTS = 10  # before this version of the operators it has attributes
NODES = 1200  # bytes: about what the operators that decode a weight take in a file


def indices_of_bytes(bits: int) -> NDArray[np.uint8]:
    """``[256, 8 / bits]``: which indices each byte holds."""
    shifts = np.arange(0, 8, bits)
    return np.asarray((np.arange(BYTES)[:, None] >> shifts) & (2**bits - 1), np.uint8)


def packed(indices: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Indices, in order, in bytes; the last byte is filled up with zeros."""
    each = 8 // bits
    filled = np.pad(indices.ravel(), (0, -indices.size % each)).reshape(-1, each).astype(np.uint8)
    return np.asarray(np.bitwise_or.reduce(filled << np.arange(0, 8, bits, dtype=np.uint8), axis=1), np.uint8)


def encode(graph: gs.Graph, weights: Sequence[Weight], most: int) -> list[dict[str, Any]]:
    """Replace weights that have few values, in place.

    Args:
        graph: The graph; weights in bodies are decoded inside.
        weights: The weights; those with more values, or that would not get smaller, stay as they are.
        most: How many values a table has at most.

    Returns:
        For each weight ``{name, bits, bytes}`` of what it is stored as, or ``{name, reason}``.
    """
    report: list[dict[str, Any]] = []
    bits = next(width for width in WIDTHS if most <= 2**width)
    found: list[tuple[Weight, _Book]] = []
    for weight in weights:
        book = _book(weight, weight_values(weight.tensor), most)
        if book is None:
            report.append({"name": weight.name, "reason": _many(most)})
        elif book.places.size * book.table.itemsize <= book.stored_bytes(bits) + NODES:
            report.append({"name": weight.name, "reason": "it would not get smaller"})
        else:
            report.append({"name": weight.name, "bits": bits, "bytes": book.stored_bytes(bits)})
            found.append((weight, book))
    indices = _indices(graph, bits)
    for weight, book in found:
        _decode(graph, weight.tensor, book, packed(book.places, bits), indices)
    return report


def encode_again(graph: gs.Graph, bits: Mapping[str, int]) -> list[str]:
    """Store weights as the file did that they come from, in place: with as many bits, or more where they have more values now.

    Args:
        graph: The graph.
        bits: By name of the weight, of how many bits its indices were.

    Returns:
        The names of those that have too many values for that.
    """
    left: list[Weight] = []
    known = [(weight, bits[weight.name]) for weight in weights_of(graph) if weight.name in bits]
    for width in WIDTHS:
        some = [*left, *(weight for weight, before in known if before == width)]
        report = zip(some, encode(graph, some, 2**width), strict=True)
        left = [weight for weight, facts in report if facts.get("reason") == _many(2**width)]
    return [weight.name for weight in left]


def _many(most: int) -> str:
    return f"it has more than {most} values"


def _indices(graph: gs.Graph, bits: int) -> gs.Constant:
    """The table of all bytes, which the graph may have already."""
    name, table = f"surgeon/indices_of_{bits}_bits", indices_of_bytes(bits)
    known = graph.tensors()
    while name in known:
        if isinstance(known[name], gs.Constant) and np.array_equal(peek(known[name]), table):
            return known[name]
        name += "_"
    return gs.Constant(name, table)


@dataclass(frozen=True)
class _Book:
    """A weight as a table and places in it.

    Attributes:
        table: The values, in a row; of each output channel where the channels have tables of their own.
        places: In the shape of the weight.
        offsets: Where the table of a channel starts, broadcastable to that; None where there is one table.
    """

    table: NDArray[Any]
    places: NDArray[Any]
    offsets: NDArray[np.int32] | None = None

    def stored_bytes(self, bits: int) -> int:
        """What it takes with indices of so many bits, without the operators that decode it."""
        offsets = 0 if self.offsets is None else self.offsets.nbytes
        return -(-self.places.size * bits // 8) + self.table.nbytes + offsets


def _book(weight: Weight, values: NDArray[Any], most: int) -> _Book | None:
    """The values of a weight, or of each of its output channels; None where there are too many."""
    table, places = np.unique(sortable(values), return_inverse=True)
    if len(table) <= most:
        return _Book(table.astype(values.dtype), places.reshape(values.shape))
    matrices = sortable(weight.matrices())
    groups, _, _, outputs = matrices.shape
    tables = np.zeros((groups, outputs, most), values.dtype)
    inside = np.zeros(matrices.shape, np.int64)
    for g, o in np.ndindex(groups, outputs):
        found, where = np.unique(matrices[g, :, :, o], return_inverse=True)
        if len(found) > most:
            return None
        tables[g, o, : len(found)] = found
        inside[g, :, :, o] = where.reshape(inside.shape[1:3])
    channels = np.arange(groups * outputs, dtype=np.int32).reshape(groups, 1, 1, outputs) * most
    offsets = weight.outer(np.broadcast_to(channels, matrices.shape), values.shape)
    return _Book(tables.ravel(), weight.outer(inside, values.shape), _narrowed(offsets))


def _narrowed(array: NDArray[np.int32]) -> NDArray[np.int32]:
    """Without what an axis repeats."""
    for axis in range(array.ndim):
        first = array.take([0], axis)
        if (array == first).all():
            array = first
    return array


def _decode(
    graph: gs.Graph, tensor: gs.Tensor, book: _Book, stored: NDArray[np.uint8], indices: gs.Constant
) -> None:
    """Compute a weight from bytes; bodies that read it see it from outside."""
    users = list(tensor.outputs)
    name, shape, kind = tensor.name, book.places.shape, book.table.dtype
    made: list[gs.Node] = []

    def node(op: str, suffix: str, inputs: list[gs.Tensor], dtype: Any, **attributes: Any) -> gs.Variable:
        result = gs.Variable(f"{name}/surgeon/{suffix}", dtype=dtype)
        made.append(gs.Node(op, f"{name}/surgeon/{suffix}", attributes, inputs, [result]))
        return result

    def constant(suffix: str, array: NDArray[Any]) -> gs.Constant:
        return gs.Constant(f"{name}/surgeon/{suffix}", array)

    whole = node("Cast", "bytes", [constant("packed", stored)], np.int32, to=onnx.TensorProto.INT32)
    found = node("Gather", "indices", [indices, whole], np.uint8, axis=0)
    if stored.size * indices.shape[1] > book.places.size:  # the last byte is not full
        found = node("Reshape", "row", [found, constant("all", np.array([-1], np.int64))], np.uint8)
        if graph.opset < SLICE_TAKES_INPUTS:
            found = node("Slice", "used", [found], np.uint8, starts=[0], ends=[book.places.size])
        else:
            ends = [constant("from", np.array([0])), constant("to", np.array([book.places.size]))]
            found = node("Slice", "used", [found, *ends], np.uint8)
    found = node("Cast", "numbers", [found], np.int32, to=onnx.TensorProto.INT32)
    found = node("Reshape", "places", [found, constant("shape", np.array(shape, np.int64))], np.int32)
    if book.offsets is not None:
        found = node("Add", "places_in_all", [found, constant("offsets", book.offsets)], np.int32)
    found = node("Gather", "weight", [constant("table", book.table), found], kind, axis=0)
    graph.nodes[:0] = made
    for user in users:
        for k, given in enumerate(user.inputs):
            if given is tensor:
                user.inputs[k] = found
