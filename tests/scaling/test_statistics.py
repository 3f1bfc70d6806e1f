"""Statistics of channels are those that numpy finds, whatever is left to reduce."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from surgeon.graph.load import from_model
from surgeon.scaling.ranges import find_ranges
from surgeon.stats.chunks import Chunk
from surgeon.stats.data import Input, from_chunks


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_of_a_vector_and_of_a_matrix(opset: int) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[1,6] x) => (float[6] y) <int64[1] shape = {{6}}> {{ h = Abs (x) y = Reshape (h, shape) }}"""
    x = np.random.default_rng(0).standard_normal((16, 1, 6)).astype("f")
    inputs = [Input("x", np.dtype("float32"), (1, 6))]
    data = from_chunks("drawn", inputs, lambda: iter([Chunk({"x": each}) for each in x]), 1)
    graph = from_model(onnx.parser.parse_model(text))
    found = find_ranges(graph, {"h": (1, 6), "y": (6,)}, data, threads=1)
    values = np.abs(x[:, 0])
    for name, each in found.items():
        shape = (1, 6) if name == "h" else (6,)
        assert each.high.shape == each.low.shape == each.square.shape == shape
        np.testing.assert_allclose(each.high.reshape(6), values.max(0), rtol=1e-6)
        np.testing.assert_allclose(each.low.reshape(6), values.min(0), rtol=1e-6)
        np.testing.assert_allclose(each.square.reshape(6), np.square(values).mean(0), rtol=1e-5)
