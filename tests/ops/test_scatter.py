"""Looking up and writing at positions: the axes that are indexed stay whole, the others pass."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build, check, check_cut, drop, features, ints, only, reasons, solved


def test_gather_elements_ties_the_indices_to_the_axes_it_does_not_look_up():
    model = build(
        "float[2,7,5] x",
        "float[2,4,3] y",
        "a = MatMul (x, w_in)\nb = GatherElements <axis=1> (a, i)\ny = MatMul (b, w_out)",
        {"w_in": (5, 12), "i": np.arange(2 * 4 * 12).reshape(2, 4, 12) % 7, "w_out": (12, 3)},
    )
    found = check(model, [12])
    smaller = check_cut(found, {found.groups[0].id: drop(12, 0)})
    assert tuple(only(smaller, "GatherElements").inputs[1].shape) == (2, 4, 11)


def test_gather_elements_along_the_channels_pins_them():
    model = build(
        "float[2,7,5] x",
        "float[2,7,4] b",
        "a = MatMul (x, w_in)\nb = GatherElements <axis=2> (a, i)",
        {"w_in": (5, 12), "i": np.arange(2 * 7 * 4).reshape(2, 7, 4) % 12},
    )
    found = solved(model)
    assert found.groups == []
    assert "looked up by index" in reasons(found)


@pytest.mark.parametrize("batch", [0, 1])
def test_gather_nd_passes_trailing_axes(batch):
    table = np.array([[[1], [3], [5]], [[0], [2], [6]]]) if batch else np.array([[0, 1], [1, 3]])
    model = build(
        "float[2,7,5] x",
        "float[2,3,3] y" if batch else "float[2,3] y",
        f"a = MatMul (x, w_in)\nb = GatherND <batch_dims={batch}> (a, i)\ny = MatMul (b, w_out)",
        {"w_in": (5, 12), "i": table, "w_out": (12, 3)},
    )
    check(model, [12])


def test_scatter_nd_passes_trailing_axes():
    """Replacing whole rows: the updates share the channels of the data."""
    model = build(
        "float[7,5] x, float[2,5] z",
        "float[7,3] y",
        "a = MatMul (x, w_in)\nu = MatMul (z, w_side)\nb = ScatterND (a, i, u)\ny = MatMul (b, w_out)",
        {"w_in": (5, 12), "w_side": (5, 12), "i": np.array([[1], [4]]), "w_out": (12, 3)},
    )
    found = check(model, [12])
    assert len(found.groups[0].producers) == 2


def test_scatter_nd_at_constant_channels_renumbers_them():
    """Overwriting channels 2 and 5 of ``[C, N]`` with two others."""
    model = build(
        "float[5,7] x",
        "float[3,7] y",
        "a = MatMul (w_in, x)\nu = MatMul (w_side, x)\nb = ScatterND (a, i, u)\ny = MatMul (w_out, b)",
        {"w_in": (12, 5), "w_side": (2, 5), "i": np.array([[2], [-7]]), "w_out": (3, 12)},
    )
    found = check(model, [12])
    smaller = check_cut(found, {found.groups[0].id: drop(12, 0, 2)})
    scatter = only(smaller, "ScatterND")
    assert scatter.inputs[1].values.tolist() == [[3]]
    assert tuple(smaller.nodes[1].inputs[0].shape) == (1, 5)


@pytest.mark.parametrize(("op", "opset"), [("ScatterElements", 16), ("Scatter", 9)])
def test_scatter_elements(op, opset):
    model = build(
        "float[2,7,5] x, float[2,4,5] z",
        "float[2,7,3] y",
        f"a = MatMul (x, w_in)\nu = MatMul (z, w_side)\nb = {op} <axis=1> (a, i, u)\ny = MatMul (b, w_out)",
        {
            "w_in": (5, 12),
            "w_side": (5, 12),
            "i": np.arange(4).reshape(1, 4, 1) + np.zeros((2, 4, 12), int),
            "w_out": (12, 3),
        },
        opset=opset,
    )
    found = check(model, [12])
    assert len(found.groups[0].producers) == 2


def test_scatter_elements_in_part_pins_what_is_covered_in_part():
    model = build(
        "float[2,7,5] x",
        "float[2,7,3] y",
        "a = MatMul (x, w_in)\nb = ScatterElements <axis=1> (a, i, u)\ny = MatMul (b, w_out)",
        {"w_in": (5, 12), "i": np.zeros((2, 1, 6), np.int64), "u": (2, 1, 6), "w_out": (12, 3)},
    )
    found = solved(model)
    assert found.groups == []
    assert "looked up in part" in reasons(found)


def test_one_hot_is_a_fixed_axis():
    model = build(
        "int64[N,7] ids",
        "float[N,7,3] y",
        "o = OneHot (ids, depth, values)\na = MatMul (o, w_in)\ny = MatMul (a, w_out)",
        {"depth": np.int64(40), "values": np.float32([0, 1]), "w_in": (40, 12), "w_out": (12, 3)},
    )
    found = check(model, [12])
    assert "classes" in reasons(found)


def test_non_zero_pins_everything():
    found = solved(features("n = NonZero (a)\nf = Cast <to=1> (n)\ns = ReduceSum (f)\nb = Add (a, s)", 12))
    assert found.groups == []
    assert "positions of what is not zero" in reasons(found)


def test_a_table_of_positions_is_looked_up_whole():
    """Relative position bias: a table ``[positions, heads]`` indexed by a constant square."""
    body = """
    r = Reshape (a, split)
    h = Transpose <perm=[0,2,1,3]> (r)
    k = Transpose <perm=[0,2,3,1]> (r)
    s = MatMul (h, k)
    bias = Gather <axis=0> (table, square)
    t = Transpose <perm=[2,0,1]> (bias)
    m = Add (s, t)
    p = Softmax <axis=-1> (m)
    o = MatMul (p, h)
    q = Transpose <perm=[0,2,1,3]> (o)
    b = Reshape (q, join)
    """
    square = np.abs(np.arange(7)[:, None] - np.arange(7)[None, :])
    weights = {"split": ints(0, 0, 3, 4), "join": ints(0, 0, 12), "table": (7, 3), "square": square}
    check(features(body, 12, weights), [3, 4])
