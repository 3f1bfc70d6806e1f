"""How large the weights of a graph are, how many are zero, and how many different values they have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.graph.weights import payload
from surgeon.sizes.files import gzip_packer
from surgeon.sizes.stored import stored_weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from surgeon.sizes.stored import Stored


@dataclass(frozen=True)
class TensorSize:
    """What one weight takes, or all of them together.

    Attributes:
        name: The constant that holds the weight, or the tensor that is computed from several; of all weights ``""``.
        elements: How many numbers it is.
        nonzeros: How many of them are not zero; in a quantized weight the zero point is zero.
        distinct_values: How many different numbers there are, as they are stored: of a quantized weight the integers,
            of one that is looked up in a table what is found there.
        bytes: Of the constants it is made of, scales, zero points and tables included.
        gzip_bytes: The same after ``gzip -9``; of all weights, each compressed on its own.
    """

    name: str
    elements: int
    nonzeros: int
    distinct_values: int
    bytes: int
    gzip_bytes: int

    @property
    def sparsity(self) -> float:
        """The fraction of the numbers that are zero."""
        return (self.elements - self.nonzeros) / self.elements if self.elements else 0.0

    def to_json(self) -> dict[str, Any]:
        """``{name, elements, nonzeros, sparsity, distinct_values, bytes, gzip_bytes}``."""
        return {
            "name": self.name,
            "elements": self.elements,
            "nonzeros": self.nonzeros,
            "sparsity": self.sparsity,
            "distinct_values": self.distinct_values,
            "bytes": self.bytes,
            "gzip_bytes": self.gzip_bytes,
        }


@dataclass(frozen=True)
class WeightSizes:
    """What the weights of a graph take: ``tensors`` in the order they are used in, and the ``total``."""

    tensors: tuple[TensorSize, ...]
    total: TensorSize

    def to_json(self) -> dict[str, Any]:
        """``{tensors: [{name, elements, …}], total: {elements, …}}``."""
        total = self.total.to_json()
        del total["name"]
        return {"tensors": [each.to_json() for each in self.tensors], "total": total}


def of_weights(graph: gs.Graph) -> list[TensorSize]:
    """Measures the weights of Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN, also quantized ones.

    Biases, normalizations and embeddings do not count. A weight that several operators read counts once.

    Args:
        graph: The graph; it is not changed, and weights that are not in memory are read one at a time.

    Raises:
        UnsupportedModelError: A weight cannot be read.
    """
    return list(weigh(graph).tensors)


def weigh(graph: gs.Graph) -> WeightSizes:
    """Measures the weights as :func:`of_weights` does, one by one and in total.

    Raises:
        UnsupportedModelError: A weight cannot be read.
    """
    tensors: list[TensorSize] = []
    values: list[NDArray[Any]] = []
    for stored in stored_weights(graph):
        different = np.unique(stored.values)
        values.append(different)
        tensors.append(_measured(stored, len(different)))
    together = len(np.unique(np.concatenate(values))) if values else 0
    return WeightSizes(tuple(tensors), _total(tensors, together))


def _measured(stored: Stored, distinct: int) -> TensorSize:
    raw, zipped = _compressed(stored.constants)
    return TensorSize(
        name=stored.name,
        elements=int(stored.values.size),
        nonzeros=int(np.count_nonzero(stored.values != stored.zero)),
        distinct_values=distinct,
        bytes=raw,
        gzip_bytes=zipped,
    )


def _total(tensors: Sequence[TensorSize], distinct: int) -> TensorSize:
    return TensorSize(
        name="",
        elements=sum(each.elements for each in tensors),
        nonzeros=sum(each.nonzeros for each in tensors),
        distinct_values=distinct,
        bytes=sum(each.bytes for each in tensors),
        gzip_bytes=sum(each.gzip_bytes for each in tensors),
    )


def _compressed(constants: Iterable[gs.Constant]) -> tuple[int, int]:
    """Bytes of constants, and of one gzip file with all of them one after the other."""
    raw = zipped = 0
    packer = gzip_packer()
    for constant in constants:
        for piece in payload(constant):
            raw += len(piece)
            zipped += len(packer.compress(piece))
    return raw, zipped + len(packer.flush())
