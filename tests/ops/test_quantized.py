"""Operators on integers: exact cuts, because what is removed is masked with its zero point."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build, check_cut, drop, of_size, only, solved
from ops.oracle import check as check_exact

from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.probes import probe_feeds
from surgeon.unrounded import unrounded
from surgeon.verify import relative_error

MS = {"com.microsoft": 1}
OPS = "com.microsoft."
SCALE = {"s": np.float32(0.03), "z": np.uint8(121)}


def check(model, groups=None, *, floats=True, within=0.1):
    """Cuts are exact, and without rounding the model computes much the same (``floats``: it can be written so)."""
    found = check_exact(model, groups)
    graph = found.analysis.graph
    ranks = {name: len(dims) for name, dims in found.analysis.shapes.dims.items() if dims is not None}
    twin = unrounded(graph, ranks)
    assert (twin is not None) == floats
    if twin is not None:
        feeds = next(iter(probe_feeds(found.analysis)))
        rounded, plain = (run(session(to_model(each), optimize=False), feeds) for each in (graph, twin))
        assert relative_error(rounded, plain) < within
    return found


def ints(*shape: int, kind=np.int8, seed: int = 0) -> np.ndarray:
    """Random integers, symmetric around a zero point of 3."""
    return np.random.default_rng(seed + sum(shape)).integers(-60, 66, shape).astype(kind)


def unsigned(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed + sum(shape)).integers(40, 210, shape).astype(np.uint8)


def scales(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).uniform(0.002, 0.01, shape).astype(np.float32)


def per_channel(name: str, channels: int, kind=np.int8) -> dict:
    zero_points = np.random.default_rng(channels).integers(-3, 4, channels).astype(kind)
    return {f"s_{name}": scales(channels), f"z_{name}": zero_points}


def per_tensor(name: str, zero_point=3, kind=np.int8) -> dict:
    return {f"s_{name}": np.float32(0.006), f"z_{name}": kind(zero_point)}


def images(middle: str, result: int, weights: dict, *, channels: int = 12):
    """``middle`` maps ``a`` ``[N, channels, 8, 6]`` to ``b`` ``[N, result, ...]``, integers both."""
    text = f"""
    qx = QuantizeLinear (x, s, z)
    a = QLinearConv (qx, s, z, w_in, s_in, z_in, s, z, v_in)
    {middle}
    qy = QLinearConv (b, s, z, w_out, s_out, z_out, s, z)
    y = DequantizeLinear (qy, s, z)
    """
    every = {
        **SCALE,
        "w_in": ints(channels, 5, 1, 1),
        **per_channel("in", channels),
        "v_in": ints(channels, kind=np.int32),
        **weights,
        "w_out": ints(3, result, 1, 1),
        **per_tensor("out"),
    }
    return build("float[N,5,8,6] x", "float[N,3,H,W] y", text, every, domains=MS)


@pytest.mark.parametrize("parameters", ["channel", "tensor"])
@pytest.mark.parametrize("bias", [", v", ""])
def test_convolution(parameters, bias):
    middle = f"b = QLinearConv (a, s, z, w, s_w, z_w, s, z{bias})"
    several = per_channel("w", 10) if parameters == "channel" else per_tensor("w")
    weights = {"w": ints(10, 12, 3, 3), **several, "v": ints(10, kind=np.int32)}
    found = check(images(middle, 10, weights), [10, 12])
    assert {group.kind for group in found.groups} == {"channel"}
    assert found.cost.evaluate().macs == 48 * 5 * 12 + 24 * 12 * 10 * 9 + 24 * 10 * 3
    smaller = check_cut(found, {of_size(found, 10).id: drop(10, 1, 2)})
    shape = [tuple(tensor.shape) for tensor in smaller.nodes[2].inputs[3:6]]
    assert shape == ([(8, 12, 3, 3), (8,), (8,)] if parameters == "channel" else [(8, 12, 3, 3), (), ()])


def test_grouped_convolution():
    middle = "b = QLinearConv <group=3> (a, s, z, w, s_w, z_w, s, z)"
    check(images(middle, 12, {"w": ints(12, 4, 3, 3), **per_channel("w", 12)}), [3, 4, 4])


def test_sums_joins_and_pools():
    middle = f"""
    c = QLinearConv (a, s, z, w, s_w, z_w, s, z)
    d = {OPS}QLinearAdd (a, s, z, c, s, z, s, z)
    e = {OPS}QLinearLeakyRelu <alpha=0.1> (d, s, z, s, z)
    f = {OPS}QLinearConcat <axis=1> (s, z, e, s, z, c, s, z)
    g = {OPS}QLinearAveragePool <kernel_shape=[2,2]> (f, s, z, s, z)
    h = {OPS}QLinearGlobalAveragePool (g, s, z, s, z)
    i = {OPS}QLinearSigmoid (h, s, z, s, z)
    b = {OPS}QLinearMul (f, s, z, i, s, z, s, z)
    """
    check(images(middle, 24, {"w": ints(12, 12, 1, 1), **per_channel("w", 12)}), [12])


def test_constants_in_sums_are_masked_with_their_zero_point():
    """A mean over channels is exact, as what is added vanishes too."""
    middle = f"""
    c = {OPS}QLinearAdd (a, s, z, k, s, z, s, z)
    d = DequantizeLinear (c, s, z)
    m = ReduceMean <keepdims=1> (d, one)
    e = Add (d, m)
    b = QuantizeLinear (e, s, z)
    """
    check(images(middle, 12, {"k": unsigned(12, 1, 1), "one": np.int64([1])}), [12])


def test_one_of_two():
    middle = f"b = {OPS}QLinearWhere (m, a, s, z, k, s, z, s, z)"
    mask = np.arange(48).reshape(1, 1, 8, 6) % 2 == 0
    check(images(middle, 12, {"m": mask, "k": unsigned(1, 12, 1, 1)}), [12])


@pytest.mark.parametrize("opset", [11, 13])
def test_softmax_over_channels(opset):
    middle = f"b = {OPS}QLinearSoftmax <axis=2, opset={opset}> (a, s, z, s, z)"
    check(images(middle, 12, {}), [12], within=1.0)  # most of it is less than a step
    middle = f"b = {OPS}QLinearSoftmax <axis=1, opset={opset}> (a, s, z, s, z)"
    assert solved(images(middle, 12, {})).groups == []


def test_channels_last():
    body = f"""
    qx = QuantizeLinear (x, s, z)
    a = {OPS}QLinearConv <channels_last=1> (qx, s, z, w_in, s_in, z_in, s, z)
    c = {OPS}NhwcMaxPool <kernel_shape=[2,2]> (a)
    d = {OPS}QLinearAveragePool <kernel_shape=[2,2], channels_last=1> (c, s, z, s, z)
    e = {OPS}QLinearConv <channels_last=1, group=3> (d, s, z, w, s_w, z_w, s, z)
    f = {OPS}QLinearGlobalAveragePool <channels_last=1> (e, s, z, s, z)
    qy = {OPS}QLinearConv <channels_last=1> (f, s, z, w_out, s_out, z_out, s, z)
    y = DequantizeLinear (qy, s, z)
    """
    weights = {
        **SCALE,
        "w_in": ints(12, 5, 1, 1),
        **per_channel("in", 12, np.int8),
        "w": ints(12, 4, 3, 3),
        **per_tensor("w"),
        "w_out": ints(3, 12, 1, 1),
        **per_tensor("out"),
    }
    weights["z_in"] = np.zeros(12, np.int8)
    model = build("float[N,8,6,5] x", "float[N,1,1,3] y", body, weights, domains=MS)
    check(model, [3, 4, 4], floats=False)


def features(middle: str, result: int, weights: dict, *, channels: int = 12):
    text = f"""
    qx = QuantizeLinear (x, s, z)
    a = QLinearMatMul (qx, s, z, w_in, s_in, z_in, s, z)
    {middle}
    qy = QLinearMatMul (b, s, z, w_out, s_out, z_out, s, z)
    y = DequantizeLinear (qy, s, z)
    """
    every = {
        **SCALE,
        "w_in": ints(5, channels),
        **per_channel("in", channels),
        **weights,
        "w_out": ints(result, 3),
        **per_tensor("out"),
    }
    return build("float[N,5] x", "float[N,3] y", text, every, domains=MS)


@pytest.mark.parametrize("parameters", ["channel", "tensor"])
def test_product(parameters):
    several = per_channel("w", 10) if parameters == "channel" else per_tensor("w")
    middle = "b = QLinearMatMul (a, s, z, w, s_w, z_w, s, z)"
    found = check(features(middle, 10, {"w": ints(12, 10), **several}), [10, 12])
    assert found.cost.evaluate().macs == 5 * 12 + 12 * 10 + 10 * 3


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("parameters", ["channel", "tensor"])
@pytest.mark.parametrize("bias", ["v", ""])
def test_gemm(transposed, parameters, bias):
    several = per_channel("w", 10) if parameters == "channel" else per_tensor("w")
    shape = (10, 12) if transposed else (12, 10)
    middle = f"b = {OPS}QGemm <transB={transposed}> (a, s, z, w, s_w, z_w, {bias}, s, z)"
    check(features(middle, 10, {"w": ints(*shape), **several, "v": ints(10, kind=np.int32)}), [10, 12])


def dynamic(middle: str, weights: dict, *, result: int = 10):
    """``middle`` maps floats ``a`` ``[N, 7, 12]`` to ``b``; what comes before is exact, so that nothing rounds anew."""
    text = f"a = MatMul (x, w_in)\n{middle}\ny = MatMul (b, w_out)"
    every = {"w_in": (5, 12), **weights, "w_out": (result, 3)}
    return build("float[N,7,5] x", "float[N,7,3] y", text, every, domains=MS)


@pytest.mark.parametrize("parameters", ["channel", "tensor"])
def test_dynamically_quantized_product(parameters):
    several = per_channel("w", 10) if parameters == "channel" else per_tensor("w")
    middle = """
    q, t, u = DynamicQuantizeLinear (a)
    i = MatMulInteger (q, w, u, z_w)
    f = Cast <to=1> (i)
    r = Mul (t, s_w)
    g = Mul (f, r)
    b = Add (g, v)
    """
    found = check(dynamic(middle, {"w": ints(12, 10), **several, "v": (10,)}), [10, 12])
    assert found.cost.evaluate().macs == 7 * (5 * 12 + 12 * 10 + 10 * 3)


def test_dynamically_quantized_convolution():
    body = """
    a = Conv (x, w_in)
    q, t, u = DynamicQuantizeLinear (a)
    i = ConvInteger <pads=[1,1,1,1]> (q, w, u)
    f = Cast <to=1> (i)
    g = Mul (f, t)
    y = Conv (g, w_out)
    """
    weights = {"w_in": (12, 5, 1, 1), "w": unsigned(10, 12, 3, 3), "w_out": (3, 10, 1, 1)}
    check(build("float[N,5,8,6] x", "float[N,3,8,6] y", body, weights), [10, 12])


def test_a_dynamic_range_over_what_does_not_vanish():
    """Behind a sigmoid a masked channel is one half, and may be what sets the range."""
    middle = f"e = Sigmoid (a)\nb = {OPS}DynamicQuantizeMatMul (e, w, s_w, z_w)"
    weights = {"w": ints(12, 10), **per_tensor("w")}
    found = solved(dynamic(middle, weights))
    assert sorted((group.size, bool(group.structural)) for group in found.groups) == [(10, False), (12, True)]


@pytest.mark.parametrize("parameters", ["channel", "tensor"])
@pytest.mark.parametrize("bias", [", v", ""])
def test_fused_dynamic_product(parameters, bias):
    several = per_channel("w", 10) if parameters == "channel" else per_tensor("w")
    middle = f"b = {OPS}DynamicQuantizeMatMul (a, w, s_w, z_w{bias})"
    check(dynamic(middle, {"w": ints(12, 10), **several, "v": (10,)}), [10, 12])


@pytest.mark.parametrize("bias", [", v", ""])
def test_product_back_to_floats(bias):
    middle = f"""
    q, t, u = DynamicQuantizeLinear (a)
    b = {OPS}MatMulIntegerToFloat (q, w, t, s_w, u, z_w{bias})
    """
    check(dynamic(middle, {"w": ints(12, 10), **per_channel("w", 10), "v": (10,)}), [10, 12])


def test_product_of_16_bits():
    body = f"i = {OPS}MatMulInteger16 (q, w)\nf = Cast <to=1> (i)\nb = Mul (f, t)\ny = MatMul (b, w_out)"
    body = f"q0 = Mul (x, t)\nq = Cast <to=5> (q0)\n{body}"
    weights = {"w": ints(5, 10, kind=np.int16), "t": np.float32(10), "w_out": (10, 3)}
    check(build("float[N,5] x", "float[N,3] y", body, weights, domains=MS), [10], floats=False)


@pytest.mark.parametrize("parameters", ["channel", "tensor"])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_recurrent_layer(parameters, direction):
    directions, hidden = (2 if direction == "bidirectional" else 1), 6
    shape = (directions, 4 * hidden) if parameters == "channel" else (directions,)
    zero = np.zeros(shape, np.int8)
    body = f"""
    a = MatMul (x, w_in)
    h = {OPS}DynamicQuantizeLSTM <hidden_size={hidden}, direction="{direction}">
        (a, w, r, v, , , , , s_w, z_w, s_r, z_r)
    t = Transpose <perm=[0,2,1,3]> (h)
    f = Reshape (t, join)
    y = MatMul (f, w_out)
    """
    weights = {
        "w_in": (5, 7),
        "w": ints(directions, 7, 4 * hidden),
        "r": ints(directions, hidden, 4 * hidden),
        "v": (directions, 8 * hidden),
        "s_w": scales(*shape),
        "s_r": scales(*shape) * np.float32(1.5),
        "z_w": zero,
        "z_r": zero,
        "join": np.int64([0, 0, -1]),
        "w_out": (directions * hidden, 3),
    }
    found = check(build("float[T,N,5] x", "float[T,N,3] y", body, weights, domains=MS), [6, 7])
    assert of_size(found, 6).kind == "hidden"
    smaller = check_cut(found, {of_size(found, 6).id: drop(6, 1)})
    assert only(smaller, "DynamicQuantizeLSTM").attrs["hidden_size"] == 5


@pytest.mark.parametrize("parameters", ["channel", "tensor"])
def test_attention(parameters):
    several = (
        {"s_w": scales(54), "z_w": np.zeros(54, np.int8)} if parameters == "channel" else per_tensor("w", 0)
    )
    middle = f"""
    q, t, u = DynamicQuantizeLinear (a)
    b = {OPS}QAttention <num_heads=3> (q, w, v, t, s_w, , u, z_w)
    """
    found = check(dynamic(middle, {"w": ints(12, 54), **several, "v": (54,)}, result=18), [3, 6, 12])
    smaller = check_cut(found, {of_size(found, 3).id: drop(3, 1), of_size(found, 6).id: drop(6, 2)})
    node = only(smaller, "QAttention")
    assert node.attrs == {"num_heads": 2, "scale": pytest.approx(6**-0.5)}
    assert tuple(node.inputs[1].shape) == (12, 30)


def test_weights_that_are_dequantized_first():
    """Zero points of their own per row, and a weight that is transposed on the way."""
    body = """
    a0 = DequantizeLinear <axis=0> (w, s_w, z_w)
    a1 = Transpose <perm=[1,0]> (a0)
    a = MatMul (x, a1)
    y0 = DequantizeLinear <axis=1> (v, s_v, z_v)
    y = MatMul (a, y0)
    """
    weights = {
        "w": ints(12, 5),
        **per_channel("w", 12),
        "v": ints(12, 3),
        "s_v": scales(3),
        "z_v": np.int8([1, -2, 3]),
    }
    check(build("float[N,5] x", "float[N,3] y", body, weights), [12])


def test_operators_of_the_other_domain():
    body = f"""
    q = {OPS}QuantizeLinear (x, s, z)
    d = {OPS}DequantizeLinear (q, s, z)
    a0 = {OPS}DequantizeLinear <axis=1> (w, s_w, z_w)
    a = MatMul (d, a0)
    y = MatMul (a, w_out)
    """
    weights = {**SCALE, "w": ints(5, 12), **per_channel("w", 12), "w_out": (12, 3)}
    check(build("float[N,5] x", "float[N,3] y", body, weights, domains=MS), [12])


def test_a_quantized_table_is_masked_before_its_rows_are_looked_up():
    """What is dequantized is no constant, yet the mean square behind it is exact only if the table vanishes."""
    body = """
    r = Gather (table, ids)
    t = Unsqueeze (r, zero)
    d = DequantizeLinear (t, s, z)
    n = RMSNormalization (d, g)
    w = MatMul (n, w_out)
    y = Add (w, x)
    """
    weights = {
        **SCALE,
        "table": unsigned(9, 12),
        "ids": np.int64([0, 8, 3]),
        "zero": np.int64([0]),
        "g": (12,),
        "w_out": (12, 3),
    }
    check(build("float[1,3,3] x", "float[1,3,3] y", body, weights, opset=23), [12])


def test_states_that_start_at_zero_keep_a_dynamic_range_exact():
    """The second layer measures the range of what the first gives, which vanishes as its initial states do."""
    body = f"""
    n = Shape <start=1, end=2> (x)
    shape = Concat <axis=0> (one, n, six)
    zero = ConstantOfShape (shape)
    h = {OPS}DynamicQuantizeLSTM <hidden_size=6> (x, w, r, v, , zero, zero, , s_w, z_w, s_r, z_r)
    f = Squeeze (h, one)
    q = {OPS}DynamicQuantizeMatMul (f, k, s_k)
    y = MatMul (q, w_out)
    """
    weights = {
        "one": np.int64([1]),
        "six": np.int64([6]),
        "w": ints(1, 5, 24),
        "r": ints(1, 6, 24),
        "v": (1, 48),
        **{f"s_{name}": scales(1) for name in "wr"},
        **{f"z_{name}": np.zeros(1, np.int8) for name in "wr"},
        "k": ints(6, 10),
        "s_k": np.float32(0.01),
        "w_out": (10, 3),
    }
    check(build("float[T,N,5] x", "float[T,N,3] y", body, weights, domains=MS), [6, 10])
