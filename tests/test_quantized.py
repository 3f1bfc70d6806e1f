"""What the integers of quantized constants mean, and that they are ranked by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ops.oracle import build, solved

from surgeon.graph.load import from_model
from surgeon.passes import Context
from surgeon.quantized import meanings, parameters
from surgeon_passes.prune import Prune


def values_of(model, name: str) -> np.ndarray:
    """The numbers a constant of the model stands for."""
    (values,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    import onnx

    return meanings(solved(model).analysis)[name].numbers(onnx.numpy_helper.to_array(values))


Q = np.arange(12, dtype=np.int8).reshape(4, 3)


def test_per_axis():
    weights = {"q": Q, "s": np.float32([1, 10, 100]), "z": np.int8([1, 2, 3])}
    model = build(
        "float[N,4] x", "float[N,3] y", "w = DequantizeLinear (q, s, z)\ny = MatMul (x, w)", weights
    )
    np.testing.assert_array_equal(values_of(model, "q"), (Q - [1.0, 2, 3]) * [1, 10, 100])
    assert parameters(solved(model).analysis) == {"s", "z"}


def test_per_block():
    weights = {"q": Q, "s": np.float32([[1, 1, 1], [10, 10, 10]])}
    body = "w = DequantizeLinear <axis=0, block_size=2> (q, s)\ny = MatMul (x, w)"
    model = build("float[N,4] x", "float[N,3] y", body, weights)
    np.testing.assert_array_equal(values_of(model, "q"), Q * np.array([[1.0], [1], [10], [10]]))


def test_moved_before_it_is_read():
    weights = {"q": Q, "s": np.float32(0.5), "z": np.int8(4), "i": np.int64([[3, 0]])}
    body = (
        "r = Gather (q, i)\nt = Transpose <perm=[0,2,1]> (r)\nd = DequantizeLinear (t, s, z)\ny = Add (d, x)"
    )
    model = build("float[1,3,2] x", "float[1,3,2] y", body, weights)
    np.testing.assert_array_equal(values_of(model, "q"), (Q - 4.0) * 0.5)


def test_without_a_scale_of_its_own():
    """What MatMulInteger counts is scaled later."""
    weights = {"q": Q, "u": np.uint8(3), "z": np.int8(4)}
    body = "a = Cast <to=2> (x)\ni = MatMulInteger (a, q, u, z)\ny = Cast <to=1> (i)"
    model = build("float[N,4] x", "float[N,3] y", body, weights)
    np.testing.assert_array_equal(values_of(model, "q"), Q - 4.0)


def test_channels_rank_by_what_they_mean():
    """With a zero point of 128, integers near it are small weights, and small integers are large ones."""
    distance = np.repeat([1, 60, 2, 100], 5 * 9).reshape(4, 5, 3, 3)
    sign = np.random.default_rng(0).choice([-1, 1], distance.shape)
    weights = {"w": (128 + sign * distance).astype(np.uint8), "z": np.uint8(128), "w_out": (3, 4, 1, 1)}
    body = """
    q, s, u = DynamicQuantizeLinear (x)
    i = ConvInteger (q, w, u, z)
    f = Cast <to=1> (i)
    a = Mul (f, s)
    y = Conv (a, w_out)
    """
    context = Context(Path("model.onnx"))
    Prune(ratio=0.5, score="l2").run(
        from_model(build("float[N,5,8,8] x", "float[N,3,6,6] y", body, weights)), context
    )
    assert context.plan.groups[0].kept == (1, 3)
