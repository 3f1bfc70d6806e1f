"""Reshape and its kin, Transpose, Expand, Tile and pixel shuffles."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build, check, check_cut, drop, features, images, ints, of_size, only, reasons, solved


@pytest.mark.parametrize(
    ("split", "join"),
    [
        ((0, 0, 3, 4), (0, 0, 12)),
        ((0, 0, 3, -1), (0, 0, -1)),
        ((-1, 7, 3, 4), (-1, 7, 12)),
        ((0, 7, 3, -1), (0, -1, 12)),
    ],
)
def test_reshape_splits_features_into_heads(split, join):
    body = "r = Reshape (a, split)\nb = Reshape (r, join)"
    found = check(features(body, 12, {"split": ints(*split), "join": ints(*join)}), [3, 4])
    smaller = check_cut(found, {of_size(found, 3).id: drop(3, 1), of_size(found, 4).id: drop(4, 0)})
    assert tuple(smaller.nodes[0].inputs[1].shape) == (5, 6)


def test_reshape_with_batch_and_sequence_dynamic():
    body = """
    a = MatMul (x, w_in)
    s = Shape (x)
    n = Gather (s, i0)
    t = Gather (s, i1)
    n1 = Unsqueeze (n, zero)
    t1 = Unsqueeze (t, zero)
    split = Concat <axis=0> (n1, t1, h, d)
    r = Reshape (a, split)
    p = Transpose <perm=[0,2,1,3]> (r)
    e = Relu (p)
    q = Transpose <perm=[0,2,1,3]> (e)
    hd = Mul (h, d)
    join = Concat <axis=0> (n1, t1, hd)
    b = Reshape (q, join)
    y = MatMul (b, w_out)
    """
    weights = {"w_in": (5, 12), "w_out": (12, 3), "i0": np.int64(0), "i1": np.int64(1), "zero": ints(0)}
    model = build("float[N,T,5] x", "float[N,T,3] y", body, {**weights, "h": ints(3), "d": ints(4)})
    found = check(model, [3, 4])
    smaller = check_cut(found, {of_size(found, 3).id: drop(3, 1)})
    assert [node.op for node in smaller.nodes].count("Reshape") == 2


def test_reshape_that_folds_batch_and_heads_together():
    """``[N, T, h*d] -> [N*h, T, d]``, as fairseq and BLOOM do."""
    body = """
    a = MatMul (x, w_in)
    s = Shape (x)
    n = Slice (s, zero, one)
    t = Slice (s, one, two)
    first = Concat <axis=0> (n, t, h, d)
    r = Reshape (a, first)
    p = Transpose <perm=[0,2,1,3]> (r)
    nh = Mul (n, h)
    folded = Concat <axis=0> (nh, t, d)
    f = Reshape (p, folded)
    e = Relu (f)
    back = Concat <axis=0> (n, h, t, d)
    u = Reshape (e, back)
    v = Transpose <perm=[0,2,1,3]> (u)
    hd = Mul (h, d)
    join = Concat <axis=0> (n, t, hd)
    b = Reshape (v, join)
    y = MatMul (b, w_out)
    """
    weights = {"w_in": (5, 12), "w_out": (12, 3), "zero": ints(0), "one": ints(1), "two": ints(2)}
    check(build("float[N,T,5] x", "float[N,T,3] y", body, {**weights, "h": ints(3), "d": ints(4)}), [3, 4])


def test_reshape_with_allowzero():
    body = "r = Reshape <allowzero=1> (a, split)\nb = Reshape <allowzero=1> (r, join)"
    check(features(body, 12, {"split": ints(-1, 7, 3, 4), "join": ints(-1, 7, 12)}), [3, 4])


def test_reshape_whose_blocks_do_not_line_up_pins_only_its_block():
    """``[7, 12] -> [4, 21]`` mixes positions and channels; the channels behind it stay free."""
    model = build(
        "float[1,7,5] x",
        "float[1,4,3] y",
        "a = MatMul (x, w1)\nr = Reshape (a, odd)\nm = MatMul (r, w2)\ny = MatMul (m, w3)",
        {"w1": (5, 12), "odd": ints(1, 4, 21), "w2": (21, 10), "w3": (10, 3)},
    )
    found = check(model, [10])
    assert "12: Reshape" in reasons(found)


def test_reshape_of_a_constant_weight():
    check(
        features("m = Reshape (w, shape)\nb = MatMul (a, m)", 10, {"w": (120,), "shape": ints(12, 10)}),
        [10, 12],
    )


@pytest.mark.parametrize("axis", [1, -3, 2])
def test_flatten(axis):
    model = build(
        "float[N,5,4,2] x",
        "float[M,3] y",
        f"a = Conv (x, w_in)\nf = Flatten <axis={axis}> (a)\ny = Gemm (f, w)",
        {"w_in": (12, 5, 1, 1), "w": (12 * 8 if axis != 2 else 8, 3)},
    )
    if axis == 2:  # channels become rows of the output
        assert solved(model).groups == []
        return
    found = check(model, [12])
    smaller = check_cut(found, {found.groups[0].id: drop(12, 2, 3)})
    assert tuple(only(smaller, "Gemm").inputs[1].shape) == (80, 3)


@pytest.mark.parametrize("axes", [(3, 4), (-1, -2)])
def test_squeeze_and_unsqueeze(axes):
    body = f"u = Unsqueeze <axes=[3,-1]> (a)\nb = Squeeze <axes={list(axes)}> (u)"
    check(features(body, 12, opset=11), [12])
    weights = {"new": ints(3, -1), "old": ints(*axes)}
    check(features("u = Unsqueeze (a, new)\nb = Squeeze (u, old)", 12, weights), [12])


@pytest.mark.parametrize("opset", [11, 13])
def test_squeeze_of_all_ones_keeps_an_axis_that_is_cut_down_to_one(opset):
    model = build(
        "float[2,5,1,1] x",
        "float[2,3] y",
        "a = Conv (x, w_in)\nb = Squeeze (a)\ny = MatMul (b, w_out)",
        {"w_in": (12, 5, 1, 1), "w_out": (12, 3)},
        opset=opset,
    )
    found = check(model, [12])
    squeeze = only(check_cut(found, {found.groups[0].id: drop(12, *range(11))}), "Squeeze")
    assert (squeeze.attrs["axes"] if opset == 11 else squeeze.inputs[1].values.tolist()) == [2, 3]
    squeeze = only(check_cut(found, {found.groups[0].id: drop(12, *range(10))}), "Squeeze")
    assert len(squeeze.inputs) == 1
    assert "axes" not in squeeze.attrs


def test_transpose():
    check(features("t = Transpose <perm=[2,0,1]> (a)\nb = Transpose <perm=[1,2,0]> (t)", 12), [12])
    check(features("t = Transpose (a)\nr = Relu (t)\nb = Transpose (r)", 12), [12])


def test_expand_repeats_are_new_positions():
    """Grouped-query attention: ``kv`` heads are repeated ``rep`` times."""
    body = """
    r = Reshape (a, split)
    u = Unsqueeze (r, three)
    e = Expand (u, wide)
    b = Reshape (e, join)
    """
    weights = {
        "split": ints(0, 0, 3, 4),
        "three": ints(3),
        "wide": ints(1, 1, 3, 2, 4),
        "join": ints(0, 0, 24),
    }
    found = check(features(body, 24, weights), [2, 3, 4])
    smaller = check_cut(found, {of_size(found, 3).id: drop(3, 0), of_size(found, 4).id: drop(4, 0)})
    assert only(smaller, "Expand").inputs[1].values.tolist() == [1, 1, 2, 2, 3]


def test_expand_of_a_vector_over_the_batch():
    """A class token: ``[1, 1, C]`` expanded over a dynamic batch and joined to the patches."""
    body = """
    s = Shape (a)
    n = Slice (s, zero, one)
    shape = Concat <axis=0> (n, minus, minus)
    t = Expand (token, shape)
    b = Concat <axis=1> (t, a)
    """
    weights = {"zero": ints(0), "one": ints(1), "minus": ints(1), "token": (1, 1, 12)}
    model = build(
        "float[N,7,5] x",
        "float[N,8,3] y",
        f"a = MatMul (x, w_in)\n{body}\ny = MatMul (b, w_out)",
        {"w_in": (5, 12), **weights, "w_out": (12, 3)},
    )
    check(model, [12])


def test_expand_to_the_shape_of_another_tensor():
    body = "c = MatMul (x, w_side)\np = ReduceMean <axes=[1]> (a)\ns = Shape (c)\nb = Expand (p, s)"
    check(features(body, 12, {"w_side": (5, 12)}, opset=17))


def test_tile_repeats_the_channels_as_a_whole():
    found = check(features("b = Tile (a, repeats)", 24, {"repeats": ints(1, 1, 2)}), [2, 12])
    smaller = check_cut(found, {of_size(found, 2).id: drop(2, 0)})
    assert only(smaller, "Tile").inputs[1].values.tolist() == [1, 1, 1]


def test_tile_of_other_axes_leaves_the_channels_free():
    check(images("b = Tile (a, repeats)", 12, {"repeats": ints(1, 1, 2, 3)}), [12])


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode):
    found = check(images(f'b = DepthToSpace <blocksize=2, mode="{mode}"> (a)', 3), [3])
    smaller = check_cut(found, {found.groups[0].id: drop(3, 1)})
    kept = np.arange(12).reshape(4, 3)[:, [0, 2]] if mode == "DCR" else np.arange(12).reshape(3, 4)[[0, 2]]
    whole = found.analysis.graph.nodes[0].inputs[0:2][1].values
    np.testing.assert_array_equal(smaller.nodes[0].inputs[1].values, whole[kept.ravel()])


def test_space_to_depth():
    found = check(images("b = SpaceToDepth <blocksize=2> (a)", 48), [12])
    assert "pixel block" in reasons(found)


def test_pixel_shuffle_written_with_reshape_and_transpose():
    body = """
    r = Reshape (a, six)
    t = Transpose <perm=[0,1,4,2,5,3]> (r)
    b = Reshape (t, four)
    """
    weights = {"six": ints(0, 3, 2, 2, 8, 6), "four": ints(0, 3, 16, 12)}
    check(images(body, 3, weights), [3])


def test_window_partition_pins_no_channels():
    body = """
    r = Reshape (a, six)
    t = Transpose <perm=[0,2,4,1,3,5]> (r)
    w = Reshape (t, windows)
    l = Relu (w)
    u = Reshape (l, back)
    v = Transpose <perm=[0,3,1,4,2,5]> (u)
    b = Reshape (v, four)
    """
    weights = {
        "six": ints(0, 12, 2, 4, 2, 3),
        "windows": ints(-1, 12, 4, 3),
        "back": ints(-1, 2, 2, 12, 4, 3),
        "four": ints(-1, 12, 8, 6),
    }
    check(images(body, 12, weights), [12])
