"""Parsing a large model file without its weights: they are skipped on the wire and stay where they are in the file.

A message is a sequence of fields, each a key and, for those that matter here, a length and so many bytes
(https://protobuf.dev/programming-guides/encoding). Leaving a field out leaves a message without it.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types

from surgeon.graph.weights import Slice, packed_bytes, stamp_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SMALLEST = 4096  # bytes of a weight that is worth skipping
_GRAPH, _INITIALIZER, _RAW_DATA = (
    7,
    5,
    9,
)  # numbers of ModelProto.graph, GraphProto.initializer, TensorProto.raw_data
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # wire types


class _BrokenError(Exception):
    """The bytes are not a message; the ordinary parser says so better."""


def read_light(path: Path) -> tuple[onnx.ModelProto, dict[str, Slice]] | None:
    """Parses a model, leaving large initializers of its main graph in the file.

    Returns:
        The model, in which these initializers have their type and shape but no values and are marked as external, and
        where their bytes are, by name. None where the file cannot be read this way; parsing all of it then says why.

    Raises:
        OSError: The file cannot be read.
    """
    file = path.resolve()
    stamp = stamp_of(file)
    with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
        reader = _Reader(content)
        try:
            model = reader.model()
        except (_BrokenError, DecodeError):
            return None
    places = {name: Slice(file, start, end - start, stamp) for name, (start, end) in reader.found.items()}
    return model, places


class _Reader:
    """One pass over a model file.

    Attributes:
        found: Start and end of the bytes of every weight that was skipped, by name.
    """

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.found: dict[str, tuple[int, int]] = {}

    def model(self) -> onnx.ModelProto:
        """The model without the weights.

        Parts of a message may come in several pieces, which are joined as bytes are.
        """
        head, graph = _Kept(self.content), _Kept(self.content)
        for number, kind, start, inside, end in self._fields(0, len(self.content)):
            if number == _GRAPH and kind == _BYTES:
                self._graph(inside, end, graph)
            else:
                head.keep(start, end)
        model = onnx.ModelProto()
        model.ParseFromString(head.joined())
        model.graph.ParseFromString(graph.joined())
        return model

    def _graph(self, start: int, end: int, kept: _Kept) -> None:
        for number, kind, first, inside, last in self._fields(start, end):
            light = None
            if number == _INITIALIZER and kind == _BYTES and last - inside >= SMALLEST:
                light = self._light(inside, last)
            if light is None:
                kept.keep(first, last)
            else:
                kept.add(onnx.GraphProto(initializer=[light]).SerializeToString())

    def _light(self, start: int, end: int) -> onnx.TensorProto | None:
        """An initializer without its bytes; None where they are few, elsewhere, or not as many as its shape says."""
        kept, raw = _Kept(self.content), []
        for number, kind, first, inside, last in self._fields(start, end):
            if number == _RAW_DATA and kind == _BYTES:
                raw.append((inside, last))
            else:
                kept.keep(first, last)
        if len(raw) != 1 or raw[0][1] - raw[0][0] < SMALLEST:
            return None
        tensor = onnx.TensorProto()
        tensor.ParseFromString(kept.joined())
        known = tensor.data_type in onnx.TensorProto.DataType.values() and min(tensor.dims, default=1) >= 0
        if not known or tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.name in self.found:
            return None
        if tensor.data_type in (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED):
            return None
        if packed_bytes(tensor.data_type, list(tensor.dims)) != raw[0][1] - raw[0][0]:
            return None
        tensor.data_location = onnx.TensorProto.EXTERNAL
        self.found[tensor.name] = raw[0]
        return tensor

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
        """Number, wire type, start of the key, start and end of the content of every field."""
        position = start
        while position < end:
            first = position
            key, position = self._number(position)
            kind, inside = key & 7, position
            if kind == _VARINT:
                _, position = self._number(position)
            elif kind == _BYTES:
                length, inside = self._number(position)
                position = inside + length
            elif kind in (_EIGHT, _FOUR):
                position += 8 if kind == _EIGHT else 4
            else:
                raise _BrokenError
            if position > end:
                raise _BrokenError
            yield key >> 3, kind, first, inside, position

    def _number(self, position: int) -> tuple[int, int]:
        """A number of seven bits per byte, the lowest first, and the position behind it."""
        result = shift = 0
        while shift < 70 and position < len(self.content):
            byte = self.content[position]
            position += 1
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                return result, position
            shift += 7
        raise _BrokenError


class _Kept:
    """Pieces of a message, those that are neighbours in the file joined."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.pieces: list[bytes] = []
        self.start = self.end = 0

    def keep(self, start: int, end: int) -> None:
        """Adds bytes of the file."""
        if start != self.end:
            self._close()
            self.start = start
        self.end = end

    def add(self, piece: bytes) -> None:
        """Adds other bytes."""
        self._close()
        self.pieces.append(piece)

    def joined(self) -> bytes:
        """Everything that was added, in order."""
        self._close()
        return b"".join(self.pieces)

    def _close(self) -> None:
        if self.end > self.start:
            self.pieces.append(self.content[self.start : self.end])
        self.start = self.end
