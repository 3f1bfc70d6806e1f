"""Masks: which weights of a model stay, position by position, for sparsity that no smaller shape can express."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from surgeon.graph.order import every_node
from surgeon.graph.weights import data_type, derived, peek
from surgeon.stats.recurrent import GATES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from surgeon.plan import Kept

FLOATS = frozenset(
    {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
)
RECURRENT_BIAS = 3  # which input of LSTM, GRU and RNN it is
LEAST_RANK = 2  # vectors are biases and norms, which no pass makes sparse
LEAST_SHARE = (
    0.01  # of one weight's entries; a few zeros happen by chance, when values are rounded or refitted
)
NOTHING_ROUNDED: Mapping[str, float] = MappingProxyType({})
ROUNDED = "shares of zeros that weights had when they became floats"  # where the run keeps them, by name


@dataclass(frozen=True)
class Mask:
    """Which entries of a tensor stay.

    Attributes:
        shape: The tensor's shape.
        bits: One bit per entry, row-major, the first in the highest bit of the first byte, as base64; 1 stays, 0 is zero.
    """

    shape: tuple[int, ...]
    bits: str

    @staticmethod
    def of(stays: NDArray[np.bool_]) -> Mask:
        """Packs a boolean array."""
        return Mask(stays.shape, base64.b64encode(np.packbits(stays.reshape(-1)).tobytes()).decode("ascii"))

    def array(self) -> NDArray[np.bool_]:
        """The boolean array, of ``shape``.

        Raises:
            ValueError: The bits are no base64, or not as many as the shape has entries.
        """
        count = int(np.prod(self.shape, dtype=np.int64))
        try:
            content = np.frombuffer(base64.b64decode(self.bits, validate=True), np.uint8)
        except binascii.Error as error:
            raise ValueError(f"the bits of a mask are no base64: {error}") from error
        if len(content) != (count + 7) // 8:
            raise ValueError(f"a mask of shape {list(self.shape)} has {8 * len(content)} bits")
        return np.unpackbits(content, count=count).astype(bool).reshape(self.shape)

    def to_json(self) -> dict[str, Any]:
        """The object in plans."""
        return {"shape": list(self.shape), "bits": self.bits}


def weights_of(graph: gs.Graph) -> dict[str, gs.Constant]:
    """The float constants of a graph and its bodies that may be sparse, by name."""
    return {
        tensor.name: tensor
        for node in every_node(graph)
        for tensor in node.inputs
        if isinstance(tensor, gs.Constant) and len(tensor.shape) >= LEAST_RANK and data_type(tensor) in FLOATS
    }


def zeros_of(graph: gs.Graph) -> dict[str, float]:
    """The share of zeros of each weight."""
    return {
        name: float(np.mean(peek(each) == 0)) for name, each in weights_of(graph).items() if all(each.shape)
    }


def _recurrent_biases(graph: gs.Graph) -> set[str]:
    """What recurrent operators add: it has an axis for the directions, and a half that may be zero by nature."""
    nodes = [node for node in every_node(graph) if node.op in GATES]
    return {node.inputs[RECURRENT_BIAS].name for node in nodes if len(node.inputs) > RECURRENT_BIAS}


def found_in(
    before: gs.Graph, after: gs.Graph, kept: Kept, rounded: Mapping[str, float] = NOTHING_ROUNDED
) -> tuple[dict[str, Mask], list[str]]:
    """The zeros that a run made.

    Args:
        before: The model file's graph.
        after: What the run made of it, in floats.
        kept: For each weight of ``before`` that shrank, per axis the indices kept.
        rounded: For weights that were integers in ``before``, the share of zeros that they had there.

    Returns:
        For each weight that has got zeros, in the shape it has in ``before``, where it stays; none at all where no weight
        has got more than a few. And the names of weights of ``after`` with many zeros that ``before`` does not have.
    """
    masks: dict[str, Mask] = {}
    strange, many = [], False
    originals, biases = weights_of(before), _recurrent_biases(after)
    for name, weight in weights_of(after).items():
        old = originals.get(name)
        if old is not None and vars(old)["_values"] is vars(weight)["_values"]:
            continue
        stays = peek(weight) != 0
        if stays.all():
            continue
        if old is None or not _fits(weight, old, kept.get(name, {})):
            most = LEAST_SHARE + rounded.get(name, 0.0)
            if np.mean(stays) < 1 - most and name not in biases:
                strange.append(name)
            continue
        places = _places(old.shape, kept.get(name, {}))
        share = float(np.mean((peek(old)[places] != 0) & ~stays))
        if share > 0:
            many = many or share >= LEAST_SHARE
            whole = np.ones(tuple(old.shape), bool)
            whole[places] = stays
            masks[name] = Mask.of(whole)
    return (masks if many else {}), strange


def _fits(weight: gs.Constant, old: gs.Constant, kept: Mapping[int, tuple[int, ...]]) -> bool:
    return list(weight.shape) == [len(kept[k]) if k in kept else size for k, size in enumerate(old.shape)]


def _places(shape: Any, kept: Mapping[int, tuple[int, ...]]) -> tuple[NDArray[Any], ...]:
    return np.ix_(*(np.asarray(kept.get(k, range(size)), np.int64) for k, size in enumerate(shape)))


def impose(graph: gs.Graph, masks: Mapping[str, Mask]) -> None:
    """Sets what does not stay to zero, in place; every mask is of a weight of its shape."""
    weights = weights_of(graph)
    for name, mask in masks.items():
        weights[name].values = derived(weights[name], partial(_masked, stays=mask.array()))


def _masked(values: NDArray[Any], stays: NDArray[np.bool_]) -> NDArray[Any]:
    return np.where(stays, values, values.dtype.type(0))


def violations(graph: gs.Graph, masks: Mapping[str, Mask], kept: Kept) -> Iterator[tuple[str, int | None]]:
    """For each mask the weight's name, and how many of its entries are not zero where they should be.

    None stands for a weight that the graph does not have as floats of that shape under that name.

    Args:
        graph: A cut model.
        masks: In the shapes before the cut.
        kept: For each weight that was cut, per axis the indices kept.
    """
    weights = weights_of(graph)
    for name, mask in masks.items():
        weight, stays = weights.get(name), mask.array()
        stays = stays[_places(stays.shape, kept.get(name, {}))]
        known = weight is not None and tuple(weight.shape) == stays.shape
        yield name, int(np.count_nonzero(peek(weight)[~stays])) if known else None
