"""Derivatives of normalizations."""

from __future__ import annotations

import numpy as np
import pytest
from grad.oracle import build, check

from surgeon.grad import gradient
from surgeon.graph.load import from_model

VARIANCE = np.array([0.5, 1.5, 0.7, 2.0])


@pytest.mark.parametrize("opset", [7, 9, 14, 15, 21])
@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 5), (3, 4, 2, 3)])
def test_batch_normalization(opset, shape):
    names = ",".join("NCHW"[k] if k != 1 else "4" for k in range(len(shape)))
    check(
        f"T[{names}] x",
        f"T[{names}] y",
        "y = BatchNormalization <epsilon=0.01> (x, scale, b, mean, var)",
        {"x": shape},
        {"scale": (4,), "b": (4,), "mean": (4,), "var": VARIANCE},
        opset=opset,
        reference=opset > 9,
    )


def test_batch_normalization_in_training():
    body = "y, m, v = BatchNormalization <training_mode=1> (x, scale, b, mean, var)"
    weights = {"scale": (4,), "b": (4,), "mean": (4,), "var": VARIANCE.astype(np.float32)}
    graph = from_model(build("float[2,4,5] x", "float[2,4,5] y", f"{body}\nz = ReduceSum (y)", weights))
    found = gradient(graph, "z", ["x", "scale"])
    assert "training mode" in found.stopped["x"]
    assert "training mode" in found.stopped["scale"]


@pytest.mark.parametrize("opset", [11, 16, 17, 21])
@pytest.mark.parametrize(
    ("axis", "scale"), [(-1, (4,)), (2, (4,)), (1, (3, 4)), (-2, (3, 1)), (-2, (4,)), (0, (2, 3, 4))]
)
@pytest.mark.parametrize("bias", [True, False])
def test_layer_normalization(opset, axis, scale, bias):
    if opset < 17 and scale in ((3, 1), (4,)) and axis == -2:
        pytest.skip("onnxruntime wants scales of all that is normalised")
    wide = "2" if axis == 0 else "N"
    check(
        f"T[{wide},3,4] x",
        f"T[{wide},3,4] y",
        f"y = LayerNormalization <axis={axis}, epsilon=0.001> (x, s{', b' if bias else ''})",
        {"x": (2, 3, 4)},
        {"s": scale, **({"b": scale} if bias else {})},
        opset=opset,
        reference=False,
    )


def test_layer_normalization_that_tells_its_mean():
    body = "y, m = LayerNormalization (x, s)\nt = ReduceSum (y)\nu = ReduceSum (m)\nz = Add (t, u)"
    graph = from_model(build("float[2,4] x", "float[2,4] y", body, {"s": (4,)}))
    assert "its statistics" in gradient(graph, "z", ["x"]).stopped["x"]


@pytest.mark.parametrize("axis", [-1, 1])
def test_rms_normalization(axis):
    scale = (4,) if axis == -1 else (3, 4)
    body = f"y = RMSNormalization <axis={axis}> (x, s)"
    check("T[N,3,4] x", "T[N,3,4] y", body, {"x": (2, 3, 4)}, {"s": scale}, opset=23, reference=False)
    body = body.replace("RMSNormalization", "SimplifiedLayerNormalization")
    check("T[N,3,4] x", "T[N,3,4] y", body, {"x": (2, 3, 4)}, {"s": scale}, opset=17, reference=False)


@pytest.mark.parametrize("shape", [(2, 4, 5), (3, 4, 2, 3)])
def test_instance_normalization(shape):
    names = ",".join("NCHW"[k] if k != 1 else "4" for k in range(len(shape)))
    body = "y = InstanceNormalization (x, s, b)"
    check(f"T[{names}] x", f"T[{names}] y", body, {"x": shape}, {"s": (4,), "b": (4,)})


@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_normalization(opset, groups):
    size = groups if opset == 18 else 4
    check(
        "T[N,4,H,W] x",
        "T[N,4,H,W] y",
        f"y = GroupNormalization <num_groups={groups}, epsilon=0.001> (x, s, b)",
        {"x": (2, 4, 2, 3)},
        {"s": (size,), "b": (size,)},
        opset=opset,
        reference=False,
    )


@pytest.mark.parametrize("axes", ["", "<axes=[1,2,3]>", "<axes=[0,2,-1]>"])
def test_mean_variance_normalization(axes):
    body = f"y = MeanVarianceNormalization {axes} (x)"
    check("T[N,3,H,W] x", "T[N,3,H,W] y", body, {"x": (2, 3, 2, 4)}, opset=13, reference=False)


@pytest.mark.parametrize("attributes", ["", "<p=1>", "<axis=1>", "<axis=0, p=1>"])
def test_lp_normalization(attributes):
    check(
        "T[N,3,4] x", "T[N,3,4] y", f"y = LpNormalization {attributes} (x)", {"x": (2, 3, 4)}, reference=False
    )


@pytest.mark.parametrize("size", [1, 3, 5])
def test_local_response_normalization(size):
    body = f"y = LRN <size={size}, alpha=0.5, beta=0.6, bias=1.5> (x)"
    check("T[N,4,H,W] x", "T[N,4,H,W] y", body, {"x": (2, 4, 2, 3)}, reference=False)
