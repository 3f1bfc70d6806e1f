"""What onnxruntime fuses: the algebra of the parts, and zeros that an activation may end."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build, check, check_cut, drop, of_size, only, solved

MS = {"com.microsoft": 1}
OPS = "com.microsoft."


def features(middle: str, result: int, weights=None, *, channels=12, inputs="float[N,7,5] x"):
    """``middle`` maps ``a`` ``[N, 7, channels]`` to ``b`` ``[N, 7, result]``, both free."""
    text = f"a = MatMul (x, w_in)\n{middle}\ny = MatMul (b, w_out)"
    every = {"w_in": (5, channels), **(weights or {}), "w_out": (result, 3)}
    return build(inputs, "float[N,7,3] y", text, every, domains=MS)


def images(middle: str, result: int, weights=None, *, channels=12):
    """``middle`` maps ``a`` ``[N, channels, 8, 6]`` to ``b`` ``[N, result, ...]``, both free."""
    text = f"a = Conv (x, w_in, b_in)\n{middle}\ny = Conv (b, w_out)"
    every = {
        "w_in": (channels, 5, 1, 1),
        "b_in": (channels,),
        **(weights or {}),
        "w_out": (3, result, 1, 1),
    }
    return build("float[N,5,8,6] x", "float[N,3,H,W] y", text, every, domains=MS)


@pytest.mark.parametrize("op", ["Gelu", "QuickGelu", "FastGelu", "ScaledSiLU"])
def test_activations(op):
    check(features(f"b = {OPS}{op} (a)", 12), [12])


@pytest.mark.parametrize("op", ["BiasGelu", "FastGelu"])
def test_activations_with_a_bias(op):
    check(features(f"b = {OPS}{op} (a, v)", 12, {"v": (12,)}), [12])


def test_sum_with_a_gate():
    middle = f"c = MatMul (x, w2)\ng = MatMul (x, wg)\nb = {OPS}GatedAdd (a, c, g)"
    check(features(middle, 12, {"w2": (5, 12), "wg": (5, 1)}), [12])


@pytest.mark.parametrize("beta", ["beta", ""])
@pytest.mark.parametrize("bias", [", bias", ""])
def test_skip_and_layer_norm(beta, bias):
    middle = f"c = MatMul (x, w2)\nb, , , s = {OPS}SkipLayerNormalization (a, c, g, {beta}{bias})"
    weights = {"w2": (5, 12), "g": (12,), "beta": (12,), "bias": (12,)}
    found = check(features(middle, 12, weights), [12], structural=[12])
    smaller = check_cut(found, {found.groups[0].id: drop(12, 1)})
    assert tuple(only(smaller, "SkipLayerNormalization").inputs[2].shape) == (11,)


@pytest.mark.parametrize("epsilon", ["", "<epsilon=0.1>"])
def test_skip_and_mean_square_norm_is_exact(epsilon):
    """The sum goes on: it vanishes where all that is summed does, so the next norm is exact as well."""
    norm = f"{OPS}SkipSimplifiedLayerNormalization {epsilon}"
    middle = f"""
    c = MatMul (x, w2)
    d, , , s = {norm} (a, c, g, v)
    e = MatMul (d, w3)
    b = {norm} (e, s, g2)
    """
    weights = {"w2": (5, 12), "w3": (12, 12), "g": (12,), "v": (12,), "g2": (12,)}
    check(features(middle, 12, weights), [12])


def test_skip_that_broadcasts():
    middle = f"b = {OPS}SkipSimplifiedLayerNormalization (a, table, g)"
    check(features(middle, 12, {"table": (7, 12), "g": (12,)}), [12])


def test_tables_of_words_and_positions():
    body = f"""
    h, m, s = {OPS}EmbedLayerNormalization (ids, kinds, words, places, types, g, beta, mask)
    a = Add (h, s)
    y = MatMul (a, w_out)
    """
    weights = {
        "words": (9, 12),
        "places": (8, 12),
        "types": (2, 12),
        "g": (12,),
        "beta": (12,),
        "kinds": np.zeros((2, 7), np.int32),
        "mask": np.ones((2, 7), np.int32),
        "ids": np.arange(14, dtype=np.int32).reshape(2, 7) % 9,
        "w_out": (12, 3),
    }
    body += "\nz = Add (y, x)"
    model = build("float[2,7,3] x", "float[2,7,3] z", body, weights, domains=MS)
    check(model, [12], structural=[12])


def test_gated_norm_of_each_head():
    middle = f"c = MatMul (x, w2)\nb = {OPS}GatedRMSNorm (a, g, c)"
    found = check(features(middle, 12, {"w2": (5, 12), "g": (4,)}), [3, 4])
    smaller = check_cut(found, {of_size(found, 4).id: drop(4, 1)})
    assert only(smaller, "GatedRMSNorm").attrs["epsilon"] == pytest.approx(1e-5 * 4 / 3)


ACTIVATIONS = ["Relu", "Tanh", "Sigmoid", "LeakyRelu", "Clip", "HardSigmoid"]
PARAMETERS = {"LeakyRelu": [0.1], "Clip": [0.2, 6.0], "HardSigmoid": [0.2, 0.5]}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_convolution_with_an_activation(name):
    options = f", activation_params={PARAMETERS[name]}" if name in PARAMETERS else ""
    middle = f'b = {OPS}FusedConv <activation="{name}"{options}> (a, w, v)'
    found = check(images(middle, 10, {"w": (10, 12, 3, 3), "v": (10,)}), [10, 12])
    assert {group.kind for group in found.groups} == {"channel"}


def test_grouped_convolution_with_a_sum_and_an_activation():
    middle = f"""
    c = {OPS}FusedConv <group=3, activation="Relu", pads=[1,1,1,1]> (a, w, v, a)
    d = Conv (c, w3)
    b = Relu (d)
    """
    found = check(images(middle, 10, {"w": (12, 4, 3, 3), "v": (12,), "w3": (10, 12, 1, 1)}), [3, 4, 10])
    smaller = check_cut(found, {of_size(found, 3).id: drop(3, 1)})
    assert only(smaller, "FusedConv").attrs["group"] == 2


def test_a_sum_and_an_activation_that_is_not_zero_at_zero_before_a_sum():
    """A mean over channels is not exact behind a sigmoid."""
    middle = f"""
    c = {OPS}FusedConv <activation="{{}}"> (a, w, v)
    m = ReduceMean <keepdims=1> (c, one)
    b = Add (a, m)
    """
    weights = {"w": (10, 12, 1, 1), "v": (10,), "one": np.int64([1])}
    check(images(middle.format("Relu"), 12, weights), [10, 12])
    check(images(middle.format("Sigmoid"), 12, weights), [10, 12], structural=[10])


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_with_an_activation(transposed):
    shape = (10, 12) if transposed else (12, 10)
    body = f"""
    a = MatMul (x, w_in)
    b = {OPS}FusedGemm <activation="Relu", transB={transposed}> (a, w, v)
    y = MatMul (b, w_out)
    """
    weights = {"w_in": (5, 12), "w": shape, "v": (10,), "w_out": (10, 3)}
    check(build("float[N,5] x", "float[N,3] y", body, weights, domains=MS), [10, 12])


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ("", (12, 10)),
        ("<transB=1>", (10, 12)),
        ("<alpha=0.5, transB=1>", (10, 12)),
    ],
)
@pytest.mark.parametrize("op", ["FusedMatMul", "TransposeMatMul"])
def test_product_with_a_transposed_weight(op, options, shape):
    check(features(f"b = {OPS}{op} {options} (a, w)", 10, {"w": shape}), [10, 12])


def test_product_of_activations():
    middle = f"""
    h = Reshape (a, heads)
    q = Transpose <perm=[2,0,1,3]> (h)
    k = Transpose <perm=[2,0,1,3]> (h)
    s = {OPS}FusedMatMul <transB=1> (q, k)
    p = Softmax (s)
    v = Transpose <perm=[2,0,1,3]> (h)
    o = {OPS}FusedMatMul (p, v)
    t = Transpose <perm=[1,2,0,3]> (o)
    b = Reshape (t, join)
    """
    weights = {"heads": np.int64([0, 0, 3, 4]), "join": np.int64([0, 0, -1])}
    check(features(middle, 12, weights), [3, 4])


def test_product_with_rows_first():
    """``transBatch`` is the layout before the heads of an attention are moved to the front."""
    body = f"""
    q = MatMul (x, w1)
    s = {OPS}FusedMatMul <transBatchA=1, transBatchB=1> (q, w2)
    y = MatMul (s, w_out)
    """
    weights = {"w1": (5, 12), "w2": (12, 4, 10), "w_out": (10, 3)}
    found = check(build("float[7,4,5] x", "float[4,7,3] y", body, weights, domains=MS), [10, 12])
    assert found.cost.evaluate().macs == 7 * 4 * (5 * 12 + 12 * 10 + 10 * 3)


def test_filters_over_what_came_before():
    middle = f"""
    t = Transpose <perm=[0,2,1]> (a)
    c, state = {OPS}CausalConvWithState <activation="silu"> (t, w, v)
    b = Transpose <perm=[0,2,1]> (c)
    """
    check(features(middle, 12, {"w": (12, 1, 3), "v": (12,)}), [12])


def test_windows_of_an_axis():
    middle = f"c = {OPS}UnfoldTensor <dim=1, size=2> (a)\nb = ReduceSum <keepdims=0> (c, last)"
    model = build(
        "float[N,7,5] x",
        "float[N,6,3] y",
        f"a = MatMul (x, w_in)\n{middle}\ny = MatMul (b, w_out)",
        {"w_in": (5, 12), "last": np.int64([-1]), "w_out": (12, 3)},
        domains=MS,
    )
    check(model, [12])


@pytest.mark.parametrize("op", ["Trilu", "Inverse"])
def test_matrices_stay_whole(op):
    body = f"""
    a = MatMul (x, w_in)
    s = Transpose <perm=[0,2,1]> (a)
    t = MatMul (a, s)
    b = {OPS}{op} (t)
    y = MatMul (b, w_out)
    """
    weights = {"w_in": (5, 12), "w_out": (7, 3)}
    assert [
        g.size for g in solved(build("float[N,7,5] x", "float[N,7,3] y", body, weights, domains=MS)).groups
    ] == [12]


def test_standard_operators_in_the_other_domain():
    middle = f"c = {OPS}Pad (a, pads)\nd = {OPS}GatherND (c, first)\nb = Unsqueeze (d, axis)"
    model = build(
        "float[2,7,5] x",
        "float[1,2,7,3] y",
        f"a = MatMul (x, w_in)\n{middle}\ny = MatMul (b, w_out)",
        {
            "w_in": (5, 12),
            "pads": np.int64([0, 0, 1, 0, 0, 1]),
            "first": np.int64([[0], [1]]),
            "axis": np.int64([0]),
            "w_out": (14, 3),
        },
        domains=MS,
    )
    check(model, [12])


GPU_ONLY = {
    "BiasAdd": ("(a, v, a)", {"v": (12,)}, 12, [12]),
    "BiasSplitGelu": ("(a, v)", {"v": (12,)}, 6, [6]),
    "BiasDropout": ("(a, v, a)", {"v": (12,)}, 12, [12]),
    "BiasSoftmax": ("<axis=2, is_inner_broadcast=0> (a, v)", {"v": (12,)}, 12, []),
    "GemmFastGelu": ("(a, w, v)", {"w": (12, 10), "v": (10,)}, 10, [10, 12]),
}


@pytest.mark.parametrize("op", GPU_ONLY)
def test_operators_without_a_cpu_kernel(op):
    """The axes are all there is to check."""
    arguments, weights, result, groups = GPU_ONLY[op]
    found = solved(features(f"b = {OPS}{op} {arguments}", result, weights))
    assert sorted(group.size for group in found.groups) == groups


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("op", ["GroupNorm", "SkipGroupNorm"])
def test_group_norm(op, last):
    skip = ", a, v" if op == "SkipGroupNorm" else ""
    text = f"b = {OPS}{op} <groups=3, activation=1, channels_last={last}> (a, g, v{skip})"
    weights = {"g": (12,), "v": (12,)}
    if last:
        body = f"a = MatMul (x, w_in)\n{text}\ny = MatMul (b, w_out)"
        weights |= {"w_in": (5, 12), "w_out": (12, 3)}
        model = build("float[N,8,6,5] x", "float[N,8,6,3] y", body, weights, domains=MS)
    else:
        model = images(text, 12, weights)
    found = solved(model)
    assert sorted((group.size, bool(group.structural)) for group in found.groups) == [(3, False), (4, True)]
    smaller, _ = found.cut({of_size(found, 3).id: drop(3, 1)})
    assert only(smaller, op).attrs["groups"] == 2


@pytest.mark.parametrize("op", ["NhwcConv", "NhwcFusedConv"])
def test_convolution_with_channels_last(op):
    body = f"a = MatMul (x, w_in)\nb = {OPS}{op} <group=2> (a, w, v)\ny = MatMul (b, w_out)"
    weights = {"w_in": (5, 12), "w": (10, 6, 3, 3), "v": (10,), "w_out": (10, 3)}
    found = solved(build("float[N,8,6,5] x", "float[N,6,4,3] y", body, weights, domains=MS))
    assert sorted(group.size for group in found.groups) == [2, 5, 6]
    assert found.cost.evaluate().macs == 8 * 6 * 5 * 12 + 6 * 4 * 10 * 6 * 9 + 6 * 4 * 10 * 3
