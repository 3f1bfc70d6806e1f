"""Writing a graph as an ONNX file: atomically, deterministically, one tensor in memory at a time."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import onnx
from onnx_graphsurgeon.ir.tensor import LazyValues

from surgeon.errors import UsageError
from surgeon.graph.order import ordered
from surgeon.graph.proto import constant_proto, interface_entry, node_proto, own_constants
from surgeon.graph.schemas import opsets
from surgeon.graph.source import source_of
from surgeon.graph.weights import SparseValues, data_type, packed_bytes, payload, stored_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_graphsurgeon as gs

# onnxruntime refuses newer files; 4 is the first that needs no input for every initializer.
NEWEST_IR, OLDEST_IR = 13, 4
LARGEST_FILE = 1_800_000_000  # protobuf stops at 2 GiB; beyond this the weights get a file of their own
LARGEST_KEPT_INSIDE = 64_000_000  # for models whose weights were outside already
ALIGNMENT = 4096  # so that weights can be mapped into memory


def to_model(graph: gs.Graph) -> onnx.ModelProto:
    """The graph as one message, weights included; for models that fit into memory twice."""
    model = _skeleton(graph)
    for constant in own_constants(graph):
        if isinstance(constant._values, SparseValues):  # noqa: SLF001  # .values would make it dense
            model.graph.sparse_initializer.append(constant._values.tensor)  # noqa: SLF001  # as above
        else:
            model.graph.initializer.append(constant_proto(constant))
    return model


def save(graph: gs.Graph, path: Path | str) -> None:
    """Writes the graph to a file that appears complete or not at all, even when the process is killed.

    Models over 1.8 GB, and models over 64 MB whose weights were outside their file already, get their weights in
    ``NAME.<digest>.data`` beside it. The same graph gives the same bytes.

    Raises:
        UsageError: The file cannot be written.
    """
    path = Path(path)
    constants = own_constants(graph)
    total = sum(stored_bytes(constant) for constant in constants)
    source = source_of(graph)
    outside = total > LARGEST_FILE or (source is not None and source.external and total > LARGEST_KEPT_INSIDE)
    if path.is_dir():
        raise UsageError("is a folder, not a file to write", where=str(path))
    try:
        if outside:
            _save_outside(graph, constants, path)
        else:
            with _Replacement(path) as file:
                _write_inside(graph, constants, file)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror or error}", where=str(path)) from error


def _skeleton(graph: gs.Graph) -> onnx.ModelProto:
    versions = opsets(graph)
    source = source_of(graph)
    nodes = ordered(graph.nodes)
    model = onnx.ModelProto(
        producer_name=graph.producer_name or "", producer_version=graph.producer_version or ""
    )
    used = {node.domain or "" for node in nodes} | {
        node.domain or "" for body in graph.subgraphs(recursive=True) for node in body.nodes
    }
    for domain in sorted(used - set(versions)):
        versions[domain] = 1
    model.opset_import.extend(
        onnx.helper.make_opsetid(domain, version) for domain, version in versions.items()
    )
    declared = source.ir_version if source is not None else (graph.ir_version or OLDEST_IR)
    model.ir_version = min(max(declared, OLDEST_IR, _needed_ir(versions)), NEWEST_IR)
    if source is not None:
        model.domain, model.doc_string = source.domain, source.doc_string
        model.model_version = source.model_version
        model.metadata_props.extend(
            onnx.StringStringEntryProto(key=key, value=value) for key, value in source.metadata
        )
    result = model.graph
    result.name, result.doc_string = graph.name or "graph", graph.doc_string or ""
    result.input.extend(interface_entry(graph, tensor) for tensor in graph.inputs)
    result.output.extend(interface_entry(graph, tensor) for tensor in graph.outputs)
    result.node.extend(node_proto(node, versions) for node in nodes)
    return model


def _needed_ir(versions: dict[str, int]) -> int:
    standard_only = [onnx.helper.make_opsetid("", versions[""])]
    return int(onnx.helper.find_min_ir_version_for(standard_only, ignore_unknown=True))


class _Replacement:
    """A temporary file beside the target that takes its place when all went well, and vanishes when not."""

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self.path, self.durable = path, durable

    def __enter__(self) -> IO[bytes]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{self.path.name[:100]}.", suffix=".part", dir=self.path.parent
        )
        self.temporary = Path(name)
        self.file = os.fdopen(handle, "wb")
        return self.file

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.file.flush()
                mask = os.umask(0)
                os.umask(mask)
                os.fchmod(
                    self.file.fileno(), 0o666 & ~mask
                )  # mkstemp makes private files; a model is not one
                if self.durable:
                    os.fsync(self.file.fileno())
                self.file.close()
                self.temporary.replace(self.path)
        finally:
            self.file.close()
            with suppress(FileNotFoundError):
                self.temporary.unlink()


def _write_inside(graph: gs.Graph, constants: list[gs.Constant], file: IO[bytes]) -> None:
    """Writes the model message field by field, so that no more than one tensor is in memory.

    A message is the concatenation of its fields: the skeleton's graph is followed by one initializer after
    another, and the graph's length is the sum.
    """
    model = _skeleton(graph)
    sparse = [constant for constant in constants if isinstance(constant._values, SparseValues)]  # noqa: SLF001
    model.graph.sparse_initializer.extend(constant._values.tensor for constant in sparse)  # noqa: SLF001
    dense = [constant for constant in constants if not isinstance(constant._values, SparseValues)]  # noqa: SLF001
    graph_bytes = model.graph.SerializeToString(deterministic=True)
    model.ClearField("graph")
    headers = [_header(constant).SerializeToString(deterministic=True) for constant in dense]
    sizes = [_payload_size(constant) for constant in dense]
    lengths = [
        len(header) + (len(_key(9, size)) + size if size else 0)
        for header, size in zip(headers, sizes, strict=True)
    ]
    whole = len(graph_bytes) + sum(len(_key(5, length)) + length for length in lengths)
    file.write(model.SerializeToString(deterministic=True))
    file.write(_key(7, whole))
    file.write(graph_bytes)
    for constant, header, size, length in zip(dense, headers, sizes, lengths, strict=True):
        file.write(_key(5, length))
        file.write(header)
        if size:
            file.write(_key(9, size))
            for chunk in payload(constant):
                file.write(chunk)


def _key(field: int, length: int) -> bytes:
    """Tag and length of a length-delimited protobuf field (https://protobuf.dev/programming-guides/encoding)."""
    result = bytearray()
    for number in (field << 3 | 2, length):
        left = number
        while left > 0x7F:
            result.append(left & 0x7F | 0x80)
            left >>= 7
        result.append(left)
    return bytes(result)


def _header(constant: gs.Constant) -> onnx.TensorProto:
    kind = data_type(constant)
    if kind == onnx.TensorProto.STRING:
        return constant_proto(constant)
    return onnx.TensorProto(name=constant.name, data_type=kind, dims=[int(size) for size in constant.shape])


def _payload_size(constant: gs.Constant) -> int:
    return 0 if data_type(constant) == onnx.TensorProto.STRING else _raw_length(constant)


def _raw_length(constant: gs.Constant) -> int:
    stored = constant._values  # noqa: SLF001  # .values would read it
    if isinstance(stored, LazyValues):
        return int(stored.nbytes)
    return packed_bytes(data_type(constant), stored.shape)


def save_apart(graph: gs.Graph, path: Path) -> None:
    """Writes a graph for onnxruntime to read soon: with its weights in ``NAME.data``, which it maps into memory.

    Nothing is forced to disk.

    Raises:
        UsageError: The files cannot be written.
    """
    try:
        with _Replacement(path.with_name(f"{path.name}.data"), durable=False) as file:
            model = _write_weights(graph, own_constants(graph), file)
        _locate(model, path.with_name(f"{path.name}.data"))
        with _Replacement(path, durable=False) as file:
            file.write(model.SerializeToString())
    except OSError as error:
        hint = "the environment variable TMPDIR names another folder"
        raise UsageError(
            f"temporary files cannot be written: {error.strerror or error}",
            where=str(path.parent),
            hint=hint,
        ) from error


def _save_outside(graph: gs.Graph, constants: list[gs.Constant], path: Path) -> None:
    digest = hashlib.sha256()
    replacement = _Replacement(path.with_name(f"{path.name}.data"))
    with replacement as file:
        model = _write_weights(graph, constants, file, digest.update)
        replacement.path = path.with_name(f"{path.name}.{digest.hexdigest()[:12]}.data")
    _locate(model, replacement.path)
    with _Replacement(path) as file:
        file.write(model.SerializeToString(deterministic=True))
    stale = re.compile(re.escape(path.name) + r"\.[0-9a-f]{12}\.data")
    for other in path.parent.iterdir():
        if stale.fullmatch(other.name) and other != replacement.path:
            other.unlink()


def _write_weights(
    graph: gs.Graph,
    constants: list[gs.Constant],
    file: IO[bytes],
    note: Callable[[bytes | memoryview], None] = lambda _: None,
) -> onnx.ModelProto:
    """Writes the weights to a file and returns the model, which refers to them without saying where the file is."""
    model = _skeleton(graph)
    position = 0
    for constant in constants:
        size = _payload_size(constant)
        if isinstance(constant._values, SparseValues):  # noqa: SLF001
            model.graph.sparse_initializer.append(constant._values.tensor)  # noqa: SLF001
            continue
        if size < ALIGNMENT:
            model.graph.initializer.append(constant_proto(constant))
            continue
        padding = -position % ALIGNMENT
        file.write(b"\0" * padding)
        position += padding
        entry = _header(constant)
        entry.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", ""), ("offset", position), ("length", size)):
            entry.external_data.add(key=key, value=str(value))
        model.graph.initializer.append(entry)
        for chunk in payload(constant):
            note(chunk)
            file.write(chunk)
        position += size
    return model


def _locate(model: onnx.ModelProto, data: Path) -> None:
    for entry in model.graph.initializer:
        if entry.data_location == onnx.TensorProto.EXTERNAL:
            entry.external_data[0].value = data.name
