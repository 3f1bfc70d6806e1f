"""Channel groups: what belongs together, how it is called, what makes it inexact, and what pins the rest."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build, check, check_cut, drop, features, images, ints, of_size, solved

from surgeon.groups import find_pinned, products_of

RESIDUAL = """
c1 = Conv <pads=[1,1,1,1]> (a, w1, v1)
r1 = Relu (c1)
c2 = Conv <pads=[1,1,1,1]> (r1, w2)
b = Add (a, c2)
"""
WEIGHTS = {"w1": (10, 12, 3, 3), "v1": (10,), "w2": (12, 10, 3, 3)}


def test_groups_of_a_residual_block():
    found = solved(images(RESIDUAL, 12, WEIGHTS))
    inner, stream = of_size(found, 10), of_size(found, 12)
    assert inner.producers == ["c1"]
    assert inner.consumers == ["c2"]
    assert stream.producers == ["a", "c2"]
    assert stream.consumers == ["c1", "y"]
    assert set(inner.members) == {("w1", 0), ("v1", 0), ("c1", 1), ("r1", 1), ("w2", 1)}
    assert {"w_in", "b_in", "w2", "w1", "w_out"} <= {name for name, _ in stream.members}


def test_ids_name_a_weight_axis_and_are_stable():
    first, second = (solved(images(RESIDUAL, 12, WEIGHTS)) for _ in range(2))
    assert [group.id for group in first.groups] == [group.id for group in second.groups] == ["w_in:0", "w1:0"]


def test_ids_are_unique_where_one_axis_holds_several_groups():
    found = solved(
        features("r = Reshape (a, s)\nb = Reshape (r, j)", 12, {"s": ints(0, 0, 3, 4), "j": ints(0, 0, -1)})
    )
    assert [group.id for group in found.groups] == ["w_in:1", "w_in:1#2"]


def test_kinds_of_convolutions():
    found = solved(images("b = Conv <group=3> (a, w)", 15, {"w": (15, 4, 1, 1)}))
    assert {group.size: group.kind for group in found.groups} == dict.fromkeys((3, 4, 5), "channel")


def test_kinds_of_linear_layers():
    assert {group.kind for group in solved(features("b = MatMul (a, w)", 10, {"w": (12, 10)})).groups} == {
        "unit"
    }


def test_products_list_the_slowest_factor_first():
    found = solved(
        features("r = Reshape (a, s)\nb = Reshape (r, j)", 12, {"s": ints(0, 0, 3, 4), "j": ints(0, 0, -1)})
    )
    (levels,) = products_of(found.analysis)
    assert [[atom.size for atom in level] for level in levels] == [[3], [4]]


def test_atoms_of_size_one_and_constants_nobody_uses_are_no_groups():
    found = solved(features("b = MatMul (a, w)", 10, {"w": (1, 10)}, channels=1))
    assert [group.size for group in found.groups] == [10]


def test_everything_that_is_pinned_has_a_reason_and_members():
    found = solved(images(RESIDUAL, 12, WEIGHTS))
    for pinned in found.pinned:
        assert pinned.size >= 2
        assert str(pinned.reason)
        assert pinned.members
    texts = {f"{pinned.size}: {pinned.reason}" for pinned in find_pinned(found.analysis)}
    assert {"5: x: graph input", "3: y: graph output", "3: Conv c1: kernel taps"} <= texts


def test_an_inner_tensor_that_is_an_output_as_well_pins_the_inside():
    model = build(
        "float[N,5] x",
        "float[N,3] y, float[N,12] a",
        "a = MatMul (x, w1)\nb = MatMul (a, w2)\ny = MatMul (b, w3)",
        {"w1": (5, 12), "w2": (12, 10), "w3": (10, 3)},
    )
    check(model, [10])


def test_an_output_of_the_same_size_pins_nothing_else():
    model = build(
        "float[N,5] x",
        "float[N,3] y, float[N,12] z",
        "a = MatMul (x, w1)\nx2 = MatMul (x, w2)\nz = Relu (x2)\ny = MatMul (a, w3)",
        {"w1": (5, 12), "w2": (5, 12), "w3": (12, 3)},
    )
    found = check(model, [12])
    assert found.groups[0].id == "w1:1"


def test_heads_are_told_from_their_dimensions():
    body = """
    r = Reshape (a, split)
    h = Transpose <perm=[0,2,1,3]> (r)
    k = Transpose <perm=[0,2,3,1]> (r)
    s = MatMul (h, k)
    o = MatMul (s, h)
    t = Transpose <perm=[0,2,1,3]> (o)
    b = Reshape (t, join)
    """
    found = check(features(body, 12, {"split": ints(0, 0, 3, 4), "join": ints(0, 0, 12)}))
    assert {group.size: group.kind for group in found.groups} == {3: "head", 4: "head_dim"}


def attention_of(feature_map: str, bias: bool = False):
    """Linear attention: a feature map of queries and keys, and their product without a softmax."""
    body = f"""
    q0 = MatMul (x, wq)
    k0 = MatMul (x, wk)
    {"q1 = Add (q0, shared)" if bias else "q1 = Identity (q0)"}
    {"k1 = Add (k0, shared)" if bias else "k1 = Identity (k0)"}
    q = {feature_map} (q1)
    k = {feature_map} (k1)
    kt = Transpose <perm=[0,2,1]> (k)
    s = MatMul (q, kt)
    v0 = MatMul (x, wv)
    {"v = Add (v0, shared)" if bias else "v = Identity (v0)"}
    o = MatMul (s, v)
    y = MatMul (o, wo)
    """
    weights = {"wq": (5, 12), "wk": (5, 12), "wv": (5, 12), "wo": (12, 3)}
    return build("float[N,7,5] x", "float[N,7,3] y", body, {**weights, **({"shared": (12,)} if bias else {})})


def test_a_product_of_activations_is_exact_where_one_of_them_vanishes():
    check(attention_of("Relu"), [12, 12])


def test_a_product_of_activations_that_masking_leaves_nonzero_is_structural():
    found = check(attention_of("Sigmoid"), [12, 12], structural=[12])
    assert ["what is removed is not zero there" in (group.structural or "") for group in found.groups] == [
        True,
        False,
    ]


def test_a_bias_shared_with_another_layer_is_masked_only_where_both_are_cut():
    """The product of queries and keys is not exact then: the plan speaks of one bias in the file."""
    found = check(attention_of("Relu", bias=True), [12, 12], structural=[12])
    inexact = next(group for group in found.groups if group.structural)
    assert "MatMul s" in inexact.structural


def test_cutting_one_group_leaves_the_others_whole():
    found = solved(images(RESIDUAL, 12, WEIGHTS))
    smaller = check_cut(found, {of_size(found, 10).id: drop(10, 0)})
    filters = [tuple(node.inputs[1].shape) for node in smaller.nodes if node.op == "Conv"]
    assert filters == [(12, 5, 1, 1), (9, 12, 3, 3), (12, 9, 3, 3), (3, 12, 1, 1)]


def test_ceiling_is_what_one_index_of_every_group_costs():
    found = solved(features("b = MatMul (a, w)", 10, {"w": (12, 10)}))
    assert found.ceiling("params") == pytest.approx((5 + 1 + 3) / (5 * 12 + 12 * 10 + 10 * 3))
    assert found.cost.evaluate().params == 5 * 12 + 12 * 10 + 10 * 3


def test_costs_are_those_of_the_cut_model():
    found = solved(images(RESIDUAL, 12, WEIGHTS))
    kept = {group.id: drop(group.size, 0, 1, 2) for group in found.groups}
    smaller, _ = found.cut(kept)
    sizes = {group.atom: float(kept[group.id].sum()) for group in found.groups}
    expected = sum(
        int(np.prod(t.shape))
        for node in smaller.nodes
        for t in node.inputs
        if hasattr(t, "values") and t.shape
    )
    assert found.cost.evaluate(sizes).params == expected
