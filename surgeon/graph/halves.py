"""Models in half precision, and what of onnxruntime dies of them.

One of its optimizers crashes, the process and not an exception, on some of them (Transpose, MatMul, Add in float16; seen in
onnxruntime 1.32). That cannot be told from a graph, so it is tried in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types

from surgeon.graph.wire import read_light

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The optimizer.
CRASHING = "NchwcTransformer"
#: Attributes that name the type of a result.
TYPES = frozenset({"to", "dtype", "output_dtype", "output_datatype"})
_HALF = onnx.TensorProto.FLOAT16
_LOAD = """
import sys, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yields a graph and the bodies in it, however deep."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from graphs_of(body)


def is_half(model: onnx.ModelProto | bytes | Path) -> bool:
    """Whether anything in a model is float16; what cannot be read is nothing."""
    try:
        if isinstance(model, Path):
            read = read_light(model)
            model = read[0] if read is not None else onnx.ModelProto()
        elif isinstance(model, bytes):
            model = onnx.load_from_string(model)
    except (OSError, ValueError, DecodeError):
        return False
    return any(map(_says_half, graphs_of(model.graph)))


def loads(path: Path) -> bool:
    """Whether onnxruntime loads a file, tried in a process of its own."""
    command = [sys.executable, "-c", _LOAD, str(path)]
    return not subprocess.run(command, capture_output=True, check=False).returncode  # noqa: S603  # our own code


def survives(model: onnx.ModelProto | bytes | Path) -> bool:
    """Whether onnxruntime loads a model; one that is too large to be written as one file is not tried."""
    if isinstance(model, Path):
        return loads(model)
    try:
        content = model if isinstance(model, bytes) else model.SerializeToString()
    except ValueError:
        return False
    with tempfile.TemporaryDirectory(prefix="surgeon-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(content)
        return loads(path)


def _says_half(graph: onnx.GraphProto) -> bool:
    if any(entry.data_type == _HALF for entry in graph.initializer):
        return True
    if any(info.type.tensor_type.elem_type == _HALF for info in (*graph.input, *graph.output)):
        return True
    return any(
        attribute.t.data_type == _HALF or (attribute.name in TYPES and attribute.i == _HALF)
        for node in graph.node
        for attribute in node.attribute
    )
