"""Joining and picking positions: Concat, Split, Slice, Gather, TopK and their kin."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build, check, check_cut, drop, features, images, ints, of_size, only, reasons, solved


def test_concat_keeps_its_parts_apart():
    body = "c = MatMul (x, w_side)\nb = Concat <axis=-1> (a, c)"
    found = check(features(body, 20, {"w_side": (5, 8)}), [8, 12])
    smaller = check_cut(found, {of_size(found, 8).id: drop(8, 1, 2)})
    assert tuple(smaller.nodes[-1].inputs[1].shape) == (18, 3)


def test_concat_of_the_same_tensor_twice_is_one_group():
    found = check(features("b = Concat <axis=2> (a, a)", 24), [12])
    smaller = check_cut(found, {found.groups[0].id: drop(12, 0)})
    whole = found.analysis.graph.nodes[-1].inputs[1].values
    np.testing.assert_array_equal(smaller.nodes[-1].inputs[1].values, np.delete(whole, [0, 12], axis=0))


def test_concat_with_a_constant():
    model = build(
        "float[2,7,5] x",
        "float[2,8,3] y",
        "a = MatMul (x, w_in)\nb = Concat <axis=1> (token, a)\ny = MatMul (b, w_out)",
        {"w_in": (5, 12), "token": (2, 1, 12), "w_out": (12, 3)},
    )
    check(model, [12])


def test_concat_ties_all_other_axes():
    body = "c = MatMul (x, w_side)\nb = Concat <axis=1> (a, c)"
    found = check(
        build(
            "float[N,7,5] x",
            "float[N,14,3] y",
            f"a = MatMul (x, w_in)\n{body}\ny = MatMul (b, w_out)",
            {"w_in": (5, 12), "w_side": (5, 12), "w_out": (12, 3)},
        ),
        [12],
    )
    assert len(found.groups[0].producers) == 2


def test_a_dense_block():
    body = """
    c1 = Conv (a, w1)
    d1 = Concat <axis=1> (a, c1)
    r1 = Relu (d1)
    c2 = Conv (r1, w2)
    b = Concat <axis=1> (d1, c2)
    """
    check(images(body, 20, {"w1": (4, 12, 1, 1), "w2": (4, 16, 1, 1)}), [4, 4, 12])


@pytest.mark.parametrize("opset", [7, 11, 13, 18])
def test_split_is_the_inverse_of_concat(opset):
    sizes = "<axis=-1, split=[5,7]> (a)" if opset < 13 else "<axis=-1> (a, sizes)"
    if opset == 7:
        sizes = sizes.replace("-1", "2")
    body = f"p, q = Split {sizes}\nr = Relu (p)\nb = Concat <axis=2> (q, r)"
    found = check(features(body, 12, {} if opset < 13 else {"sizes": ints(5, 7)}, opset=opset), [5, 7])
    smaller = check_cut(found, {of_size(found, 5).id: drop(5, 0), of_size(found, 7).id: drop(7, 1, 2)})
    node = only(smaller, "Split")
    assert (node.attrs["split"] if opset < 13 else node.inputs[1].values.tolist()) == [4, 5]


@pytest.mark.parametrize(("opset", "attributes"), [(11, ""), (13, ""), (18, ", num_outputs=3")])
def test_split_into_equal_parts(opset, attributes):
    body = f"p, q, r = Split <axis=2{attributes}> (a)\nb = Concat <axis=2> (q, r, p)"
    check(features(body, 12, opset=opset), [4, 4, 4])


def test_split_whose_last_part_is_smaller():
    body = "p, q, r = Split <axis=2, num_outputs=3> (a)\nb = Concat <axis=2> (q, r, p)"
    found = check(features(body, 11, channels=11), [3, 4, 4])
    split = only(check_cut(found, {of_size(found, 3).id: drop(3, 0)}), "Split")
    assert "num_outputs" not in split.attrs
    assert split.inputs[1].values.tolist() == [4, 4, 2]


def test_split_of_fused_queries_keys_and_values():
    """Multiplying two halves ties them (a gated linear unit)."""
    body = "p, q = Split <axis=2> (a, sizes)\ng = Sigmoid (q)\nb = Mul (p, g)"
    found = check(features(body, 6, {"sizes": ints(6, 6)}), [6])
    smaller = check_cut(found, {found.groups[0].id: drop(6, 2)})
    assert only(smaller, "Split").inputs[1].values.tolist() == [5, 5]


def test_cross_stage_partial_block():
    """YOLO's C2f: split in two, one half runs on, everything is joined."""
    body = """
    p, q = Split <axis=1> (a, sizes)
    c1 = Conv <pads=[1,1,1,1]> (q, w1)
    r1 = Relu (c1)
    s1 = Add (q, r1)
    b = Concat <axis=1> (p, q, s1)
    """
    check(images(body, 18, {"sizes": ints(6, 6), "w1": (6, 6, 3, 3)}), [6, 6])


