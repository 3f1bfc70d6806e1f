"""How large files are, as they lie on disk and compressed, without holding them in memory."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from surgeon.graph.weights import StoredValues

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    import onnx_graphsurgeon as gs

GZIP_LEVEL, ZSTD_LEVEL = 9, 19
_GZIP_FORMAT = 31  # zlib's number for gzip with the largest window
_PIECE = 1 << 22


@dataclass(frozen=True)
class FileSizes:
    """Bytes of some files together.

    Attributes:
        bytes: As they lie on disk.
        gzip_bytes: After ``gzip -9``, each on its own and without name and time.
        zstd_bytes: After ``zstd -19 --no-check``, each on its own.
    """

    bytes: int
    gzip_bytes: int
    zstd_bytes: int


class Packer(Protocol):
    """Compresses a stream."""

    def compress(self, data: bytes | memoryview, /) -> bytes:
        """Takes a piece and gives what is ready."""

    def flush(self) -> bytes:
        """Gives the rest."""


def gzip_packer() -> Packer:
    """Compresses as ``gzip -9`` does, without name and time."""
    return zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP_FORMAT)


def zstd_packer(length: int) -> Packer:
    """Compresses as ``zstd -19 --no-check`` does a file of ``length`` bytes."""
    import zstandard

    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compressobj(size=length)


def measure_files(paths: Iterable[Path], advance: Callable[[int], None] | None = None) -> FileSizes:
    """Measures files, a piece at a time.

    Takes a second for some 3 MB of weights, most of it for zstd.

    Args:
        paths: The files.
        advance: Is told how many bytes more have been read.
    """
    raw = gzipped = zstandard = 0
    for path in paths:
        packers = gzip_packer(), zstd_packer(path.stat().st_size)
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                raw += len(piece)
                gzipped += len(packers[0].compress(piece))
                zstandard += len(packers[1].compress(piece))
                if advance is not None:
                    advance(len(piece))
        gzipped += len(packers[0].flush())
        zstandard += len(packers[1].flush())
    return FileSizes(raw, gzipped, zstandard)


def files_of(model: Path, graph: gs.Graph) -> list[Path]:
    """A model's file and those that hold its external data, in the order of their names.

    Args:
        model: The file.
        graph: What was loaded from it.
    """
    return sorted({model.resolve(), *_external(graph)})


def _external(graph: gs.Graph) -> Iterator[Path]:
    from surgeon.cost import constants_of

    for constant in constants_of(graph).values():
        stored = vars(constant).get("_values")
        if isinstance(stored, StoredValues) and stored.place is not None:
            yield stored.place.path.resolve()
