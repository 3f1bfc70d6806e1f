"""Elementwise operators: channels pass through one operand and are tied between several."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build, check, check_cut, drop, features, images, of_size, only, reasons, solved

UNARY = (
    *("Relu", "LeakyRelu", "ThresholdedRelu", "Elu", "Celu", "Selu", "Gelu", "Mish", "HardSwish", "Shrink"),
    *("Tanh", "Softsign", "Erf", "Abs", "Neg", "Sign", "Floor", "Ceil", "Round", "Identity"),
    *("Sin", "Tan", "Atan", "Sinh", "Asinh"),
    *("Exp", "Sigmoid", "HardSigmoid", "Softplus", "Cos", "Cosh"),
)
WITHIN_ONE = ("Asin", "Atanh", "Acos")
POSITIVE = ("Log", "Sqrt", "Reciprocal", "Acosh")


@pytest.mark.parametrize("op", UNARY)
def test_unary(op):
    check(features(f"b = {op} (a)", 12), [12])


@pytest.mark.parametrize("op", WITHIN_ONE)
def test_unary_of_small_values(op):
    check(features(f"t = Tanh (a)\nb = {op} (t)", 12), [12])


@pytest.mark.parametrize("op", POSITIVE)
def test_unary_of_values_over_one(op):
    """``exp(|a|) >= 1``, masked or not."""
    check(features(f"m = Abs (a)\nt = Exp (m)\nb = {op} (t)", 12), [12])


def test_swish():
    """onnxruntime has no kernel; it runs the function onnx defines."""
    check(features("b = Swish <alpha=1.5> (a)", 12, opset=24), [12])


def test_not_isnan_isinf():
    body = """
    n = IsNaN (a)
    i = IsInf (a)
    e = Or (n, i)
    f = Not (e)
    g = Cast <to=1> (f)
    b = Mul (a, g)
    """
    check(features(body, 12), [12])


def test_cast_and_cast_like():
    check(features("c = Cast <to=11> (a)\nb = CastLike (c, a)", 12), [12])


def test_bitwise_operators():
    body = """
    i = Cast <to=6> (a)
    j = BitwiseNot (i)
    k = BitwiseAnd (i, mask)
    l = BitwiseOr (j, k)
    m = BitwiseXor (l, i)
    b = Cast <to=1> (m)
    """
    check(features(body, 12, {"mask": np.int32([6])}), [12])


def test_bit_shift_and_mod():
    body = """
    p = Abs (a)
    s = Mul (p, hundred)
    i = Cast <to=12> (s)
    j = BitShift <direction="RIGHT"> (i, two)
    f = Cast <to=1> (j)
    m = Mod <fmod=1> (f, divisor)
    b = Add (m, a)
    """
    weights = {"hundred": np.float32(100), "two": np.uint32([2]), "divisor": np.full(12, 3, np.float32)}
    check(features(body, 12, weights), [12])


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean"])
def test_two_activations_are_tied(op):
    body = f"c = MatMul (x, w_side)\nb = {op} (a, c)"
    found = check(features(body, 12, {"w_side": (5, 12)}), [12])
    assert len(found.groups[0].producers) == 2


def test_division_of_two_activations():
    body = "c = MatMul (x, w_side)\nd = Exp (c)\nb = Div (a, d)"
    check(features(body, 12, {"w_side": (5, 12)}), [12])


def test_a_constant_divisor_is_not_masked():
    check(features("b = Div (a, w)", 12, {"w": (12,)}), [12])
    check(features("e = Exp (a)\nb = Div (w, e)", 12, {"w": (12,)}), [12])


@pytest.mark.parametrize("shape", [(), (1,), (12,), (7, 12), (7, 1), (1, 1, 12), (1, 1, 1, 12)[1:]])
def test_constants_broadcast(shape):
    check(features("c = Mul (a, w)\nb = Add (c, v)", 12, {"w": shape, "v": shape}), [12])


def test_equal_sizes_do_not_couple_broadcast_axes():
    """``[C, 1] + [1, C]`` ties nothing."""
    model = build(
        "float[1,5] x",
        "float[3,4] y",
        """
        p = Gemm (x, w1)
        q = Gemm (x, w2)
        p2 = Reshape (p, column)
        s = Add (p2, q)
        left = MatMul (w_left, s)
        y = MatMul (left, w_right)
        """,
        {
            "w1": (5, 12),
            "w2": (5, 12),
            "column": np.array([12, 1]),
            "w_left": (3, 12),
            "w_right": (12, 4),
        },
    )
    check(model, [12, 12])


def test_squeeze_and_excite_ties_the_gate_to_its_channels():
    body = """
    p = GlobalAveragePool (a)
    d = Conv (p, w1, b1)
    r = Relu (d)
    u = Conv (r, w2, b2)
    g = Sigmoid (u)
    b = Mul (a, g)
    """
    weights = {"w1": (4, 12, 1, 1), "b1": (4,), "w2": (12, 4, 1, 1), "b2": (12,)}
    check(images(body, 12, weights), [4, 12])


@pytest.mark.parametrize("op", ["And", "Or", "Xor", "Equal"])
def test_logic(op):
    body = f"""
    zero = Constant <value = float {{0.0}}> ()
    p = Greater (a, zero)
    q = Less (a, half)
    l = {op} (p, q)
    f = Cast <to=1> (l)
    b = Mul (f, a)
    """
    check(features(body, 12, {"half": np.full(12, 0.3, np.float32)}), [12])


@pytest.mark.parametrize("op", ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
def test_comparisons(op):
    body = f"c = MatMul (x, w_side)\np = {op} (a, c)\nf = Cast <to=1> (p)\nb = Add (f, a)"
    check(features(body, 12, {"w_side": (5, 12)}), [12])


@pytest.mark.parametrize("exponent", [2.0, 3.0])
def test_power(exponent):
    check(features("b = Pow (a, e)", 12, {"e": np.float32(exponent)}), [12])


def test_power_with_an_exponent_per_channel():
    body = "m = Abs (a)\nb = Pow (m, e)"
    check(features(body, 12, {"e": np.linspace(1, 2, 12, dtype=np.float32)}), [12])


@pytest.mark.parametrize("shape", [(1,), (12,)])
def test_prelu(shape):
    check(features("b = PRelu (a, slope)", 12, {"slope": shape}), [12])


def test_prelu_of_images():
    check(images("b = PRelu (a, slope)", 12, {"slope": (12, 1, 1)}), [12])


def test_where():
    body = """
    c = MatMul (x, w_side)
    zero = Constant <value = float {0.0}> ()
    p = Greater (a, zero)
    b = Where (p, a, c)
    """
    check(features(body, 12, {"w_side": (5, 12)}), [12])


def test_where_with_a_constant_mask():
    flags = np.arange(12) % 3 == 0
    check(features("b = Where (p, a, zero)", 12, {"p": flags, "zero": np.float32(0)}), [12])


@pytest.mark.parametrize(("bounds", "opset"), [("min=-0.5, max=0.5", 7), ("min=0.1", 7)])
def test_clip_before_opset_11(bounds, opset):
    check(features(f"b = Clip <{bounds}> (a)", 12, opset=opset), [12])


@pytest.mark.parametrize(("low", "high"), [(-0.5, 0.5), (0.0, 6.0), (0.2, None), (None, 0.3)])
def test_clip(low, high):
    bounds = {"low": low, "high": high}
    weights = {name: np.float32(value) for name, value in bounds.items() if value is not None}
    inputs = ", ".join(name if name in weights else '""' for name in bounds).replace('""', "")
    check(features(f"b = Clip (a, {inputs.rstrip(', ')})", 12, weights), [12])


def test_clip_that_lifts_zero_makes_a_sum_of_squares_structural():
    body = "c = Clip (a, low)\nr = ReduceL2 <axes=[-1], keepdims=1> (c)\nb = Div (a, r)"
    check(features(body, 12, {"low": np.float32(0.2)}, opset=13), [12], structural=[12])


@pytest.mark.parametrize("opset", [7, 10, 12, 13])
def test_dropout_is_the_identity(opset):
    check(features("b = Dropout (a)", 12, opset=opset), [12])


def test_dropout_with_its_mask():
    body = "d, m = Dropout (a)\nf = Cast <to=1> (m)\nb = Mul (d, f)"
    check(features(body, 12, opset=13), [12])


def test_dropout_in_training_mode_is_a_barrier():
    body = "b = Dropout (a, ratio, training)"
    found = solved(features(body, 12, {"ratio": np.float32(0.5), "training": np.array(True)}))
    assert found.groups == []
    assert "Dropout in training mode" in reasons(found)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax_pins_its_axis(op):
    body = f"s = {op} <axis=-1> (a)\nb = MatMul (s, w)"
    found = check(features(body, 10, {"w": (12, 10)}), [10])
    assert "12: " + op in reasons(found)
    assert "softmax axis" in reasons(found)


def test_softmax_leaves_other_axes_free():
    check(features("b = Softmax <axis=1> (a)", 12), [12])


def test_softmax_before_opset_13_runs_over_all_axes_from_one_on():
    found = solved(features("b = Softmax <axis=1> (a)", 12, opset=11))
    assert found.groups == []
    assert "softmax axis" in reasons(found)
    check(
        build(
            "float[N,5] x",
            "float[N,3] y",
            "a = MatMul (x, w1)\nr = Reshape (a, s)\nb = Softmax <axis=2> (r)\nf = Flatten (b)\ny = MatMul (f, w2)",
            {"w1": (5, 12), "s": np.array([0, 4, 3]), "w2": (12, 3)},
            opset=11,
        ),
        [4],
    )


def test_an_exclusive_gate_keeps_its_tie_after_the_cut():
    body = "c = MatMul (x, w_side)\ng = Sigmoid (c)\nb = Mul (a, g)"
    found = check(features(body, 12, {"w_side": (5, 12)}), [12])
    smaller = check_cut(found, {of_size(found, 12).id: drop(12, 5)})
    assert only(smaller, "Sigmoid")
