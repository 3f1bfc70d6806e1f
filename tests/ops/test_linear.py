"""Matrix products: Gemm with both transposes, MatMul with batches and vectors, Einsum."""

from __future__ import annotations

import pytest
from ops.oracle import build, check, check_cut, drop, features, ints, of_size, reasons, solved


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [(10,), (1, 10), (1,), (), None])
def test_gemm(transposed, bias):
    model = build(
        "float[N,5] x",
        "float[N,3] y",
        f"""
        a = MatMul (x, w_in)
        b = Gemm <transB={transposed}, alpha=0.5, beta=2.0> (a, w{"" if bias is None else ", c"})
        y = MatMul (b, w_out)
        """,
        {
            "w_in": (5, 12),
            "w": (10, 12) if transposed else (12, 10),
            **({} if bias is None else {"c": bias}),
            "w_out": (10, 3),
        },
    )
    check(model, [10, 12])


def test_gemm_with_a_transposed_input():
    """The activation is ``[features, N]``."""
    model = build(
        "float[5,7] x",
        "float[7,3] y",
        "a = MatMul (w_in, x)\nb = Gemm <transA=1, transB=1> (a, w, c)\ny = MatMul (b, w_out)",
        {"w_in": (12, 5), "w": (10, 12), "c": (7, 1), "w_out": (10, 3)},
    )
    check(model, [10, 12])


def test_gemm_whose_bias_is_an_activation():
    model = build(
        "float[N,5] x",
        "float[N,3] y",
        """
        a = MatMul (x, w_in)
        c = MatMul (x, w_side)
        b = Gemm (a, w, c)
        y = MatMul (b, w_out)
        """,
        {"w_in": (5, 12), "w_side": (5, 10), "w": (12, 10), "w_out": (10, 3)},
    )
    found = check(model, [10, 12])
    assert len(of_size(found, 10).producers) == 2


def test_matmul_frees_both_sides():
    found = check(features("b = MatMul (a, w)", 10, {"w": (12, 10)}), [10, 12])
    assert {len(group.producers) for group in found.groups} == {1}
    assert {len(group.consumers) for group in found.groups} == {1}


def test_matmul_of_activations_finds_heads_and_their_dimensions():
    model = build(
        "float[N,7,6] x",
        "float[N,7,6] y",
        """
        q = MatMul (x, wq)
        k = MatMul (x, wk)
        v = MatMul (x, wv)
        q4 = Reshape (q, by_head)
        k4 = Reshape (k, by_head)
        v4 = Reshape (v, by_value_head)
        q5 = Transpose <perm=[0,2,1,3]> (q4)
        k5 = Transpose <perm=[0,2,3,1]> (k4)
        v5 = Transpose <perm=[0,2,1,3]> (v4)
        s = MatMul (q5, k5)
        p = Softmax <axis=-1> (s)
        o = MatMul (p, v5)
        o4 = Transpose <perm=[0,2,1,3]> (o)
        o3 = Reshape (o4, flat)
        y = MatMul (o3, wo)
        """,
        {
            "wq": (6, 20),
            "wk": (6, 20),
            "wv": (6, 12),
            "wo": (12, 6),
            "by_head": ints(0, 0, 4, 5),
            "by_value_head": ints(0, 0, 4, 3),
            "flat": ints(0, 0, -1),
        },
    )
    found = check(model, [3, 4, 5])
    assert {group.size: group.kind for group in found.groups} == {3: "head_dim", 4: "head", 5: "head_dim"}


def test_matmul_broadcasts_leading_axes():
    model = build(
        "float[N,7,5] x",
        "float[N,4,7,3] y",
        """
        a = MatMul (x, w_in)
        a4 = Unsqueeze (a, one)
        b = MatMul (a4, w)
        y = MatMul (b, w_out)
        """,
        {"w_in": (5, 12), "one": ints(1), "w": (4, 12, 10), "w_out": (4, 10, 3)},
    )
    check(model, [10, 12])


