"""Finding the bytes of weights that are stored beside the model file."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

import onnx

from surgeon.errors import UnsupportedModelError
from surgeon.graph.weights import Slice, packed_bytes, stamp_of

if TYPE_CHECKING:
    from collections.abc import Container


def locate(model: onnx.ModelProto, path: Path | None, known: Container[str] = ()) -> dict[str, Slice]:
    """Where the bytes of every externally stored initializer are, by name; nothing is read.

    See https://onnx.ai/onnx/repo-docs/ExternalData.html.

    Args:
        model: The model.
        path: The file it came from.
        known: Names of initializers that need not be located.

    Raises:
        UnsupportedModelError: A data file is missing, too short, or outside the model's folder.
    """
    stamps: dict[Path, tuple[int, int]] = {}
    places = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL and tensor.name not in known:
            places[tensor.name] = _locate(tensor, path, stamps)
    return places


def _locate(tensor: onnx.TensorProto, path: Path | None, stamps: dict[Path, tuple[int, int]]) -> Slice:
    where = f"initializer '{tensor.name}'"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if path is None:
        raise UnsupportedModelError(
            "its external data cannot be found",
            where=where,
            hint="give the model as a path, not as a message",
        )
    file = _inside(path.resolve().parent, location, where)
    if file not in stamps:
        if not file.is_file():
            raise UnsupportedModelError(f"its external data file '{location}' is missing", where=where)
        stamps[file] = stamp_of(file)
    needed = packed_bytes(tensor.data_type, list(tensor.dims))
    try:
        offset = int(entries.get("offset", "0") or 0)
        length = int(entries.get("length", "") or needed)
    except ValueError as error:
        raise UnsupportedModelError(
            "its external data have a broken offset or length", where=where
        ) from error
    if length != needed:
        raise UnsupportedModelError(
            f"its shape {list(tensor.dims)} needs {needed} bytes, but {length} are stored", where=where
        )
    if offset < 0 or offset + length > stamps[file][0]:
        raise UnsupportedModelError(f"its external data file '{location}' is cut short", where=where)
    return Slice(file, offset, length, stamps[file])


def _inside(folder: Path, location: str, where: str) -> Path:
    """The data file, which must lie in the model's folder even after links are followed: a model is untrusted."""
    absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).drive
    if not location or absolute or "\0" in location:
        raise UnsupportedModelError(
            f"its external data location '{location}' is not a relative path", where=where
        )
    file = (folder / location).resolve()
    if not file.is_relative_to(folder):
        raise UnsupportedModelError(
            f"its external data location '{location}' leaves the model's folder", where=where
        )
    return file
