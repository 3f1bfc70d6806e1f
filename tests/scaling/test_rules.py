"""Which operators let factors through: whatever is free may be scaled at random without any change of the outputs."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.oracle import build
from random_graphs import network
from scaling.factors import check, free

import surgeon.scaling
from surgeon.scaling import SCALINGS
from surgeon.scaling.classes import find_classes, why_fixed

IMAGE, OUT = "float[N,3,6,6] x", "float[N,5] y"
TAIL = "g = GlobalAveragePool (t) f = Flatten (g) y = Gemm <transB=1> (f, w9, b9)"
WEIGHTS = {"w1": (8, 3, 3, 3), "b1": (8,), "w9": (5, 8), "b9": (5,)}


def image(body: str, **weights: object):
    """A convolution to eight channels ``c``, a body that makes ``t``, and a classifier."""
    text = f"c = Conv <pads=[1,1,1,1]> (x, w1, b1) {body} {TAIL}"
    return build(IMAGE, OUT, text, {**WEIGHTS, **weights}, seed=3)


@pytest.mark.parametrize(
    "body",
    [
        *(f"t = {name} (c)" for name in ("Relu", "LeakyRelu", "Abs", "Neg", "Identity", "Dropout")),
        "t = PRelu (c, slope)",
        *(f"t = {name} <kernel_shape=[2,2]> (c)" for name in ("MaxPool", "AveragePool", "LpPool")),
        "t = GlobalMaxPool (c)",
        "t = GlobalLpPool (c)",
        "n = Constant <value_ints=[2]> () t = ReduceMax (c, n)",
        "n = Constant <value_ints=[2]> () t = ReduceMean (c, n)",
        "n = Constant <value_ints=[2]> () t = ReduceMin (c, n)",
        "n = Constant <value_ints=[2]> () t = ReduceL1 (c, n)",
        "n = Constant <value_ints=[3]> () t = ReduceL2 (c, n)",
        "n = Constant <value_ints=[2]> () t = ReduceSum (c, n)",
        "n = Constant <value_floats=[1.0,1.0,2.0,2.0]> () t = Resize (c, , n)",
        "t = Transpose <perm=[0,1,3,2]> (c)",
        "n = Constant <value_ints=[0,8,36]> () r = Reshape (c, n) m = Constant <value_ints=[0,8,6,6]> () t = Reshape (r, m)",
        "n = Constant <value_ints=[4]> () u = Unsqueeze (c, n) t = Squeeze (u, n)",
        "n = Constant <value_ints=[0,0,1,1,0,0,1,1]> () t = Pad (c, n)",
        "n = Constant <value_ints=[1,1,2,1]> () t = Tile (c, n)",
        "a, b = Split <axis=1, num_outputs=2> (c) t = Concat <axis=1> (b, a)",
        "n = Constant <value_ints=[3,1,2,0,7,6,5,4]> () t = Gather <axis=1> (c, n)",
        "s = Constant <value_ints=[0]> () e = Constant <value_ints=[4]> () n = Constant <value_ints=[3]> () t = Slice (c, s, e, n)",
        "t = Clip (c, zero)",
        "t = Add (c, shift)",
        "t = Sub (c, shift)",
        "t = Sum (c, shift)",
        "t = Mean (c, shift)",
        "t = Max (c, shift)",
        "t = Min (c, shift)",
        "n = Relu (c) t = Add (c, n)",
        "q = Constant <value_ints=[1]> () b = Cast <to=9> (q) n = Relu (c) t = Where (b, c, n)",
        "t = Mul (c, shift)",
        "t = Div (c, shift)",
        "t = Mul (c, half)",
        "t = Div (c, half)",
        "p = GlobalAveragePool (c) q = Conv (p, w2) s = Sigmoid (q) t = Mul (c, s)",
        "p = GlobalAveragePool (c) q = Conv (p, w2) s = Sigmoid (q) r = Exp (s) t = Div (c, r)",
        "t = Conv <group=8, pads=[1,1,1,1]> (c, wd, b2)",
        "t = Conv <group=2> (c, wg)",
        "t = Conv <pads=[1,1,1,1]> (c, w3)",
        "t = ConvTranspose <strides=[2,2]> (c, wt, b2)",
        "t = ConvTranspose <group=4> (c, wu)",
        "t = BatchNormalization (c, scale, b2, mean, variance)",
        "n = Constant <value_ints=[0,2,2,2,6,6]> () r = Reshape (c, n) p = Transpose <perm=[0,2,1,3,4,5]> (r) m = Constant <value_ints=[0,8,6,6]> () t = Reshape (p, m)",
        "d = DepthToSpace <blocksize=2> (c) t = SpaceToDepth <blocksize=2> (d)",
    ],
)
def test_factors_go_through(body):
    random = np.random.default_rng(0)
    positive = random.uniform(0.5, 2, (4, 8)).astype(np.float32)
    weights = {
        "slope": positive[0].reshape(8, 1, 1), "shift": (1, 8, 1, 1), "half": np.float32(0.5), "zero": np.float32(0),
        "w2": (8, 8, 1, 1), "wd": (8, 1, 3, 3), "b2": (8,), "wg": (8, 4, 1, 1), "w3": (8, 8, 3, 3), "wt": (8, 8, 2, 2),
        "wu": (8, 2, 1, 1), "scale": positive[1], "mean": (8,), "variance": positive[2],
    }  # fmt: skip
    used = {
        k: v
        for k, v in weights.items()
        if k in body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    }
    scaling = check(image(body, **used))
    assert free(scaling, "c") >= 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("t = Sigmoid (c)", "not the same up to a factor"),
        ("t = Clip (c, zero, six)", "bounds are the same for all channels"),
        ("t = Mul (c, c)", "multiplies it by what is scaled as well"),
        ("t = Add (c, half)", "one number for several channels"),
        ("n = Constant <value_ints=[0,0,1,1,0,0,1,1]> () t = Pad (c, n, half)", "pads with a number"),
        ("t = Div (half, c)", "divides a constant"),
    ],
)
def test_what_stops_factors_says_so(body, words):
    constants = {"zero": np.float32(0), "six": np.float32(6), "half": np.float32(0.5)}
    used = {
        k: v
        for k, v in constants.items()
        if k in body.replace(")", " ").replace(",", " ").replace("(", " ").split()
    }
    scaling = check(image(body, **used))
    assert free(scaling, "c") == 0
    assert words in why_fixed(scaling, "c")


def test_a_graph_output_keeps_its_numbers():
    scaling = check(
        build(
            IMAGE,
            "float[N,8,6,6] c",
            "c = Conv <pads=[1,1,1,1]> (x, w1, b1)",
            {k: WEIGHTS[k] for k in ("w1", "b1")},
        )
    )
    assert free(scaling, "c") == 0
    assert why_fixed(scaling, "c") == "c: graph output"


def test_depthwise_convolutions_have_factors_of_their_own_on_both_sides():
    scaling = check(image("r = Relu (c) t = Conv <group=8, pads=[1,1,1,1]> (r, wd)", wd=(8, 1, 3, 3)))
    classes = {each.name: each for each in find_classes(scaling)}
    assert len(classes["c"].labels) == len(classes["t"].labels) == 8
    assert set(classes["c"].tensors) == {"c", "r"}
    assert [each.op.node.op for each in classes["c"].readers] == ["Conv"]


def test_residual_sums_have_one_factor():
    scaling = check(image("d = Conv <pads=[1,1,1,1]> (c, w2) t = Add (c, d)", w2=(8, 8, 3, 3)))
    np.testing.assert_array_equal(scaling.labels["c"], scaling.labels["d"])
    assert free(scaling, "c") == 8


def test_a_shared_matrix_ties_or_keeps():
    body = "z = MatMul (x, u) a = MatMul (z, w) r = Relu (a) b = MatMul (r, w) q = Relu (b) y = MatMul (q, v)"
    scaling = check(build("float[N,3] x", "float[N,2] y", body, {"u": (3, 6), "w": (6, 6), "v": (6, 2)}))
    assert free(scaling, "a") == free(scaling, "b") == 0
    assert "shares its weights" in why_fixed(scaling, "a")


@pytest.mark.parametrize(
    "norm", ["LayerNormalization <axis=-1> (h, s, b)", "RMSNormalization <axis=-1> (h, s)"]
)
def test_norms_write_channels(norm):
    weights = {"u": (3, 6), "s": (6,), "w": (6, 4), "v": (6, 4), **({"b": (6,)} if "b)" in norm else {})}
    body = f"h = MatMul (x, u) n = {norm} p = MatMul (n, w) q = MatMul (n, v) y = Add (p, q)"
    scaling = check(build("float[N,3,3] x", "float[N,3,4] y", body, weights, opset=23))
    assert free(scaling, "n") == 6
    (found,) = [each for each in find_classes(scaling) if each.name == "n"]
    assert len(found.readers) == 2
    assert len(found.others) == (2 if "b" in weights else 1)


def test_instance_and_group_norms_write_channels():
    for norm in ("InstanceNormalization (c, s, b)", "GroupNormalization <num_groups=2> (c, s, b)"):
        scaling = check(image(f"t = {norm}", s=(8,), b=(8,)))
        assert free(scaling, "t") == 8


def test_a_stream_that_ends_in_an_output_leaves_its_norms_free():
    body = """
    h = MatMul (x, u) n = LayerNormalization <axis=-1> (h, s, b) p = MatMul (n, w) q = Relu (p) r = MatMul (q, v)
    y = Add (h, r)
    """
    weights = {"u": (3, 6), "s": (6,), "b": (6,), "w": (6, 4), "v": (4, 6)}
    scaling = check(build("float[N,4,3] x", "float[N,4,6] y", body, weights))
    assert free(scaling, "n") == 6
    assert free(scaling, "h") == 0
    assert why_fixed(scaling, "h") in (
        "LayerNormalization n: divides by a statistic of several channels",
        "y: graph output",
    )


def test_embeddings_write_channels():
    body = "e = Gather (table, x) r = Relu (e) y = MatMul (r, w)"
    assert (
        free(check(build("int64[N,4] x", "float[N,4,3] y", body, {"table": (40, 6), "w": (6, 3)})), "e") == 6
    )


def test_values_of_attention_are_scaled_through_it():
    body = """
    q = MatMul (x, wq) k = MatMul (x, wk) v = MatMul (x, wv)
    n = Constant <value_ints=[0,0,2,4]> ()
    q1 = Reshape (q, n) k1 = Reshape (k, n) v1 = Reshape (v, n)
    q2 = Transpose <perm=[0,2,1,3]> (q1) k2 = Transpose <perm=[0,2,3,1]> (k1) v2 = Transpose <perm=[0,2,1,3]> (v1)
    s = MatMul (q2, k2) p = Softmax <axis=-1> (s) o = MatMul (p, v2)
    o1 = Transpose <perm=[0,2,1,3]> (o) m = Constant <value_ints=[0,0,8]> () o2 = Reshape (o1, m)
    y = MatMul (o2, wo)
    """
    weights = {"wq": (6, 8), "wk": (6, 8), "wv": (6, 8), "wo": (8, 5)}
    scaling = check(build("float[N,3,6] x", "float[N,3,5] y", body, weights))
    assert free(scaling, "v") == free(scaling, "o2") == 8
    assert free(scaling, "q") == 0
    assert "product of two activations" in why_fixed(scaling, "q")


def test_gated_units_scale_the_linear_half():
    body = "g = MatMul (x, wg) s = Sigmoid (g) h = Mul (g, s) u = MatMul (x, wu) m = Mul (h, u) y = MatMul (m, wd)"
    scaling = check(build("float[N,6] x", "float[N,6] y", body, {"wg": (6, 9), "wu": (6, 9), "wd": (9, 6)}))
    assert free(scaling, "u") == 9
    assert free(scaling, "g") == 0
    np.testing.assert_array_equal(scaling.labels["u"], scaling.labels["m"])


def test_copies_of_a_head_have_one_factor():
    body = "u = MatMul (x, w) n = Constant <value_ints=[0,4,1,2]> () r = Reshape (u, n) m = Constant <value_ints=[1,4,3,2]> () e = Expand (r, m) o = Constant <value_ints=[0,24]> () f = Reshape (e, o) y = MatMul (f, v)"
    assert free(check(build("float[N,6] x", "float[N,5] y", body, {"w": (6, 8), "v": (24, 5)})), "u") == 8


def test_excluded_operators_are_left_alone():
    from surgeon.engine import analyse
    from surgeon.graph.load import from_model
    from surgeon.scaling import Scaling

    found = analyse(from_model(image("t = Relu (c)")))
    scaling = Scaling(found.analysis, lambda name: name == "w1")
    assert free(scaling, "c") == 0
    assert "excluded" in why_fixed(scaling, "c")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_random_networks_can_be_scaled_at_random(seed):
    check(network(Random(seed)), seed % 1000, tolerance=5e-5)


def test_every_rule_is_tested():
    import re
    from pathlib import Path

    words = set(re.findall(r"\w+", Path(__file__).read_text(encoding="utf-8")))
    known = {rule.name for rule in SCALINGS}
    covered = {
        "Shape",
        "Size",
        "Upsample",
        "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    }
    assert sorted(known - words - covered) == []
    assert surgeon.scaling.__doc__