@pytest.mark.parametrize(
    ("start", "end", "left"), [(0, 4, 4), (4, 12, 8), (-4, 2**63 - 1, 4), (2, -2, 8), (-100, 5, 5)]
)
@pytest.mark.parametrize("opset", [9, 13])
def test_slice_is_a_part_of_its_axis(start, end, left, opset):
    if opset == 9:
        start = max(start, -12)  # onnx infers no shape beyond that
        model = features(f"b = Slice <axes=[2], starts=[{start}], ends=[{end}]> (a)", left, opset=9)
    else:
        weights = {"starts": ints(start), "ends": ints(end), "axes": ints(-1)}
        model = features("b = Slice (a, starts, ends, axes)", left, weights)
    found = check(model)
    assert left in [group.size for group in found.groups]


def test_slices_and_concat_of_rotary_embeddings_tie_the_halves():
    body = """
    p = Slice (a, zero, half, two)
    q = Slice (a, half, end, two)
    n = Neg (q)
    r = Concat <axis=2> (n, p)
    c = Mul (a, cosine)
    s = Mul (r, sine)
    b = Add (c, s)
    """
    weights = {
        "zero": ints(0),
        "half": ints(6),
        "end": ints(2**31),
        "two": ints(2),
        "cosine": (7, 12),
        "sine": (7, 12),
    }
    found = check(features(body, 12, weights), [6])
    smaller = check_cut(found, {found.groups[0].id: drop(6, 0, 3)})
    bounds = [[t.values.tolist() for t in node.inputs[1:3]] for node in smaller.nodes if node.op == "Slice"]
    assert bounds == [[[0], [4]], [[4], [8]]]


@pytest.mark.parametrize(("step", "left"), [(2, 6), (3, 4), (-1, 12), (-2, 6), (5, 3)])
def test_slice_with_a_step_becomes_a_gather(step, left):
    end = 2**63 - 1 if step > 0 else -(2**63) + 1
    weights = {"starts": ints(0 if step > 0 else -1), "ends": ints(end), "axes": ints(2), "steps": ints(step)}
    found = check(features("b = Slice (a, starts, ends, axes, steps)", left, weights), [12])
    smaller = check_cut(found, {found.groups[0].id: drop(12, 1)})
    assert {node.op for node in smaller.nodes} == {"MatMul", "Gather"}


def test_strided_halves_are_joined_again():
    """Swin's patch merging slices space, interleaved rotary slices channels."""
    body = """
    p = Slice (a, zero, end, two, by2)
    q = Slice (a, one, end, two, by2)
    b = Concat <axis=2> (q, p)
    """
    weights = {"zero": ints(0), "one": ints(1), "end": ints(2**31), "two": ints(2), "by2": ints(2)}
    check(features(body, 12, weights), [12])


def test_slice_of_several_axes():
    weights = {"starts": ints(1, 2), "ends": ints(6, 9), "axes": ints(2, 1)}
    model = build(
        "float[N,7,5] x",
        "float[N,5,3] y",
        "a = MatMul (x, w_in)\nb = Slice (a, starts, ends, axes)\ny = MatMul (b, w_out)",
        {"w_in": (5, 12), **weights, "w_out": (5, 3)},
    )
    found = check(model)
    assert 5 in [group.size for group in found.groups]
    assert "sliced" in reasons(found)


def test_slice_with_bounds_computed_from_a_shape():
    body = """
    s = Shape (a)
    c = Gather (s, two)
    h = Div (c, two)
    p = Slice (a, zero, h, two)
    q = Slice (a, h, c, two)
    b = Mul (p, q)
    """
    weights = {"zero": ints(0), "two": ints(2)}
    check(features(body, 6, weights), [6])


def test_slice_with_bounds_known_only_when_the_model_runs():
    body = "s = ReduceMax <axes=[0,1,2], keepdims=0> (x)\nn = Cast <to=7> (s)\nm = Unsqueeze (n, zero)\nb = Slice (a, zero, m, two)"
    model = build(
        "float[N,7,5] x",
        "float[N,7,c] b",
        f"a = MatMul (x, w_in)\n{body}",
        {"w_in": (5, 12), "zero": ints(0), "two": ints(2)},
        opset=17,
    )
    found = solved(model)
    assert found.groups == []
    assert "sliced at positions computed while the model runs" in reasons(found)


@pytest.mark.parametrize(
    "indices",
    [(3, 1, 2), (-1, 0, -12), (4, 5, 6, 7), (2, 2, 7, 2), tuple(range(11, -1, -1)), tuple(range(12))],
)
def test_gather_of_channels(indices):
    found = check(features("b = Gather <axis=2> (a, i)", len(indices), {"i": ints(*indices)}))
    assert sum(group.size for group in found.groups) in (12, 4 + 4 + 4)


