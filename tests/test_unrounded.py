"""A quantized model without its rounding computes what it computed, up to steps of quantization."""

from __future__ import annotations

import numpy as np
import onnx
from ops.oracle import build, solved

from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.unrounded import unrounded

STEPS = {"s": np.float32(0.1), "z": np.uint8(100)}
X = np.random.default_rng(0).uniform(-8, 14, (2, 5)).astype(np.float32)


def written(model: onnx.ModelProto):
    analysis = solved(model).analysis
    ranks = {name: len(dims) for name, dims in analysis.shapes.dims.items() if dims is not None}
    return unrounded(analysis.graph, ranks)


def outputs(model: onnx.ModelProto, x: np.ndarray = X) -> np.ndarray:
    return run(session(to_model(written(model)), optimize=False), {"x": x})[0]


def test_there_and_back_only_clips():
    model = build(
        "float[2,5] x", "float[2,5] y", "q = QuantizeLinear (x, s, z)\ny = DequantizeLinear (q, s, z)", STEPS
    )
    np.testing.assert_allclose(outputs(model), np.clip(X, -10, 15.5), rtol=1e-6)


def test_scales_per_axis():
    body = "q = QuantizeLinear <axis=1> (x, s, z)\ny = DequantizeLinear <axis=1> (q, s, z)"
    weights = {"s": np.float32([1, 2, 3, 4, 5]), "z": np.int8([1, 2, 3, 4, 5])}
    np.testing.assert_allclose(outputs(build("float[2,5] x", "float[2,5] y", body, weights)), X, rtol=1e-6)


def test_integers_that_leave_the_model_are_floats_without_rounding():
    model = build("float[2,5] x", "uint8[2,5] y", "y = QuantizeLinear (x, s, z)", STEPS)
    np.testing.assert_allclose(outputs(model), np.clip(X / 0.1 + 100, 0, 255), rtol=1e-5)


def test_a_dynamic_range_is_measured_but_nothing_is_rounded_to_it():
    body = """
    q, t, u = DynamicQuantizeLinear (x)
    i = MatMulInteger (q, w, u, v)
    f = Cast <to=1> (i)
    y = Mul (f, t)
    """
    w = np.random.default_rng(1).integers(-9, 9, (5, 3)).astype(np.int8)
    model = build("float[2,5] x", "float[2,3] y", body, {"w": w, "v": np.int8(2)})
    np.testing.assert_allclose(outputs(model), X @ (w.astype(np.float32) - 2), rtol=1e-4, atol=1e-4)


def test_quantized_tables_that_are_looked_up():
    body = "r = Gather (table, ids)\nd = DequantizeLinear (r, s, z)\ny = Add (d, x)"
    table = np.random.default_rng(2).integers(0, 255, (9, 5)).astype(np.uint8)
    model = build("float[2,5] x", "float[2,5] y", body, {**STEPS, "table": table, "ids": np.int64([0, 8])})
    expected = (table[[0, 8]].astype(np.float32) - 100) * np.float32(0.1) + X
    np.testing.assert_allclose(outputs(model), expected, rtol=1e-5)


def test_weights_in_blocks_stay_as_they_are():
    body = "w = DequantizeLinear <axis=0, block_size=2> (q, s, z)\nd = QuantizeLinear (x, t, u)\ne = DequantizeLinear (d, t, u)\ny = MatMul (e, w)"
    q = np.random.default_rng(3).integers(-9, 9, (6, 3)).astype(np.int8)
    s = np.random.default_rng(4).uniform(0.1, 1, (3, 3)).astype(np.float32)
    weights = {"q": q, "s": s, "z": np.zeros((3, 3), np.int8), "t": np.float32(1), "u": np.uint8(128)}
    x = np.random.default_rng(5).uniform(-5, 5, (2, 6)).astype(np.float32)
    model = build("float[2,6] x", "float[2,3] y", body, weights)
    np.testing.assert_allclose(outputs(model, x), x @ (q * s.repeat(2, 0)), rtol=1e-4, atol=1e-4)


def test_a_float_model_has_no_other_form():
    assert written(build("float[2,5] x", "float[2,5] y", "y = Relu (x)")) is None


def test_what_cannot_be_written_in_floats():
    body = """
    q = QuantizeLinear (x, s, z)
    c = com.microsoft.QLinearConv <channels_last=1> (q, s, z, w, s, v, s, z)
    y = DequantizeLinear (c, s, z)
    """
    weights = {**STEPS, "w": np.ones((3, 5, 1, 1), np.int8), "v": np.int8(0)}
    model = build("float[1,4,4,5] x", "float[1,4,4,3] y", body, weights, domains={"com.microsoft": 1})
    assert written(model) is None
