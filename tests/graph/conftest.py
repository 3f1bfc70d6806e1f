"""Fixtures for the tests of loading, shapes, canonical form and saving."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest

from surgeon.graph.load import from_model


@pytest.fixture
def parse() -> Callable[..., onnx.ModelProto]:
    """Builds a model from ONNX text; initializers are given as arrays."""

    def build(text: str, opset: int = 17, imports: str = "", **weights: np.ndarray) -> onnx.ModelProto:
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}{imports}]> {text}')
        model.graph.initializer.extend(
            onnx.numpy_helper.from_array(array, name) for name, array in weights.items()
        )
        return model

    return build


@pytest.fixture
def graph_of(parse: Callable[..., onnx.ModelProto]) -> Callable[..., gs.Graph]:
    """Builds a graph from ONNX text, as loading a file would."""
    return lambda text, opset=17, **weights: from_model(parse(text, opset, **weights))


@pytest.fixture
def run() -> Callable[..., list[np.ndarray]]:
    """Runs a model given as a message or a path."""

    def outputs(model: onnx.ModelProto | Path, **feeds: np.ndarray) -> list[np.ndarray]:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"]).run(None, feeds)

    return outputs
