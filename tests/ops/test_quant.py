"""Quantization: scales and zero points belong to the axis they scale."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import check, check_cut, drop, features, images, of_size, only

SCALE = np.float32(0.05)


def integers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-100, 100, shape).astype(np.int8)


def scales(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.001, 0.01, shape).astype(np.float32)


def test_activations_quantized_per_tensor():
    body = "q = QuantizeLinear (a, s, z)\nb = DequantizeLinear (q, s, z)"
    check(features(body, 12, {"s": SCALE, "z": np.int8(3)}), [12])


def test_activations_quantized_per_channel():
    body = "q = QuantizeLinear <axis=1> (a, s, z)\nb = DequantizeLinear <axis=1> (q, s, z)"
    found = check(images(body, 12, {"s": scales(12) * 10, "z": integers(12)}), [12])
    smaller = check_cut(found, {found.groups[0].id: drop(12, 0, 5)})
    assert [t.shape for t in only(smaller, "QuantizeLinear").inputs[1:]] == [(10,), (10,)]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("zero_point", [True, False])
def test_weights_quantized_per_axis(axis, zero_point):
    size = 12 if axis == 0 else 10
    weights = {
        "q": integers(12, 10),
        "s": scales(size),
        **({"z": np.zeros(size, np.int8)} if zero_point else {}),
    }
    body = f"w = DequantizeLinear <axis={axis}> (q, s{', z' if zero_point else ''})\nb = MatMul (a, w)"
    found = check(features(body, 10, weights), [10, 12])
    smaller = check_cut(found, {of_size(found, size).id: drop(size, 2, 3)})
    assert only(smaller, "DequantizeLinear").inputs[1].shape == (size - 2,)


def test_weights_of_a_conv_with_quantized_activations():
    body = """
    qa = QuantizeLinear (a, sa, za)
    da = DequantizeLinear (qa, sa, za)
    w = DequantizeLinear <axis=0> (q, s, z)
    v = DequantizeLinear <axis=0> (qv, sv)
    c = Conv (da, w, v)
    qc = QuantizeLinear (c, sa, za)
    b = DequantizeLinear (qc, sa, za)
    """
    weights = {
        "sa": np.float32(0.1),
        "za": np.int8(0),
        "q": integers(10, 12, 3, 3),
        "s": scales(10),
        "z": np.zeros(10, np.int8),
        "qv": integers(10, seed=5).astype(np.int32),
        "sv": scales(10),
    }
    check(images(body, 10, weights), [10, 12])


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_quantized_in_blocks(axis):
    """Blocks of 4 along one axis: whole blocks go, the other axis is free."""
    shape = (3, 8) if axis == 0 else (12, 2)
    weights = {"q": integers(12, 8), "s": scales(*shape), "z": np.zeros(shape, np.int8)}
    body = f"w = DequantizeLinear <axis={axis}, block_size=4> (q, s, z)\nb = MatMul (a, w)"
    found = check(features(body, 8, weights), [3, 8] if axis == 0 else [2, 12])
    blocks = of_size(found, 3 if axis == 0 else 2)
    smaller = check_cut(found, {blocks.id: drop(blocks.size, 0)})
    assert only(smaller, "DequantizeLinear").inputs[1].shape[axis] == blocks.size - 1


def test_a_zero_point_of_its_own_per_channel():
    """Zero points are not zero: masked positions must still dequantize to what the cut model has not."""
    body = "w = DequantizeLinear <axis=1> (q, s, z)\nb = MatMul (a, w)"
    check(features(body, 10, {"q": integers(12, 10), "s": scales(10), "z": integers(10, seed=2)}), [10, 12])
