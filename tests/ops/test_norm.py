"""Normalisations: channel-wise affine maps are exact, statistics over a cut axis are structural or rescaled."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build, check, check_cut, drop, features, images, of_size, only, reasons, solved

POSITIVE = np.linspace(0.5, 2.0, 12, dtype=np.float32)


@pytest.mark.parametrize("spatial", [(), (7,), (8, 6), (3, 4, 5)])
def test_batch_normalization(spatial):
    weights = {"s": (12,), "o": (12,), "m": (12,), "v": POSITIVE}
    body = "b = BatchNormalization (a, s, o, m, v)"
    if spatial:
        model = images(body, 12, weights, spatial=spatial)
    else:
        model = build(
            "float[N,5] x",
            "float[N,3] y",
            f"a = MatMul (x, w_in)\n{body}\ny = MatMul (b, w_out)",
            {"w_in": (5, 12), **weights, "w_out": (12, 3)},
        )
    found = check(model, [12])
    smaller = check_cut(found, {found.groups[0].id: drop(12, 0, 7)})
    assert [t.shape for t in only(smaller, "BatchNormalization").inputs[1:]] == [(10,)] * 4


def test_batch_normalization_in_training_mode_is_a_barrier():
    body = "b, m2, v2 = BatchNormalization <training_mode=1> (a, s, o, m, v)"
    found = solved(images(body, 12, {"s": (12,), "o": (12,), "m": (12,), "v": POSITIVE}))
    assert found.groups == []
    assert "BatchNormalization in training mode" in reasons(found)


def test_instance_normalization():
    check(images("b = InstanceNormalization (a, s, o)", 12, {"s": (12,), "o": (12,)}), [12])


def test_instance_normalization_over_an_axis_that_is_cut():
    """Adaptive instance norm over ``[1, C, T]`` whose last axis is made of features."""
    model = build(
        "float[1,4,5] x",
        "float[1,4,3] y",
        "a = MatMul (x, w_in)\nb = InstanceNormalization (a, s, o)\ny = MatMul (b, w_out)",
        {"w_in": (5, 12), "s": (4,), "o": (4,), "w_out": (12, 3)},
    )
    found = check(model, [12], structural=[12])
    assert "instance statistics" in found.groups[0].structural


@pytest.mark.parametrize(("opset", "scale"), [(18, 3), (21, 12)])
def test_group_normalization(opset, scale):
    body = "b = GroupNormalization <num_groups=3> (a, s, o)"
    model = images(body, 12, {"s": (scale,), "o": (scale,)}, opset=opset)
    found = check(model, [3, 4], structural=[4])
    smaller = check_cut(found, {of_size(found, 3).id: drop(3, 1)})
    node = only(smaller, "GroupNormalization")
    assert node.attrs["num_groups"] == 2
    assert node.inputs[1].shape == (scale * 2 // 3,)


def test_group_normalization_as_instance_normalization():
    found = check(
        images("b = GroupNormalization <num_groups=12> (a, s, o)", 12, {"s": (12,), "o": (12,)}), [12]
    )
    assert found.groups[0].structural is None


def test_group_normalization_written_with_instance_normalization():
    """How exporters write it before opset 18: reshape to groups, normalise, reshape back, scale."""
    body = """
    r = Reshape (a, split)
    n = InstanceNormalization (r, ones, zeros)
    back = Reshape (n, join)
    m = Mul (back, s)
    b = Add (m, o)
    """
    weights = {
        "split": np.array([0, 3, -1]),
        "join": np.array([0, 12, 8, 6]),
        "ones": np.ones(3, np.float32),
        "zeros": np.zeros(3, np.float32),
        "s": (12, 1, 1),
        "o": (12, 1, 1),
    }
    check(images(body, 12, weights), [3, 4], structural=[4])


@pytest.mark.parametrize("bias", [True, False])
def test_layer_normalization_is_structural(bias):
    body = f"b = LayerNormalization (a, s{', o' if bias else ''})"
    found = check(features(body, 12, {"s": (12,), **({"o": (12,)} if bias else {})}), [12], structural=[12])
    assert "layer statistics runs over it" in found.groups[0].structural


def test_layer_normalization_leaves_axes_before_it_exact():
    body = """
    r = Reshape (a, split)
    n = LayerNormalization (r, s, o)
    b = Reshape (n, join)
    """
    weights = {"split": np.array([0, 0, 3, 4]), "join": np.array([0, 0, 12]), "s": (4,), "o": (4,)}
    check(features(body, 12, weights), [3, 4], structural=[4])


def test_layer_normalization_with_several_axes_and_statistics():
    body = """
    n, mean, deviation = LayerNormalization <axis=1> (a, s, o)
    c = Add (n, mean)
    b = Mul (c, deviation)
    """
    check(features(body, 12, {"s": (7, 12), "o": (7, 12)}), [12], structural=[12])


def test_layer_normalization_written_in_small_operators():
    body = """
    mean = ReduceMean <axes=[-1]> (a)
    d = Sub (a, mean)
    two = Constant <value = float {2.0}> ()
    sq = Pow (d, two)
    var = ReduceMean <axes=[-1]> (sq)
    eps = Constant <value = float {0.00001}> ()
    ve = Add (var, eps)
    sd = Sqrt (ve)
    n = Div (d, sd)
    m = Mul (n, s)
    b = Add (m, o)
    """
    check(features(body, 12, {"s": (12,), "o": (12,)}, opset=17), [12], structural=[12])


@pytest.mark.parametrize("op", ["RMSNormalization", "SimplifiedLayerNormalization"])
def test_rms_normalization_is_exact_by_rescaling(op):
    opset = 23 if op == "RMSNormalization" else 17
    found = check(features(f"b = {op} <epsilon=0.125> (a, s)", 12, {"s": (12,)}, opset=opset), [12])
    smaller = check_cut(found, {found.groups[0].id: drop(12, 0, 1, 2)})
    node = only(smaller, op)
    assert node.attrs["epsilon"] == pytest.approx(0.125 * 12 / 9)
    assert node.inputs[1].shape == (9,)


def test_rms_normalization_of_what_masking_leaves_nonzero_is_structural():
    found = check(
        features("e = Sigmoid (a)\nb = RMSNormalization (e, s)", 12, {"s": (12,)}, opset=23),
        [12],
        structural=[12],
    )
    assert "mean square" in found.groups[0].structural


def test_rms_normalization_over_two_axes():
    body = "r = Reshape (a, split)\nn = RMSNormalization <axis=2> (r, s)\nb = Reshape (n, join)"
    weights = {"split": np.array([0, 0, 3, 4]), "join": np.array([0, 0, 12]), "s": (3, 4)}
    check(features(body, 12, weights, opset=23), [3, 4])


def test_lrn_pins_its_channels():
    found = solved(images("b = LRN <size=3> (a)", 12))
    assert found.groups == []
    assert "normalised over neighbouring channels" in reasons(found)


@pytest.mark.parametrize("p", [1, 2])
def test_lp_normalization(p):
    check(features(f"b = LpNormalization <p={p}, axis=-1> (a)", 12), [12])
    check(images(f"b = LpNormalization <p={p}, axis=1> (a)", 12), [12])


def test_mean_variance_normalization_pins_its_channels():
    found = solved(images("b = MeanVarianceNormalization (a)", 12))
    assert found.groups == []
    assert "divided by a variance" in reasons(found)


def test_rms_normalization_whose_scale_is_computed():
    """Some exporters write ``1 + scale``."""
    body = "s1 = Add (s, one)\nb = RMSNormalization (a, s1)"
    check(features(body, 12, {"s": (12,), "one": np.float32([1.0])}, opset=23), [12])
