"""Weights that are read only when they are looked at, wherever they are stored."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from surgeon.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHUNK = 1 << 24


@dataclass(frozen=True)
class Slice:
    """Where the bytes of one tensor lie in an external data file: ``length`` bytes from ``offset`` on."""

    path: Path
    offset: int
    length: int


class StoredValues(LazyValues):  # type: ignore[misc]  # graphsurgeon ships no types
    """The values of an initializer, left in the model (or beside it) until somebody needs the numbers.

    ``tensor`` is the initializer's proto; ``place`` says where its bytes are when they are not inside it.
    Arrays handed out are read-only, since copies of a graph share them.
    """

    def __init__(self, tensor: onnx.TensorProto, place: Slice | None = None) -> None:
        self.tensor = tensor
        self.place = place
        self.shape = [int(size) for size in tensor.dims]
        self.dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        self.nbytes = packed_bytes(tensor.data_type, self.shape)
        self._array: weakref.ref[np.ndarray] | None = None

    def load(self) -> np.ndarray:
        """The values as a read-only array; the same one for as long as anybody holds it.

        Raises:
            UnsupportedModelError: An external file has become unreadable or too short since the model was loaded.
        """
        array = self._array() if self._array is not None else None
        if array is None:
            array = self._read()
            array.flags.writeable = False
            self._array = weakref.ref(array)
        return array

    def _read(self) -> np.ndarray:
        if self.place is None:
            array: np.ndarray = onnx.numpy_helper.to_array(self.tensor)
            return array
        if (
            self.nbytes != int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize
        ):  # 4-bit types are packed
            header = onnx.TensorProto(data_type=self.tensor.data_type, dims=self.shape)
            header.raw_data = b"".join(self.chunks())
            return np.asarray(onnx.numpy_helper.to_array(header))
        try:
            count = self.place.length // self.dtype.itemsize
            flat = np.fromfile(self.place.path, dtype=self.dtype, count=count, offset=self.place.offset)
            return flat.reshape(self.shape)
        except (OSError, ValueError) as error:
            raise UnsupportedModelError(
                f"cannot read its values from {self.place.path}", where=f"initializer '{self.tensor.name}'"
            ) from error

    def chunks(self) -> Iterator[bytes]:
        """The little-endian bytes of the tensor, a bounded piece at a time."""
        if self.place is None:
            yield self.tensor.raw_data if self.tensor.HasField("raw_data") else raw_bytes(self._read())
            return
        left = self.place.length
        try:
            with self.place.path.open("rb") as file:
                file.seek(self.place.offset)
                while left > 0:
                    chunk = file.read(min(CHUNK, left))
                    if not chunk:
                        raise EOFError(f"{left} bytes are missing")
                    left -= len(chunk)
                    yield chunk
        except (OSError, EOFError) as error:
            raise UnsupportedModelError(
                f"cannot read its values from {self.place.path}", where=f"initializer '{self.tensor.name}'"
            ) from error


def packed_bytes(data_type: int, shape: list[int] | tuple[int, ...]) -> int:
    """How many bytes ONNX stores for a tensor of this type and shape (2- and 4-bit types are packed)."""
    count = 1
    for size in shape:
        count *= int(size)
    bits = _BITS.get(data_type)
    if bits is None:
        bits = int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type)).itemsize) * 8
    return (count * bits + 7) // 8


_BITS = {
    getattr(onnx.TensorProto, name): bits
    for name, bits in {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2, "STRING": 0}.items()
    if hasattr(onnx.TensorProto, name)
}


def raw_bytes(array: np.ndarray) -> bytes:
    """The bytes ONNX stores for an array: little-endian, row-major, narrow types packed."""
    return onnx.numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape)).raw_data


def peek(constant: gs.Constant) -> np.ndarray:
    """A constant's values without keeping them: what was only stored stays only stored."""
    stored = constant._values  # noqa: SLF001  # .values would cache every weight that is looked at
    return stored.load() if isinstance(stored, LazyValues) else np.asarray(stored)


def stored_bytes(constant: gs.Constant) -> int:
    """How many bytes the constant takes in a model file, without reading it."""
    stored = constant._values  # noqa: SLF001  # asking .values would read it
    return int(stored.nbytes)


def data_type(constant: gs.Constant) -> int:
    """The onnx data type of a constant, without reading its values."""
    stored = constant._values  # noqa: SLF001  # asking .values would read it
    if isinstance(stored, LazyValues):
        sparse = isinstance(stored.tensor, onnx.SparseTensorProto)
        return int(stored.tensor.values.data_type if sparse else stored.tensor.data_type)
    return int(onnx.helper.np_dtype_to_tensor_dtype(stored.dtype))
