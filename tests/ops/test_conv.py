"""Convolutions: plain, grouped, depthwise and transposed, in one, two and three dimensions."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build, check, check_cut, drop, images, of_size, only, reasons, solved


def test_conv_frees_both_sides():
    model = images("b = Conv <pads=[1,1,1,1]> (a, w, v)", 10, {"w": (10, 12, 3, 3), "v": (10,)})
    found = check(model, [10, 12])
    assert {group.kind for group in found.groups} == {"channel"}
    assert of_size(found, 12).consumers != of_size(found, 10).consumers
    assert "kernel taps" in reasons(found)
    assert "spatial extent" in reasons(found)


@pytest.mark.parametrize(
    ("spatial", "kernel", "attributes"),
    [
        ((20,), (3,), "strides=[2], dilations=[2]"),
        ((9, 9), (3, 5), "pads=[1,0,2,0], strides=[2,1]"),
        ((6, 5, 7), (3, 1, 2), 'auto_pad="SAME_UPPER"'),
    ],
)
def test_conv_in_any_number_of_dimensions(spatial, kernel, attributes):
    weights = {"w": (10, 12, *kernel), "v": (10,)}
    check(images(f"b = Conv <{attributes}> (a, w, v)", 10, weights, spatial=spatial), [10, 12])


def test_conv_without_bias():
    check(images("b = Conv (a, w)", 10, {"w": (10, 12, 1, 1)}), [10, 12])


def test_grouped_conv_has_three_atoms():
    model = images("b = Conv <group=3> (a, w, v)", 15, {"w": (15, 4, 3, 3), "v": (15,)})
    found = check(model, [3, 4, 5])
    smaller = check_cut(found, {of_size(found, 3).id: drop(3, 1), of_size(found, 4).id: drop(4, 0, 2)})
    conv = smaller.nodes[1]
    assert conv.attrs["group"] == 2
    assert conv.inputs[1].shape == (10, 2, 3, 3)


def test_depthwise_conv_keeps_input_and_output_together():
    model = images("b = Conv <group=12> (a, w, v)", 12, {"w": (12, 1, 3, 3), "v": (12,)})
    found = check(model, [12])
    smaller = check_cut(found, {found.groups[0].id: drop(12, 0, 1, 11)})
    assert smaller.nodes[1].attrs["group"] == 9


def test_depthwise_conv_with_a_multiplier():
    model = images("b = Conv <group=12> (a, w, v)", 24, {"w": (24, 1, 3, 3), "v": (24,)})
    check(model, [2, 12])


def test_shuffled_grouped_convs_share_atoms():
    body = """
    g1 = Conv <group=3> (a, w1)
    s1 = Reshape (g1, split)
    s2 = Transpose <perm=[0,2,1,3,4]> (s1)
    s3 = Reshape (s2, join)
    b = Conv <group=3> (s3, w2)
    """
    weights = {
        "w1": (12, 4, 1, 1),
        "w2": (12, 4, 1, 1),
        "split": np.array([0, 3, 4, 8, 6]),
        "join": np.array([0, 12, 8, 6]),
    }
    check(images(body, 12, weights))


@pytest.mark.parametrize("group", [1, 2, 12])
@pytest.mark.parametrize(("spatial", "taps"), [((7,), (3,)), ((5, 4), (2, 3)), ((3, 4, 2), (2, 2, 2))])
def test_conv_transpose(group, spatial, taps):
    model = images(
        f"b = ConvTranspose <group={group}, strides={[2] * len(taps)}> (a, w, v)",
        5 * group,
        {"w": (12, 5, *taps), "v": (5 * group,)},
        spatial=spatial,
    )
    check(model, [5] + [size for size in (group, 12 // group) if size > 1])


def test_conv_transpose_rewrites_its_group():
    model = images("b = ConvTranspose <group=4> (a, w)", 20, {"w": (12, 5, 2, 2)})
    found = solved(model)
    smaller = check_cut(found, {of_size(found, 4).id: drop(4, 0), of_size(found, 5).id: drop(5, 1, 2)})
    transposed = only(smaller, "ConvTranspose")
    assert transposed.attrs["group"] == 3
    assert transposed.inputs[1].shape == (9, 3, 2, 2)


def test_a_conv_whose_weight_is_computed_from_a_constant():
    body = """
    t = Transpose <perm=[3,2,0,1]> (w)
    b = Conv (a, t)
    """
    check(images(body, 10, {"w": (3, 3, 12, 10)}), [10, 12])


def test_one_weight_used_twice_ties_both_uses():
    body = """
    c = Conv (a, w)
    d = Relu (c)
    b = Conv (d, w)
    """
    check(images(body, 12, {"w": (12, 12, 1, 1)}), [12])


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize(
    ("attributes", "passes"), [("group=1", True), ("strides=[1], dilations=[3]", True), ("pads=[1,0]", False)]
)
def test_positions_that_are_computed_apart_can_be_cut(kind, attributes, passes):
    """A product along the tokens, written as a convolution of width 1, as in a gated MLP."""
    length = 13 if passes else 12 if kind == "ConvTranspose" else 14
    model = build(
        "float[N,7,5] x",
        "float[N,7,3] y",
        f"a = MatMul (x, w1)  b = {kind} <{attributes}> (a, w2, v)  y = MatMul (b, w3)",
        {"w1": (5, 13), "w2": (7, 7, 1), "v": (7,), "w3": (length, 3)},
    )
    found = solved(model)
    assert ("spatial extent" in reasons(found)) != passes
    check(model, [13] if passes else [])


def test_an_output_shape_that_is_written_down_is_kept():
    weights = {"w1": (5, 13), "w2": (7, 7, 1), "w3": (13, 3)}
    body = "a = MatMul (x, w1)  b = ConvTranspose <output_shape=[13]> (a, w2)  y = MatMul (b, w3)"
    check(build("float[N,7,5] x", "float[N,7,3] y", body, weights), [])


def test_two_axes_of_a_convolution_may_differ():
    weights = {"w1": (5, 9), "w": (4, 6, 3, 1), "w3": (9, 3)}
    body = "a = MatMul (x, w1)  b = Conv <pads=[1,0,1,0]> (a, w)  y = MatMul (b, w3)"
    check(build("float[N,6,8,5] x", "float[N,4,8,3] y", body, weights), [9])