def test_matmul_of_batches_cuts_the_batch():
    body = """
    a2 = MatMul (x2, w_in)
    b = MatMul (a2, w)
    y = Einsum <equation="hnc,hc->n"> (b, w_out)
    """
    model = build(
        "float[1,7,5] x2", "float[7] y", body, {"w_in": (4, 5, 12), "w": (4, 12, 10), "w_out": (4, 10)}
    )
    check(model, [4, 10, 12])


def test_matmul_of_a_vector_and_a_matrix():
    body = "a = MatMul (x, w_in)\nb = MatMul (v, a)\ny = MatMul (b, w_out)"
    check(build("float[7,5] x", "float[3] y", body, {"w_in": (5, 12), "v": (7,), "w_out": (12, 3)}), [12])


def test_matmul_of_a_matrix_and_a_vector():
    body = "a = MatMul (x, w_in)\ny = MatMul (a, v)"
    check(build("float[7,5] x", "float[7] y", body, {"w_in": (5, 12), "v": (12,)}), [12])


def test_matmul_of_two_vectors():
    model = build(
        "float[5] x", "float y", "a = MatMul (x, w_in)\ny = MatMul (a, v)", {"w_in": (5, 12), "v": (12,)}
    )
    check(model, [12])


def test_matmul_with_the_weight_on_the_left():
    model = build(
        "float[5,N] x",
        "float[3,N] y",
        "a = MatMul (w_in, x)\ny = MatMul (w_out, a)",
        {"w_in": (12, 5), "w_out": (3, 12)},
    )
    check(model, [12])


@pytest.mark.parametrize(
    ("equation", "shape"),
    [
        ("btc,cd->btd", (12, 10)),
        ("...c,cd->...d", (12, 10)),
        ("... c, d c -> ... d", (10, 12)),
        ("btc,dc->btd", (10, 12)),
        ("abc,cd", (12, 10)),
        ("...i,ij", (12, 10)),
    ],
)
def test_einsum_as_a_linear_layer(equation, shape):
    check(features(f'b = Einsum <equation="{equation}"> (a, w)', 10, {"w": shape}), [10, 12])


def test_einsum_of_activations():
    model = build(
        "float[N,7,6] x",
        "float[N,7,6] y",
        """
        q = Einsum <equation="btc,chd->bthd"> (x, wq)
        k = Einsum <equation="btc,chd->bthd"> (x, wk)
        v = Einsum <equation="btc,chd->bthd"> (x, wv)
        s = Einsum <equation="bthd,bshd->bhts"> (q, k)
        p = Softmax <axis=-1> (s)
        o = Einsum <equation="bhts,bshd->bthd"> (p, v)
        y = Einsum <equation="bthd,hdc->btc"> (o, wo)
        """,
        {"wq": (6, 4, 5), "wk": (6, 4, 5), "wv": (6, 4, 3), "wo": (4, 3, 6)},
    )
    check(model, [3, 4, 5])


def test_einsum_with_one_operand_sums_and_transposes():
    model = features('s = Einsum <equation="btc->cbt"> (a)\nb = Einsum <equation="cbt->btc"> (s)', 12)
    check(model, [12])


def test_einsum_with_a_repeated_letter_is_a_barrier():
    model = build(
        "float[4,5] x",
        "float[4] y",
        'a = MatMul (x, w_in)\ny = Einsum <equation="ii->i"> (a)',
        {"w_in": (5, 4)},
    )
    found = solved(model)
    assert found.groups == []
    assert "a letter occurs twice" in reasons(found)


def test_a_cut_matmul_keeps_its_operands_in_step():
    found = solved(features("b = MatMul (a, w)", 10, {"w": (12, 10)}))
    smaller = check_cut(found, {of_size(found, 12).id: drop(12, 3)})
    assert [tuple(node.inputs[1].shape) for node in smaller.nodes] == [(5, 11), (11, 10), (10, 3)]