def test_gather_renumbers_its_indices():
    found = solved(features("b = Gather <axis=-1> (a, i)", 4, {"i": ints(-1, 3, 0, 3)}))
    (group,) = found.groups
    smaller = check_cut(found, {group.id: drop(12, 3, 5)})
    gather = only(smaller, "Gather")
    assert gather.inputs[1].values.tolist() == [9, 0]
    assert tuple(smaller.nodes[-1].inputs[1].shape) == (2, 3)


def test_a_selection_is_never_left_empty():
    """All indices that a Gather picks could be removed: one stays."""
    found = solved(features("b = Gather <axis=2> (a, i)", 2, {"i": ints(3, 7)}))
    smaller = check_cut(found, {found.groups[0].id: drop(12, 3, 7)})
    assert tuple(smaller.nodes[-1].inputs[1].shape) == (1, 3)


def test_gather_by_a_scalar_drops_the_axis():
    """Picking the class token, or one of three stacked projections."""
    check(
        build(
            "float[N,7,5] x",
            "float[N,3] y",
            "a = MatMul (x, w_in)\nb = Gather <axis=1> (a, first)\ny = MatMul (b, w_out)",
            {"w_in": (5, 12), "first": np.int64(0), "w_out": (12, 3)},
        ),
        [12],
    )


def test_unbound_queries_keys_and_values():
    body = """
    r = Reshape (a, split)
    t = Transpose <perm=[2,0,1,3]> (r)
    q = Gather <axis=0> (t, i0)
    k = Gather <axis=0> (t, i1)
    v = Gather <axis=0> (t, i2)
    m = Mul (q, k)
    b = Add (m, v)
    """
    weights = {"split": ints(0, 0, 3, 4), "i0": np.int64(0), "i1": np.int64(1), "i2": np.int64(2)}
    check(features(body, 4, weights), [4])


def test_gather_of_an_embedding_table():
    model = build(
        "int64[N,T] ids",
        "float[N,T,3] y",
        "a = Gather (table, ids)\ny = MatMul (a, w_out)",
        {"table": (50, 12), "w_out": (12, 3)},
    )
    found = check(model, [12])
    assert "50: Gather a: looked up by index" in reasons(found)


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_positions_of_extremes_pin_their_axis(op, keepdims):
    pick = f"i = {op} <axis=-1, keepdims={keepdims}> (a)\nf = Cast <to=1> (i)"
    grow = "g = Mul (f, w)" if keepdims else "u = Unsqueeze (f, minus)\ng = Mul (u, w)"
    weights = {"w": (12,), **({} if keepdims else {"minus": ints(-1)})}
    found = solved(features(f"{pick}\n{grow}\nb = Add (g, a)", 12, weights))
    assert found.groups == []
    assert "position of the extreme" in reasons(found)
    free = features(f"i = {op} <axis=1, keepdims=1> (a)\nf = Cast <to=1> (i)\nb = Add (f, a)", 12)
    check(free, [12])


def test_top_k_pins_its_axis_only():
    found = solved(features("v, i = TopK <axis=-1> (a, k)\nb = Relu (v)", 4, {"k": ints(4)}))
    assert "12: TopK v: sorted" in reasons(found)
    assert found.groups == []
    check(
        build(
            "float[N,7,5] x",
            "float[N,2,3] y",
            "a = MatMul (x, w_in)\nb, i = TopK <axis=1> (a, k)\ny = MatMul (b, w_out)",
            {"w_in": (5, 12), "k": ints(2), "w_out": (12, 3)},
        ),
        [12],
    )


@pytest.mark.parametrize(("op", "opset"), [("CumSum", 14), ("CumProd", 26)])
def test_running_totals(op, opset):
    if op == "CumProd":
        found = solved(features(f"b = {op} (a, along)", 12, {"along": np.int64(1)}, opset=opset))
        assert [group.size for group in found.groups] == [12]  # onnxruntime has no kernel to compare with
        return
    check(features(f"b = {op} (a, along)", 12, {"along": np.int64(1)}, opset=opset), [12])
    found = solved(features(f"b = {op} (a, along)", 12, {"along": np.int64(-1)}, opset=opset))
    assert found.groups == []
    assert "cumulative" in reasons(found)


def test_trilu_pins_the_last_two_axes():
    found = solved(features("b = Trilu (a)", 12))
    assert found.groups == []
    assert "triangle" in reasons(found)
    check(
        build(
            "float[N,7,5] x",
            "float[N,6,7] y",
            """
            a = MatMul (x, w_in)
            t = Reshape (a, split)
            h = Transpose <perm=[0,2,1,3]> (t)
            m = MatMul (h, w)
            u = Trilu (m)
            r = Einsum <equation="nhij,hc->nci"> (u, w_out)
            y = Relu (r)
            """,
            {"w_in": (5, 12), "split": ints(0, 0, 3, 4), "w": (4, 9), "w_out": (3, 6)},
        ),
        [3, 4],
    )
