"""A quantized graph as one that can be trained: the same at the start, rounded as it is stored, and what stays as it is."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper as nh
from ops.oracle import build
from quantizable import context_for, network, quantized
from refit import networks
from refit.rounded import rounded, stored
from refit.test_settle import CASES, data, named

from surgeon.grad.objective import Objective
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.graph.weights import peek
from surgeon.reference import Reference
from surgeon.refit.softened import Place, soften

PLAIN = {"rounding": "nearest", "correct_bias": False, "equalize": False, "smooth": False}


def softened(model, other, **options):
    return soften(from_model(other), Reference(from_model(model)), **options)


def outputs(model, feeds):
    """As written, for integer kernels round elsewhere."""
    return run(session(model, optimize=False), feeds)


def numbers(soft):
    return {name: np.array(peek(constant)) for name, constant in soft.numbers.items()}


def shaken(soft, size=0.03):
    random = np.random.default_rng(3)
    return {
        name: (each + size * random.standard_normal(each.shape)).astype(np.float32)
        for name, each in numbers(soft).items()
    }


@pytest.mark.parametrize("kind", ["int8", "uint8", "int4", "uint4"])
@pytest.mark.parametrize("case", ["strided", "depthwise", "Gemm transB", "residual", "weight on the left"])
def test_nothing_has_changed_at_the_start(case, kind):
    model = named(CASES[case])
    other = rounded(model, bits=4, kind=kind)
    soft = softened(model, other)
    assert soft.left == {}
    feeds = {"x": data(model, 1, 8)}
    for ours, theirs in zip(outputs(to_model(soft.graph), feeds), outputs(other, feeds), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    graph = from_model(other)
    changed, total = soft.store(graph, numbers(soft))
    assert changed == 0
    assert total == sum(each.size for each in stored(other).values())
    assert to_model(graph).SerializeToString() == to_model(from_model(other)).SerializeToString()


def test_numbers_start_where_the_float_weights_were_between_two_steps():
    model = named(CASES["strided"])
    other = rounded(model, bits=4)
    soft = softened(model, other)
    values = networks.weights(model)
    for name, constant in soft.numbers.items():
        place = soft.places[name]
        if place.constant.endswith("/q"):
            weight = place.constant.removesuffix("/q")
            wanted = values[weight] / networks.weights(other)[f"{weight}/scale"]
            np.testing.assert_allclose(peek(constant) * place.unit, wanted, atol=0.011)


@pytest.mark.parametrize("per_channel", [True, False])
def test_what_is_rounded_is_what_is_stored(per_channel):
    """Of weights with 8 bits, biases with 32, and floats."""
    model = network()
    other = quantized(model, context_for(model), **PLAIN, per_channel=per_channel, exclude=("head",))
    soft = softened(model, other)
    moved = shaken(soft)
    for name, each in soft.rounded(moved).items():
        soft.numbers[name].values = each
    graph = from_model(other)
    changed, total = soft.store(graph, moved)
    assert 0 < changed <= total
    feeds = {"x": np.random.default_rng(5).standard_normal((4, 3, 8, 8)).astype(np.float32)}
    result = to_model(graph)
    np.testing.assert_allclose(
        outputs(to_model(soft.graph), feeds)[0], outputs(result, feeds)[0], rtol=1e-4, atol=1e-6
    )
    before, after = networks.weights(other), networks.weights(result)
    assert {name for name in before if not np.array_equal(before[name], after[name])} == {
        *("w1_quantized", "b1_quantized", "w2_quantized", "w3", "b3")
    }
    assert after["b1_quantized"].dtype == np.int32


def test_gradients_pass_straight_through_the_rounding():
    """In units of the grid they are those of the float weights, times the scale; beyond the ends of the range there are none."""
    model = named(build("float[N,6] x", "float[N,4] y", "y = Gemm (x, w, b)", {"w": (6, 4), "b": (4,)}))
    other = rounded(model, bits=3, activations=False)
    x = np.random.default_rng(0).standard_normal((9, 6)).astype(np.float32)
    soft = softened(model, other)
    values = numbers(soft)
    weight = next(name for name, place in soft.places.items() if place.constant == "w/q")
    unit = soft.places[weight].unit
    assert unit == 4
    values[weight][:2] = [[3.6 / unit], [3.4 / unit]]
    objective = Objective(
        soft.graph, lambda tape: (tape.find("y") * tape.find("y")).mean(), list(values), rows=True
    )
    _, gradients = objective.gradients(values, [(9, {"x": x})])
    scale = networks.weights(other)["w/scale"]
    matrix = np.clip(np.rint(values[weight].astype(np.float64) * unit), -3, 3) * scale
    y = x @ matrix + networks.weights(model)["b"]
    expected = x.T @ y * (2 / y.size) * scale * unit
    expected[0] = 0
    np.testing.assert_allclose(gradients[weight], expected, rtol=1e-4, atol=1e-7)


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=5), st.floats(-9, 9, allow_nan=False))
def test_large_integers_survive(integers, shift):
    before = np.array(integers, np.int32)
    start = (before / 64).astype(np.float32)
    place = Place("b", start, 64, -(2**31), 2**31 - 1)
    assert np.array_equal(place.stored(start, before), before)
    moved = place.stored((start + np.float32(shift)).astype(np.float32), before).astype(np.int64)
    wanted = np.clip(before.astype(np.int64) + 64 * shift, -(2**31), 2**31 - 1)
    assert (np.abs(moved - wanted) <= 1 + np.abs(before.astype(np.float64)) * 2**-22).all()


def test_exclusions():
    model = network()
    other = quantized(model, context_for(model), **PLAIN)
    soft = softened(model, other, excluded=lambda name: name in ("w1", "head"))
    assert soft.left == dict.fromkeys(("w1_quantized", "w3_quantized", "b3_quantized"), "excluded")
    assert {place.constant for place in soft.places.values()} == {"b1_quantized", "w2_quantized"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"mode": "dynamic"}, "MatMulInteger reads integers that no DequantizeLinear stands before"),
        ({"mode": "weights"}, "its weight is computed"),
        ({"mode": "weights", "bits": 4}, "MatMulNBits reads integers that no DequantizeLinear stands before"),
    ],
)
def test_what_is_stored_otherwise(options, reason):
    model = build("float[N,64] x", "float[N,64] y", "y = MatMul (x, w)", {"w": (64, 64)})
    model.graph.node[0].name = "product"
    soft = softened(model, quantized(model, context_for(model), **options))
    assert soft.numbers == {}
    assert reason in soft.left.values()


def test_weights_that_are_computed():
    model = named(build("float[N,6] x", "float[N,4] y", "v = Exp (w)\ny = MatMul (x, v)", {"w": (6, 4)}))
    assert list(softened(model, model).left.values()) == ["its weight is computed"]


def shared(other_scale: float):
    """One matrix, and two operators that may see it at different scales."""
    body = """
    v = DequantizeLinear (q, s)
    u = DequantizeLinear (q, t)
    a = MatMul (x, v)
    y = MatMul (a, u)
    """
    integers = np.random.default_rng(0).integers(-9, 9, (6, 6)).astype(np.int8)
    weights = {"q": integers, "s": np.float32(0.1), "t": np.float32(other_scale)}
    return build("float[N,6] x", "float[N,6] y", body, weights)


def test_shared_integers():
    assert softened(shared(0.2), shared(0.2)).left == {"q": "it is shared by operators with other scales"}
    soft = softened(shared(0.1), shared(0.1))
    assert soft.left == {}
    feeds = {"x": np.ones((2, 6), np.float32)}
    np.testing.assert_allclose(
        outputs(to_model(soft.graph), feeds)[0], outputs(shared(0.1), feeds)[0], rtol=1e-5
    )


def sums() -> onnx.ModelProto:
    """A product, rounded, and a bias in 8 bits added to it."""
    body = """
    v = DequantizeLinear (q, s)
    a = MatMul (x, v)
    r = QuantizeLinear (a, t, z)
    d = DequantizeLinear (r, t, z)
    c = DequantizeLinear (b, s)
    y = Add (d, c)
    """
    random = np.random.default_rng(0)
    weights = {
        "q": random.integers(-9, 9, (6, 4)).astype(np.int8),
        "b": random.integers(-9, 9, 4).astype(np.int8),
        "s": np.float32(0.1),
        "t": np.float32(0.05),
        "z": np.int8(0),
    }
    return build("float[N,6] x", "float[N,4] y", body, weights)


def test_biases_that_are_added_in_8_bits():
    assert {place.constant for place in softened(sums(), sums()).places.values()} == {"q", "b"}


def test_other_floats():
    model = build("float16[N,6] x", "float16[N,4] y", "y = MatMul (x, w)", {"w": np.ones((6, 4), np.float16)})
    assert softened(model, model).left == {"w": "its numbers are float16"}


def sparse(model: onnx.ModelProto) -> onnx.ModelProto:
    """Half of the weights are zero."""
    result = onnx.ModelProto.FromString(model.SerializeToString())
    for entry in result.graph.initializer:
        if entry.name.startswith("w"):
            values = np.array(nh.to_array(entry))
            values[np.abs(values) < np.median(np.abs(values))] = 0
            entry.CopyFrom(nh.from_array(values, entry.name))
    return result


def test_zeros_of_the_original_are_tied():
    model = sparse(network())
    other = quantized(model, context_for(model), **PLAIN)
    soft = softened(model, other)
    values = networks.weights(other)
    for name, tie in soft.ties.items():
        assert np.array_equal(tie.free, values[soft.places[name].constant] != 0)
    assert [each["name"] for each in soft.kept] == ["w1", "w2", "w3"]
    assert all(each["zeros"] >= values[f"{each['name']}_quantized"].size // 2 for each in soft.kept)
    dense = softened(network(), quantized(network(), context_for(network()), **PLAIN))
    assert dense.ties == {}
    assert dense.kept == []


def test_zeros_of_an_unknown_original_are_tied():
    stranger = build("float[N,6] x", "float[N,4] y", "y = Gemm (x, w)", {"w": (6, 4)})
    soft = softened(stranger, sums())
    (tie,) = soft.ties.values()
    assert np.array_equal(tie.free, networks.weights(sums())["q"] != 0)


def test_weights_inside_of_bodies_are_left():
    inner = oh.make_graph(
        [oh.make_node("MatMul", ["x", "w"], ["o"], name="inside")],
        "b",
        [],
        [oh.make_tensor_value_info("o", 1, ["N", 6])],
    )
    graph = oh.make_graph(
        [oh.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)],
        "g",
        [oh.make_tensor_value_info("x", 1, ["N", 6]), oh.make_tensor_value_info("c", 9, [])],
        [oh.make_tensor_value_info("y", 1, ["N", 6])],
        [nh.from_array(np.ones((6, 6), np.float32), "w")],
    )
    model = oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])
    assert softened(model, model).left == {"inside": "it is inside of a body"}
