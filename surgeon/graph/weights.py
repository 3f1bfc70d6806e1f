"""Weights that are read only when they are looked at, wherever they are stored."""

from __future__ import annotations

import sys
import weakref
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.ir.tensor import SparseValues as GraphsurgeonSparseValues

from surgeon.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

CHUNK = 1 << 24
LARGE = (
    1 << 20
)  # bytes of a constant that is computed anew whenever it is looked at rather than held in memory


@dataclass(frozen=True)
class Slice:
    """Where the bytes of one tensor lie in a file: ``length`` bytes from ``offset`` on.

    ``stamp`` is what the file's size and time were when the model was loaded; None where nobody looked.
    """

    path: Path
    offset: int
    length: int
    stamp: tuple[int, int] | None = None


def stamp_of(path: Path) -> tuple[int, int]:
    """Size and time of last change of a file, by which a later change is noticed."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


class UnreadValues(LazyValues):  # type: ignore[misc]  # graphsurgeon ships no types
    """Values that nobody holds: they are read or computed when they are looked at, and forgotten afterwards.

    Arrays handed out are read-only, since copies of a graph share them.

    Attributes:
        kind: The onnx data type.
        shape, dtype, nbytes: As those of an array; narrow types count as packed.
    """

    def __init__(self, kind: int, shape: Sequence[int]) -> None:
        self.kind = int(kind)
        self.shape = tuple(int(size) for size in shape)
        self.dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self.kind))
        self.nbytes = packed_bytes(self.kind, self.shape)
        self._array: weakref.ref[np.ndarray] | None = None

    def load(self) -> np.ndarray:
        """The values as a read-only array; the same one for as long as anybody holds it.

        Raises:
            UnsupportedModelError: A file has become unreadable, too short or another one since the model was loaded.
        """
        array = self._array() if self._array is not None else None
        if array is None:
            array = self._read()
            array.flags.writeable = False
            self._array = weakref.ref(array)
        return array

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The little-endian bytes of the tensor, a bounded piece at a time where they are in a file."""
        yield raw_bytes(self.load())

    @property
    def tensor(self) -> onnx.TensorProto:
        """A message with the values inside; graphsurgeon's own exporter asks for it."""
        result = onnx.TensorProto(data_type=self.kind, dims=self.shape)
        result.raw_data = b"".join(self.chunks())
        return result

    def _read(self) -> np.ndarray:
        raise NotImplementedError


