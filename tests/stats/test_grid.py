"""Weights behind DequantizeLinear: what they stand for, which numbers they can have, and how they are set."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from ops.oracle import build
from refit.rounded import rounded

from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.stats.grid import bounds, grid_of, integers_of, set_integers
from surgeon.stats.weight import is_rounded, weight_chain, weight_values

SOURCES = {
    "whole": ({}, "w = DequantizeLinear (q, s, z)", (), "int8"),
    "first axis": ({}, "w = DequantizeLinear <axis=0> (q, s, z)", (6,), "int8"),
    "last axis, no zero point": ({}, "w = DequantizeLinear <axis=-1> (q, s)", (4,), "uint8"),
    "blocks": ({}, "w = DequantizeLinear <axis=0, block_size=3> (q, s, z)", (2, 4), "int8"),
    "blocks, the last one short": ({}, "w = DequantizeLinear <axis=0, block_size=4> (q, s, z)", (2, 4), "uint8"),
    "four bits": ({}, "w = DequantizeLinear <axis=1> (q, s, z)", (4,), "int4"),
    "four bits without sign": ({}, "w = DequantizeLinear <axis=1> (q, s, z)", (4,), "uint4"),
    "turned before": (
        {}, "t = Transpose <perm=[1,0]> (q) w = DequantizeLinear <axis=1> (t, s, z)", (6,), "int8"),
    "turned after": (
        {"r": np.array([2, 12])},
        "v = DequantizeLinear <axis=0> (q, s, z) t = Transpose <perm=[1,0]> (v) w = Reshape (t, r)", (6,), "int8"),
}  # fmt: skip


def weight(case):
    """The graph, the tensor of the weight, and what onnxruntime says it is."""
    constants, body, shape, kind = SOURCES[case]
    random = np.random.default_rng(1)
    low, high = bounds(
        np.dtype(onnx.helper.tensor_dtype_to_np_dtype(getattr(onnx.TensorProto, kind.upper())))
    )
    model = build("float x", "float[] y", f"{body} f = Cast <to=1> (w) y = Mul (x, f)", {**constants})
    data = getattr(onnx.TensorProto, kind.upper())
    zeros = random.integers(max(low, -3), 4, max(int(np.prod(shape)), 1))
    model.graph.initializer.extend([
        onnx.helper.make_tensor("q", data, (6, 4), random.integers(low, high + 1, 24)),
        onnx.helper.make_tensor("s", 1, shape, random.uniform(0.1, 1, max(int(np.prod(shape)), 1))),
    ])  # fmt: skip
    if ", z)" in body:
        model.graph.initializer.append(onnx.helper.make_tensor("z", data, shape, zeros))
    graph = from_model(model)
    del graph.outputs[0].shape
    graph.outputs[0].shape = None
    return graph, graph.tensors()["w"]


def computed(graph: gs.Graph) -> np.ndarray:
    return run(session(to_model(graph)), {"x": np.ones((), np.float32)})[0]


@pytest.mark.parametrize("case", SOURCES)
def test_it_is_what_onnxruntime_makes_of_it(case):
    graph, tensor = weight(case)
    assert is_rounded(tensor)
    assert np.array_equal(weight_values(tensor), computed(graph))
    grid = grid_of(tensor)
    assert np.allclose(grid.numbers(integers_of(tensor)), computed(graph), rtol=1e-6)


@pytest.mark.parametrize("case", SOURCES)
def test_setting_integers_sets_the_nearest_numbers(case):
    graph, tensor = weight(case)
    grid, before = grid_of(tensor), integers_of(tensor)
    assert np.array_equal(grid.nearest(weight_values(tensor)), before)
    wanted = np.random.default_rng(2).standard_normal(before.shape)
    integers = grid.nearest(wanted)
    every = np.arange(grid.least, grid.most + 1).reshape(-1, *(1,) * before.ndim)
    least = np.abs(grid.numbers(every) - wanted).min(axis=0)
    assert np.allclose(np.abs(grid.numbers(integers) - wanted), least)
    kind = weight_chain(tensor)[0].dtype
    set_integers(tensor, integers)
    assert np.array_equal(integers_of(tensor), integers)
    assert np.allclose(computed(graph), grid.numbers(integers), rtol=1e-5)
    assert weight_chain(tensor)[0].dtype == kind


def test_a_weight_that_does_not_use_its_whole_type_stays_so():
    model = rounded(build("float[2,6] x", "float[2,4] y", "y = MatMul (x, w)", {"w": (6, 4)}), bits=7)
    tensor = from_model(model).tensors()["w/dq"]
    assert (grid_of(tensor).least, grid_of(tensor).most) == (-63, 63)


def test_what_is_no_constant_of_integers_is_none():
    graph = from_model(
        build(
            "float[6] x, float s",
            "float[6] y",
            "q = QuantizeLinear (x, s) d = DequantizeLinear (q, s) y = Add (d, b)",
            {"b": (6,)},
        )
    )
    assert weight_chain(graph.tensors()["d"]) is None
    assert not is_rounded(graph.tensors()["b"])
    with pytest.raises(ValueError, match="not stored as integers"):
        grid_of(graph.tensors()["b"])
    with pytest.raises(ValueError, match="not stored as integers"):
        set_integers(graph.tensors()["b"], np.zeros(6))
