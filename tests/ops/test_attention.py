"""Attention and rotary positions: heads and the dimensions of a head shrink, the scale of the scores stays."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build, check, check_cut, drop, of_size, only, reasons, solved

PROJECTED = "q = MatMul (x, wq)\nk = MatMul (x, wk)\nv = MatMul (x, wv)\n"


def weights(queries: int, shared: int, dim: int, value_dim: int) -> dict:
    return {
        "wq": (5, queries * dim),
        "wk": (5, shared * dim),
        "wv": (5, shared * value_dim),
        "w_out": (queries * value_dim, 3),
    }


def model(
    body: str, *, queries=4, shared=4, dim=6, value_dim=5, extra=None, opset=23, inputs="float[N,7,5] x"
):
    """Three projections of ``x``, ``body`` that makes ``b`` of them, and a projection of ``b``."""
    return build(
        inputs,
        "float[N,7,3] y",
        f"{PROJECTED}{body}\ny = MatMul (b, w_out)",
        {**weights(queries, shared, dim, value_dim), **(extra or {})},
        opset=opset,
    )


@pytest.mark.parametrize("opset", [23, 24])
def test_heads_and_both_dimensions_of_a_head_are_groups(opset):
    found = check(model("b = Attention <q_num_heads=4, kv_num_heads=4> (q, k, v)", opset=opset), [4, 5, 6])
    assert {group.size: group.kind for group in found.groups} == {4: "head", 5: "head_dim", 6: "head_dim"}
    node = only(check_cut(found, {of_size(found, 4).id: drop(4, 1)}), "Attention")
    assert (node.attrs["q_num_heads"], node.attrs["kv_num_heads"]) == (3, 3)
    assert "scale" not in node.attrs
    node = only(check_cut(found, {of_size(found, 6).id: drop(6, 1, 2)}), "Attention")
    assert node.attrs["scale"] == pytest.approx(6**-0.5)


def test_a_scale_of_its_own_stays():
    found = check(model("b = Attention <q_num_heads=4, kv_num_heads=4, scale=0.7> (q, k, v)"), [4, 5, 6])
    node = only(check_cut(found, {of_size(found, 6).id: drop(6, 1, 2)}), "Attention")
    assert node.attrs["scale"] == pytest.approx(0.7)


def test_queries_share_heads():
    """Six heads of queries are two shared heads times three; both factors shrink."""
    body = "b = Attention <q_num_heads=6, kv_num_heads=2, is_causal=1> (q, k, v)"
    found = check(model(body, queries=6, shared=2), [2, 3, 5, 6])
    node = only(check_cut(found, {of_size(found, 3).id: drop(3, 1)}), "Attention")
    assert (node.attrs["q_num_heads"], node.attrs["kv_num_heads"]) == (4, 2)
    node = only(check_cut(found, {of_size(found, 2).id: drop(2, 0)}), "Attention")
    assert (node.attrs["q_num_heads"], node.attrs["kv_num_heads"]) == (3, 1)


def test_one_head_of_keys_for_all_queries():
    check(model("b = Attention <q_num_heads=4, kv_num_heads=1> (q, k, v)", shared=1), [4, 5, 6])


SPLIT = """
q4 = Reshape (q, heads)
qt = Transpose <perm=[0,2,1,3]> (q4)
k4 = Reshape (k, shared)
kt = Transpose <perm=[0,2,1,3]> (k4)
v4 = Reshape (v, shared)
vt = Transpose <perm=[0,2,1,3]> (v4)
"""
JOIN = "at = Transpose <perm=[0,2,1,3]> (a)\nb = Reshape (at, join)"
SHAPES = {"heads": np.int64([0, 0, 4, -1]), "shared": np.int64([0, 0, 2, -1]), "join": np.int64([0, 0, -1])}


def test_heads_on_an_axis_of_their_own():
    body = f"{SPLIT}a = Attention (qt, kt, vt)\n{JOIN}"
    # two shared heads, two queries for each
    check(model(body, shared=2, extra=SHAPES), [2, 2, 5, 6])


def test_a_mask_per_head_shrinks_along():
    extra = {"m": np.random.default_rng(0).uniform(-1, 1, (1, 4, 7, 7)).astype(np.float32)}
    found = check(model("b = Attention <q_num_heads=4, kv_num_heads=4> (q, k, v, m)", extra=extra), [4, 5, 6])
    smaller = check_cut(found, {of_size(found, 4).id: drop(4, 3)})
    assert tuple(only(smaller, "Attention").inputs[3].shape) == (1, 3, 7, 7)


@pytest.mark.parametrize("shape", [(7, 7), (1, 7, 7), (1, 1, 7, 7)])
def test_masks_that_broadcast(shape):
    extra = {"m": np.ones(shape, bool)}
    check(model("b = Attention <q_num_heads=4, kv_num_heads=4> (q, k, v, m)", extra=extra), [4, 5, 6])


def test_a_cache_that_the_model_is_given_pins_what_it_holds():
    body = "b, k1, v1, s = Attention <q_num_heads=4, kv_num_heads=2> (q, k, v, , pk, pv)"
    inputs = "float[N,7,5] x, float[N,2,P,6] pk, float[N,2,P,5] pv"
    found = check(model(body, shared=2, inputs=inputs), [2])
    assert "2: pk: graph input" in reasons(found)
    node = only(check_cut(found, {found.groups[0].id: drop(2, 0)}), "Attention")
    assert (node.attrs["q_num_heads"], node.attrs["kv_num_heads"]) == (2, 2)


def test_multiply_accumulates():
    found = solved(model("b = Attention <q_num_heads=6, kv_num_heads=2> (q, k, v)", queries=6, shared=2))
    linear = 7 * 5 * (36 + 12 + 10) + 7 * 30 * 3
    assert found.cost.evaluate().macs == linear + 6 * 7 * 7 * (6 + 5)


ANGLES = {"c": (9, 3), "s": (9, 3), "p": np.arange(7)[None] + np.int64([[1]])}
ROTATED = """
r = RotaryEmbedding <interleaved={interleaved}, num_heads=4{partial}> (q, c, s, p)
t = RotaryEmbedding <interleaved={interleaved}, num_heads=4{partial}> (k, c, s, p)
b = Attention <q_num_heads=4, kv_num_heads=4> (r, t, v)
"""


@pytest.mark.parametrize("interleaved", [0, 1])
def test_pairs_that_rotate_go_together(interleaved):
    body = ROTATED.format(interleaved=interleaved, partial="")
    found = check(model(body, extra=ANGLES, inputs="float[1,7,5] x"), [3, 4, 5])
    smaller = check_cut(found, {of_size(found, 3).id: drop(3, 1), of_size(found, 4).id: drop(4, 0)})
    rotary = next(node for node in smaller.nodes if node.op == "RotaryEmbedding")
    assert rotary.attrs["num_heads"] == 3
    assert [tuple(tensor.shape) for tensor in rotary.inputs[1:3]] == [(9, 2), (9, 2)]
    assert only(smaller, "Attention").attrs["scale"] == pytest.approx(6**-0.5)


def test_only_a_part_of_each_head_rotates():
    body = ROTATED.format(interleaved=0, partial=", rotary_embedding_dim=6")
    found = check(model(body, dim=8, extra=ANGLES, inputs="float[1,7,5] x"), [2, 3, 4, 5])
    smaller = check_cut(found, {of_size(found, 3).id: drop(3, 1), of_size(found, 2).id: drop(2, 0)})
    rotary = next(node for node in smaller.nodes if node.op == "RotaryEmbedding")
    assert rotary.attrs["rotary_embedding_dim"] == 4


def test_angles_given_for_each_position():
    body = f"{SPLIT}r = RotaryEmbedding (qt, c, s)\nt = RotaryEmbedding (kt, c, s)\na = Attention (r, t, vt)\n{JOIN}"
    extra = {**SHAPES, "c": (1, 7, 3), "s": (1, 7, 3)}
    check(model(body, shared=2, extra=extra, inputs="float[1,7,5] x"), [2, 2, 3, 5])
