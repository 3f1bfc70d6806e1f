"""Reading an ONNX file into a graph, or saying in one line why it cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types
from onnx_graphsurgeon.logger import G_LOGGER

from surgeon.errors import UnsupportedModelError
from surgeon.graph.build import build
from surgeon.graph.check import check
from surgeon.graph.decode import decode
from surgeon.graph.external import locate
from surgeon.graph.functions import inlined
from surgeon.graph.order import ordered
from surgeon.graph.source import Source
from surgeon.graph.unique import make_names_unique
from surgeon.graph.wire import read_light

if TYPE_CHECKING:
    from collections.abc import Mapping

    from surgeon.graph.weights import Slice

LARGE_FILE = 1 << 22  # bytes of a file whose weights are not read along; smaller ones are simply read
LARGEST_MESSAGE = 2**31 - 1


def load(path: Path | str) -> gs.Graph:
    """Reads and checks a model; weights stay unread until they are needed, so larger files must stay in place.

    ``Constant`` nodes become constants named after their output; initializers that were also inputs stop being
    inputs; local functions are inlined; nodes are in topological order; tensors of bodies beside each other get
    different names. What graphsurgeon cannot hold is kept in
    the graph's :class:`~surgeon.graph.source.Source`.

    Args:
        path: An ``.onnx`` file. External data are looked for in its folder.

    Raises:
        UnsupportedModelError: The file is missing, is not an ONNX model, or is a broken one.
    """
    path = Path(path)
    return _guarded(*read(path), path)


def read(path: Path) -> tuple[onnx.ModelProto, dict[str, Slice]]:
    """Parses a model file without external data; of a large file the weights, too, are left where they are.

    Returns:
        The model, and for weights that were left in the file where they are, by name.

    Raises:
        UnsupportedModelError: There is no such file, or it does not hold an ONNX model.
    """
    where = str(path)
    if not path.exists():
        raise UnsupportedModelError("there is no such file", where=where)
    if not path.is_file():
        raise UnsupportedModelError("is not a file", where=where, hint="give the path of an .onnx file")
    size = path.stat().st_size
    if size == 0:
        raise UnsupportedModelError("is empty", where=where)
    if size > LARGEST_MESSAGE:
        raise UnsupportedModelError(
            "is larger than 2 GB, which ONNX files cannot be",
            where=where,
            hint="store the weights as external data",
        )
    try:
        light = read_light(path) if size > LARGE_FILE else None
        if light is not None and light[0].graph.node:
            return light
        content = path.read_bytes()
    except OSError as error:
        raise UnsupportedModelError(f"cannot be read: {error.strerror}", where=where) from error
    if content[4:8] == b"ORTM":
        raise UnsupportedModelError(
            "is in ORT format, not ONNX", where=where, hint="give the original .onnx file"
        )
    try:
        model = onnx.ModelProto()
        model.ParseFromString(content)
    except DecodeError as error:
        raise UnsupportedModelError("is not an ONNX model, or is cut short", where=where) from error
    if not model.HasField("graph") or not model.graph.node:
        raise UnsupportedModelError("is not an ONNX model: it has no graph", where=where)
    return model, {}


def from_model(model: onnx.ModelProto, path: Path | None = None) -> gs.Graph:
    """A graph from a message in memory, checked as :func:`load` does; the graph keeps parts of the message.

    Args:
        model: The model.
        path: The file it came from: needed for external data.

    Raises:
        UnsupportedModelError: The model is broken.
    """
    return _guarded(model, {}, path)


def _guarded(model: onnx.ModelProto, inside: Mapping[str, Slice], path: Path | None) -> gs.Graph:
    G_LOGGER.severity = G_LOGGER.CRITICAL
    try:
        return _from_model(inlined(model) if model.functions else model, inside, path)
    except UnicodeDecodeError as error:
        raise UnsupportedModelError(
            "has names that are not text: it is damaged", where=str(path or "model")
        ) from error


def _from_model(model: onnx.ModelProto, inside: Mapping[str, Slice], path: Path | None) -> gs.Graph:
    check(model)
    places = locate(model, path, inside)
    graph = build(model, {**inside, **places})
    graph.nodes = ordered(graph.nodes)
    make_names_unique(graph)
    encoded = decode(graph)
    graph.surgeon_source = Source(
        path=path,
        ir_version=int(model.ir_version),
        producer=(model.producer_name, model.producer_version),
        domain=model.domain,
        model_version=int(model.model_version),
        doc_string=model.doc_string,
        metadata=tuple((entry.key, entry.value) for entry in model.metadata_props),
        interface=graph.surgeon_interface,
        external=bool(places),
        encoded=encoded,
    )
    return graph