class StoredValues(UnreadValues):
    """The values of an initializer, left in the model (or in a file) until somebody needs the numbers.

    ``message`` is the initializer's proto; ``place`` says where its bytes are when they are not inside it.
    """

    def __init__(self, message: onnx.TensorProto, place: Slice | None = None) -> None:
        super().__init__(message.data_type, message.dims)
        self.message = message
        self.place = place

    @property
    def tensor(self) -> onnx.TensorProto:
        """The initializer, with its values inside."""
        return self.message if self.place is None else super().tensor

    def _read(self) -> np.ndarray:
        if self.place is None:
            array: np.ndarray = onnx.numpy_helper.to_array(self.message)
            return array
        if (
            self.nbytes != int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize
        ):  # 4-bit types are packed
            header = onnx.TensorProto(data_type=self.kind, dims=self.shape)
            header.raw_data = b"".join(self.chunks())
            return np.asarray(onnx.numpy_helper.to_array(header))
        with self._opened(self.place) as file:
            count = self.place.length // self.dtype.itemsize
            flat = np.fromfile(file, dtype=self.dtype, count=count, offset=self.place.offset)
            return flat.reshape(self.shape)

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The little-endian bytes of the tensor, a bounded piece at a time."""
        if self.place is None:
            yield self.message.raw_data if self.message.HasField("raw_data") else raw_bytes(self._read())
            return
        left = self.place.length
        with self._opened(self.place) as file:
            file.seek(self.place.offset)
            while left > 0:
                chunk = file.read(min(CHUNK, left))
                if not chunk:
                    raise EOFError(f"{left} bytes are missing")
                left -= len(chunk)
                yield chunk

    @contextmanager
    def _opened(self, place: Slice) -> Iterator[IO[bytes]]:
        where = f"initializer '{self.message.name}'"
        try:
            if place.stamp is not None and stamp_of(place.path) != place.stamp:
                raise UnsupportedModelError(
                    f"{place.path} has changed since the model was loaded", where=where, hint="load it again"
                )
            with place.path.open("rb") as file:
                yield file
        except (OSError, ValueError, EOFError) as error:
            raise UnsupportedModelError(f"cannot read its values from {place.path}", where=where) from error


class DerivedValues(UnreadValues):
    """Values that follow from others, such as what is left of a weight after a cut."""

    def __init__(
        self,
        source: LazyValues | np.ndarray,
        function: Callable[[np.ndarray], np.ndarray],
        kind: int,
        shape: Sequence[int],
    ) -> None:
        super().__init__(kind, shape)
        self.source, self.function = source, function

    def _read(self) -> np.ndarray:
        values = self.source.load() if isinstance(self.source, LazyValues) else self.source
        result = self.function(values)
        return result.view() if result is values else result  # whose flags are somebody else's


class SparseValues(GraphsurgeonSparseValues):  # type: ignore[misc]  # graphsurgeon ships no types
    """The values of a sparse initializer; graphsurgeon's own class overlooks those that are stored as raw bytes."""

    def load(self) -> np.ndarray:
        """The values with their zeros, in their own type."""
        values, indices = (
            onnx.numpy_helper.to_array(each) for each in (self.tensor.values, self.tensor.indices)
        )
        dense = np.zeros(tuple(self.tensor.dims), values.dtype)
        if indices.ndim == 1:  # places in the flattened tensor, else coordinates
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
        return dense


def derived(
    constant: gs.Constant,
    function: Callable[[np.ndarray], np.ndarray],
    shape: Sequence[int] | None = None,
) -> np.ndarray | DerivedValues:
    """What ``function`` makes of a constant's values, as the values of a constant.

    Small ones are computed at once. Large ones are computed each time they are looked at, so that a graph never holds
    the weights of a model that it came from a file.

    Args:
        constant: Where the values come from; its type is kept.
        function: Must not write into the array it is given, and always return the same for it.
        shape: The shape of the result; by default it stays the same.
    """
    if stored_bytes(constant) < LARGE:
        return function(peek(constant))
    stored = constant._values  # noqa: SLF001  # .values would keep what is only stored
    return DerivedValues(stored, function, data_type(constant), stored.shape if shape is None else shape)


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


def raw_bytes(array: np.ndarray) -> bytes | memoryview:
    """The bytes ONNX stores for an array: little-endian, row-major, narrow types packed; not copied where possible."""
    whole = np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype.hasobject or sys.byteorder != "little" or array.dtype.name in _PACKED:
        raw: bytes = onnx.numpy_helper.from_array(whole).raw_data
        return raw
    return memoryview(whole.reshape(-1).view(np.uint8))  # type: ignore[arg-type]  # arrays are buffers


_PACKED = frozenset({"int4", "uint4", "int2", "uint2", "float4_e2m1fn"})


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
    if isinstance(stored, UnreadValues):
        return stored.kind
    if isinstance(stored, LazyValues):
        sparse = isinstance(stored.tensor, onnx.SparseTensorProto)
        return int(stored.tensor.values.data_type if sparse else stored.tensor.data_type)
    return int(onnx.helper.np_dtype_to_tensor_dtype(stored.dtype))


def payload(constant: gs.Constant) -> Iterator[bytes | memoryview]:
    """The bytes ONNX stores for a constant, a bounded piece at a time where they are in a file.

    Of a sparse one these are its whole message.
    """
    stored = constant._values  # noqa: SLF001  # .values would read and keep it
    if isinstance(stored, UnreadValues):
        yield from stored.chunks()
    elif isinstance(stored, SparseValues):
        yield stored.tensor.SerializeToString(deterministic=True)
    else:
        yield raw_bytes(peek(constant))
