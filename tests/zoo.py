"""The models outside the repository that tests and benchmarks measure on: exporter output, real networks."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx

SHARED = Path(os.environ.get("SURGEON_SHARED", str(Path(__file__).resolve().parents[2] / "shared")))
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def paths() -> list[Path]:
    """Every graph there is: exporter output, the onnx package's own architectures, pretrained models."""
    found = sorted((SHARED / "zoo").glob("*.onnx")) + sorted(LIGHT.glob("*.onnx"))
    return found + sorted((SHARED / "models").glob("*.onnx"))


def read(path: Path) -> onnx.ModelProto:
    """The model with weights: seeded random ones where the file has none."""
    if path.parent == LIGHT:
        return _light(path)
    if path.parent.name == "zoo":
        model: onnx.ModelProto = script(path.parent / "fill.py").fill(path)
        return model
    return onnx.load(path)


def _light(path: Path) -> onnx.ModelProto:
    """The weights of these graphs are written as ConstantOfShape."""
    model = onnx.load(path)
    graph, random = model.graph, np.random.default_rng(0)
    shapes = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in [n for n in graph.node if n.op_type == "ConstantOfShape" and n.input[0] in shapes]:
        shape = shapes[node.input[0]]
        if len(shape) > 1:
            values = random.standard_normal(shape) * (2 / max(int(np.prod(shape[1:])), 1)) ** 0.5
        else:
            values = random.random(shape) + 0.5
        graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), node.output[0]))
        graph.node.remove(node)
    names = {tensor.name for tensor in graph.initializer}
    for entry in [entry for entry in graph.input if entry.name in names]:
        graph.input.remove(entry)
    model.ir_version = 8
    return model


def script(path: Path) -> ModuleType:
    """Imports a Python file that lies beside models or data."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def every(pattern: str = "*") -> Iterator[tuple[str, onnx.ModelProto]]:
    """Name and model of every graph whose name matches."""
    for path in paths():
        if path.match(pattern):
            yield path.stem, read(path)
