"""Gradients through rounding: as if there were none inside of the range, none outside."""

from __future__ import annotations

import numpy as np
import pytest
from grad.oracle import build

from surgeon.grad import Tape, Value, gradient
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session

X = np.array([[-9.0, 0.33, 0.9], [1.1, -0.2, 9.0]], np.float32)


def loss(tape: Tape) -> Value:
    weights = tape.constant(np.arange(1, 7, dtype=np.float32).reshape(2, 3))
    return (tape.value(tape.graph.outputs[0]) * weights).sum()


def gradients(body, weights, wrt, opset=21):
    graph = from_model(build("float[2,3] x", "float[2,3] y", body, weights, opset=opset))
    found = gradient(graph, loss, wrt)
    assert not found.stopped
    assert not found.partial
    return run(
        session(to_model(found.graph)), {"x": X, **{name: np.asarray(each) for name, each in weights.items()}}
    )[1:]


@pytest.mark.parametrize("opset", [10, 13, 21])
@pytest.mark.parametrize("zero", [np.int8(5), np.uint8(120), None])
def test_a_pair_passes_inside_of_its_range(opset, zero):
    scale = np.float32(0.02 if zero is not None else 0.01)
    z = "" if zero is None else ", z"
    body = f"q = QuantizeLinear (x, s{z})\ny = DequantizeLinear (q, s{z})"
    weights = {"s": scale, **({} if zero is None else {"z": zero})}
    dx, ds = gradients(body, weights, ["x", "s"], opset)
    least, most = (-128, 127) if isinstance(zero, np.int8) else (0, 255)
    point = 0 if zero is None else int(zero)
    steps = np.round(X / scale) + point
    inside = (steps >= least) & (steps <= most)
    way = np.arange(1, 7).reshape(2, 3)
    np.testing.assert_allclose(dx, way * inside, rtol=1e-5)
    moved = np.clip(steps, least, most) - point - np.where(inside, X / scale, 0)
    np.testing.assert_allclose(ds, (way * moved).sum(), rtol=1e-4)


@pytest.mark.parametrize("opset", [13, 21])
def test_a_scale_for_every_channel(opset):
    body = "q = QuantizeLinear <axis=1> (x, s, z)\ni = Identity (q)\ny = DequantizeLinear <axis=1> (i, s, z)"
    weights = {"s": np.array([0.1, 0.01, 0.001], np.float32), "z": np.zeros(3, np.int8)}
    dx, ds = gradients(body, weights, ["x", "s"], opset)
    np.testing.assert_allclose(dx, [[1, 2, 0], [4, 5, 0]], rtol=1e-5)
    assert ds.shape == (3,)


def test_blocks_are_told():
    body = "q = QuantizeLinear <axis=1, block_size=3> (x, s, z)\nd = DequantizeLinear <axis=1, block_size=3> (q, s, z)\ny = ReduceSum (d)"
    weights = {"s": np.ones((2, 1), np.float32), "z": np.zeros((2, 1), np.int8)}
    graph = from_model(build("float[2,3] x", "float[1,1] y", body, weights))
    assert "blocks" in gradient(graph, "y", ["x"]).stopped["x"]


def test_integers_that_count_carry_no_gradient():
    body = "i = Cast <to=7> (x)\nf = Cast <to=1> (i)\na = Add (f, x)\ny = ReduceSum (a)"
    found = gradient(from_model(build("float[2,3] x", "float[1,1] y", body)), "y", ["x"])
    assert not found.stopped
    assert not found.partial
