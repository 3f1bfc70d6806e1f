"""Attention as onnxruntime fuses it: projection and heads in one operator, packed inputs, shared heads, caches."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build, check, check_cut, drop, of_size, only, reasons, solved

MS = {"com.microsoft": 1}
OPS = "com.microsoft."
PROJECTED = "q = MatMul (x, wq)\nk = MatMul (x, wk)\nv = MatMul (x, wv)\n"


def model(body: str, extra: dict, *, result: int, inputs="float[N,7,5] x", opset=21):
    """``body`` makes ``b`` ``[N, 7, result]`` of ``x``, followed by a projection."""
    text = f"{body}\ny = MatMul (b, w_out)"
    return build(inputs, "float[N,7,3] y", text, {**extra, "w_out": (result, 3)}, opset=opset, domains=MS)


def projected(body: str, *, queries=4, shared=4, dim=6, value_dim=5, extra=None, inputs="float[N,7,5] x"):
    weights = {"wq": (5, queries * dim), "wk": (5, shared * dim), "wv": (5, shared * value_dim)}
    return model(
        f"{PROJECTED}{body}", {**weights, **(extra or {})}, result=queries * value_dim, inputs=inputs
    )


def fused(sizes: str = "", *, dim=6, value_dim=6, options="", inputs="", result="b", extra=None):
    columns = 3 * (2 * dim + value_dim)
    body = f"a = MatMul (x, w_in)\n{result} = {OPS}Attention <num_heads=3{sizes}{options}> (a, w, v{inputs})"
    weights = {"w_in": (5, 10), "w": (10, columns), "v": (columns,), **(extra or {})}
    return model(body, weights, result=3 * value_dim)


def test_fused_projection():
    found = check(fused(), [3, 6, 6, 10])
    kinds = sorted((group.size, group.kind) for group in found.groups)
    assert kinds == [(3, "head"), (6, "head_dim"), (6, "head_dim"), (10, "unit")]
    smaller = check_cut(found, {of_size(found, 3).id: drop(3, 1)})
    node = only(smaller, "Attention")
    assert node.attrs == {"num_heads": 2}
    assert [tuple(tensor.shape) for tensor in node.inputs[1:]] == [(10, 36), (36,)]


def test_fused_projection_with_values_of_another_size():
    found = check(fused(", qkv_hidden_sizes=[18, 18, 12]", value_dim=4), [3, 4, 6, 10])
    smaller = check_cut(found, {of_size(found, 6).id: drop(6, 1), of_size(found, 3).id: drop(3, 2)})
    node = only(smaller, "Attention")
    assert node.attrs["qkv_hidden_sizes"] == [10, 10, 8]
    assert node.attrs["scale"] == pytest.approx(6**-0.5)


def test_hidden_sizes_are_written_when_they_come_to_differ():
    found = solved(fused())
    (values,) = [g for g in found.groups if g.size == 6 and ("w_out", 0) in g.members]
    node = only(check_cut(found, {values.id: drop(6, 1)}), "Attention")
    assert node.attrs["qkv_hidden_sizes"] == [18, 18, 15]


def test_a_cache_ties_values_to_keys():
    body = f"a = MatMul (x, w_in)\nb, present = {OPS}Attention <num_heads=3> (a, w, v, , past)"
    weights = {"w_in": (5, 10), "w": (10, 54), "v": (54,), "past": (2, 2, 3, 4, 6), "w_out": (18, 3)}
    body += "\ny = MatMul (b, w_out)"
    check(build("float[2,7,5] x", "float[2,7,3] y", body, weights, domains=MS), [3, 6, 10])


def test_attention_bias_per_head():
    extra = {"bias": np.random.default_rng(0).uniform(-1, 1, (1, 3, 7, 7)).astype(np.float32)}
    check(fused(inputs=", , , bias", extra=extra), [3, 6, 6, 10])


def test_a_mask_of_lengths():
    extra = {"m": np.int32([5])}
    body = f"a = MatMul (x, w_in)\nb = {OPS}Attention <num_heads=3, unidirectional=1> (a, w, v, m)"
    weights = {"w_in": (5, 10), "w": (10, 54), "v": (54,), **extra, "w_out": (18, 3)}
    check(
        build("float[1,7,5] x", "float[1,7,3] y", f"{body}\ny = MatMul (b, w_out)", weights, domains=MS),
        [3, 6, 6, 10],
    )


def test_queries_keys_and_values_apart():
    found = check(projected(f"b = {OPS}MultiHeadAttention <num_heads=4> (q, k, v)"), [4, 5, 6])
    node = only(
        check_cut(found, {of_size(found, 4).id: drop(4, 1), of_size(found, 6).id: drop(6, 5)}),
        "MultiHeadAttention",
    )
    assert node.attrs == {"num_heads": 3, "scale": pytest.approx(6**-0.5)}


def test_a_bias_of_all_projections():
    body = f"b = {OPS}MultiHeadAttention <num_heads=4> (q, k, v, bias)"
    found = check(projected(body, extra={"bias": (4 * 17,)}), [4, 5, 6])
    smaller = check_cut(found, {of_size(found, 5).id: drop(5, 1)})
    assert tuple(only(smaller, "MultiHeadAttention").inputs[3].shape) == (4 * 16,)


def test_keys_and_values_with_their_heads_apart():
    body = f"""
    k4 = Reshape (k, heads)
    kt = Transpose <perm=[0,2,1,3]> (k4)
    v4 = Reshape (v, heads)
    vt = Transpose <perm=[0,2,1,3]> (v4)
    b = {OPS}MultiHeadAttention <num_heads=4> (q, kt, vt)
    """
    check(projected(body, value_dim=6, extra={"heads": np.int64([0, 0, 4, -1])}), [4, 6])


def test_a_cache_that_the_model_is_given_pins_heads():
    body = f"b, k1, v1 = {OPS}MultiHeadAttention <num_heads=4> (q, k, v, , , , pk, pv)"
    inputs = "float[N,7,5] x, float[N,4,P,6] pk, float[N,4,P,6] pv"
    assert solved(projected(body, value_dim=6, inputs=inputs)).groups == []


def test_one_position_at_a_time():
    body = f"b = {OPS}DecoderMaskedMultiHeadAttention <num_heads=4> (q, k, v, , , , , , , , bias)"
    extra = {"wq": (5, 24), "wk": (5, 24), "wv": (5, 24), "bias": (72,), "w_out": (24, 3)}
    text = f"{PROJECTED}{body}\ny = MatMul (b, w_out)"
    found = solved(build("float[N,1,5] x", "float[N,1,3] y", text, extra, domains=MS))
    assert sorted(group.size for group in found.groups) == [4, 6, 6]


SHARED = "GroupQueryAttention <num_heads=6, kv_num_heads=2{}>"
LENGTHS = {"seqlens": np.int32([6]), "total": np.int32(7)}


def test_heads_shared_by_queries():
    """The kernel reads heads in blocks of 8, so of 16 there are two to choose from."""
    body = f"b = {OPS}{SHARED.format('')} (q, k, v, , , seqlens, total)"
    kwargs = {"queries": 6, "shared": 2, "value_dim": 16, "inputs": "float[1,7,5] x"}
    found = check(projected(body, dim=16, extra=LENGTHS, **kwargs), [2, 2, 3])
    three = of_size(found, 3)
    node = only(check_cut(found, {three.id: drop(3, 1)}), "GroupQueryAttention")
    assert (node.attrs["num_heads"], node.attrs["kv_num_heads"]) == (4, 2)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_heads_shared_by_queries_that_rotate(interleaved):
    options = f", do_rotary=1, rotary_interleaved={interleaved}"
    body = f"b = {OPS}{SHARED.format(options)} (q, k, v, , , seqlens, total, c, s)"
    extra = {**LENGTHS, "c": (9, 16), "s": (9, 16)}
    kwargs = {"queries": 6, "shared": 2, "value_dim": 32, "inputs": "float[1,7,5] x"}
    found = check(projected(body, dim=32, extra=extra, **kwargs), [2, 2, 3])
    blocks = next(group for group in found.groups if ("c", 1) in group.members)
    node = only(check_cut(found, {blocks.id: drop(2, 0)}), "GroupQueryAttention")
    assert node.attrs["scale"] == pytest.approx(32**-0.5)
    assert [tuple(tensor.shape) for tensor in node.inputs[7:]] == [(9, 8), (9, 8)]


def test_queries_keys_and_values_packed():
    body = f"q = MatMul (x, wq)\nb = {OPS}{SHARED.format('')} (q, , , , , seqlens, total)"
    extra = {"wq": (5, 10 * 8), **LENGTHS}
    found = check(model(body, extra, result=48, inputs="float[1,7,5] x"), [2, 3])
    smaller = check_cut(found, {of_size(found, 2).id: drop(2, 1)})
    assert tuple(only(smaller, "GroupQueryAttention").inputs[0].inputs[0].inputs[1].shape) == (5, 40)


def test_shared_heads_with_a_given_cache_lose_queries():
    body = f"b, k1, v1 = {OPS}{SHARED.format('')} (q, k, v, pk, pv, seqlens, total)"
    inputs = "float[1,7,5] x, float[1,2,P,8] pk, float[1,2,P,8] pv"
    found = solved(projected(body, queries=6, shared=2, dim=8, value_dim=8, extra=LENGTHS, inputs=inputs))
    assert [group.size for group in found.groups] == [3]
    assert "pk: graph input" in reasons(found)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("counted", [True, False])
def test_rotary_positions(interleaved, counted):
    options = ", num_heads=4, rotary_embedding_dim=6" if counted else ""
    rotary = f"{OPS}RotaryEmbedding <interleaved={interleaved}{options}>"
    body = f"r = {rotary} (q, p, c, s)\nt = {rotary} (k, p, c, s)\n"
    body += f"b = {OPS}MultiHeadAttention <num_heads=4> (r, t, v)"
    extra = {"c": (9, 3), "s": (9, 3), "p": np.int64([1])}
    found = check(projected(body, extra=extra), [3, 4, 5])
    smaller = check_cut(found, {of_size(found, 4).id: drop(4, 2), of_size(found, 3).id: drop(3, 2)})
    rotary = next(node for node in smaller.nodes if node.op == "RotaryEmbedding")
    assert rotary.attrs.get("num_heads", 3) == 3
    assert rotary.attrs.get("rotary_embedding_dim", 4) == 4


@pytest.mark.parametrize("rule", ["linear", "gated", "delta", "gated_delta"])
def test_linear_attention(rule):
    gates = {"linear": "", "gated": ", d", "delta": ", , e", "gated_delta": ", d, e"}[rule]
    options = f'update_rule="{rule}", q_num_heads=4, kv_num_heads=4'
    body = f"""
    d0 = MatMul (x, wd)
    d1 = Abs (d0)
    d = Neg (d1)
    e0 = MatMul (x, we)
    e = Sigmoid (e0)
    b, state = {OPS}LinearAttention <{options}> (q, k, v, {gates})
    """
    found = check(projected(body, extra={"wd": (5, 4), "we": (5, 4)}), [4, 5, 6])
    node = only(check_cut(found, {of_size(found, 6).id: drop(6, 1)}), "LinearAttention")
    assert node.attrs["scale"] == pytest.approx(6**-0.5)


@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        ("PackedAttention", "(a, w, v, offset, lengths)"),
        ("PackedMultiHeadAttention", "(a, , , , offset, lengths)"),
    ],
)
def test_packed_tokens_have_the_same_algebra(op, inputs):
    """No CPU kernel reads them, so the axes are all there is to check."""
    multi = op == "PackedMultiHeadAttention"
    body = "a = MatMul (x, w_in)\n" if not multi else "a0 = MatMul (x, w_in)\na = Reshape (a0, split)\n"
    body += f"b = {OPS}{op} <num_heads=3> {inputs}\ny = MatMul (b, w_out)"
    weights = {
        "w_in": (5, 54 if multi else 10),
        "w": (10, 54),
        "v": (54,),
        "split": np.int64([-1, 3, 3, 6]),
        "offset": np.int32([[0, 1, 2, 3]]),
        "lengths": np.int32([0, 4]),
        "w_out": (18, 3),
    }
    found = solved(build("float[T,5] x", "float[T,3] y", body, weights, domains=MS))
    assert sorted(group.size for group in found.groups) == ([3, 6] if multi else [3, 6, 6, 10])
