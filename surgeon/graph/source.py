"""What a graph remembers of the file it came from: everything saving needs that graphsurgeon has no place for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx
    import onnx_graphsurgeon as gs


@dataclass(frozen=True)
class Source:
    """The header of a loaded model.

    ``interface`` holds the original declaration of every graph input and output by name, so that symbolic
    dimensions, denotations and non-tensor types survive unchanged. ``external`` says whether any weight lies
    outside the model file. ``encoded`` has the weights that the file stores as indices of so many bits and a table.
    """

    path: Path | None
    ir_version: int
    producer: tuple[str, str] = ("", "")
    domain: str = ""
    model_version: int = 0
    doc_string: str = ""
    metadata: tuple[tuple[str, str], ...] = ()
    interface: Mapping[str, onnx.ValueInfoProto] = field(default_factory=dict)
    external: bool = False
    encoded: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the model file as it is on disk now; external data are not included."""
        if self.path is None:
            return ""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def source_of(graph: gs.Graph) -> Source | None:
    """The source of a graph made by :func:`surgeon.graph.load.load` or copied from one; None for any other."""
    source = graph.__dict__.get("surgeon_source")  # Graph.__getattr__ would log an error for a missing name
    return source if isinstance(source, Source) else None
