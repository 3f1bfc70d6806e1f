"""Packed weights lose columns and whole blocks; experts lose hidden units."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build, check, check_cut, drop, of_size, only, reasons, solved

MS = {"com.microsoft": 1}
OPS = "com.microsoft."


def packed(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def features(middle: str, result: int, weights, *, channels: int):
    text = f"a = MatMul (x, w_in)\n{middle}\ny = MatMul (b, w_out)"
    every = {"w_in": (5, channels), **weights, "w_out": (result, 3)}
    return build("float[2,3,5] x", "float[2,3,3] y", text, every, domains=MS)


def n_bits(columns: int, rows: int, bits: int, inputs: str = "", extra=None, *, flat=False):
    blocks = -(-rows // 16)
    middle = f"b = {OPS}MatMulNBits <N={columns}, K={rows}, bits={bits}, block_size=16> (a, q, s{inputs})"
    weights = {
        "q": packed(columns, blocks, 2 * bits),
        "s": (columns * blocks,) if flat else (columns, blocks),
        **(extra or {}),
    }
    return features(middle, columns, weights, channels=rows)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("flat", [False, True])
def test_columns_and_blocks_of_rows(bits, flat):
    found = check(n_bits(10, 64, bits, flat=flat), [4, 10])
    smaller = check_cut(found, {of_size(found, 10).id: drop(10, 1, 2), of_size(found, 4).id: drop(4, 3)})
    node = only(smaller, "MatMulNBits")
    assert (node.attrs["N"], node.attrs["K"]) == (8, 48)
    assert tuple(node.inputs[1].shape) == (8, 3, 2 * bits)
    assert tuple(node.inputs[2].shape) == ((24,) if flat else (8, 3))


def test_a_bias():
    check(n_bits(10, 64, 4, ", , , v", {"v": (10,)}), [4, 10])


@pytest.mark.parametrize(("blocks", "groups"), [(4, [2, 10]), (3, [10])])
def test_zero_points_share_bytes(blocks, groups):
    """Two of them a byte: blocks go in pairs, and an odd number of them stays."""
    extra = {"z": packed(10, -(-blocks // 2), seed=1)}
    check(n_bits(10, 16 * blocks, 4, ", z", extra), groups)


def test_zero_points_of_the_type_of_the_input():
    check(n_bits(10, 64, 4, ", z", {"z": (10, 4)}), [4, 10])


def test_a_last_block_that_is_not_full():
    found = check(n_bits(10, 40, 4), [10])
    assert "quantization block" in reasons(found)


def test_two_in_a_row_tie_columns_to_blocks():
    middle = f"""
    h = {OPS}MatMulNBits <N=64, K=32, bits=4, block_size=16> (a, q, s)
    r = Relu (h)
    b = {OPS}MatMulNBits <N=10, K=64, bits=4, block_size=16> (r, q2, s2)
    """
    weights = {"q": packed(64, 2, 8), "s": (64, 2), "q2": packed(10, 4, 8, seed=1), "s2": (10, 4)}
    found = check(features(middle, 10, weights, channels=32), [2, 4, 10])
    assert found.cost.evaluate().macs == 6 // 2 * (5 * 32 + 32 * 64 + 64 * 10 + 10 * 3) * 2


def test_blocks_across_rows_stay():
    middle = f"b = {OPS}MatMulBnb4 <N=10, K=64, block_size=16, quant_type=1> (a, q, s)"
    found = solved(features(middle, 10, {"q": packed(320), "s": (40,)}, channels=64))
    assert found.groups == []
    assert found.cost.evaluate().macs == 6 * (5 * 64 + 64 * 10 + 10 * 3)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zero_points", [False, True])
def test_rows_of_a_packed_table(bits, zero_points):
    inputs = ", z" if zero_points else ""
    body = f"""
    h = {OPS}GatherBlockQuantized <bits={bits}, block_size=16, quantize_axis=1> (q, ids, s{inputs})
    y = MatMul (h, w_out)
    z1 = Add (y, x)
    """
    weights = {
        "q": packed(9, 64 * bits // 8),
        "s": (9, 4),
        "ids": np.int64([[0, 3, 8]]),
        "w_out": (64, 3),
        "z": packed(9, 4 * bits // 8, seed=1),
    }
    groups = [] if zero_points and bits == 4 else [4]
    check(build("float[1,3,3] x", "float[1,3,3] z1", body, weights, domains=MS), groups)


ROUTED = "p = Reshape (r, rows)\nr = MatMul (x, w_r)"


def experts(options: str, weights: dict, inputs: str, *, hidden: int = 12, op: str = "MoE"):
    body = f"""
    a = MatMul (x, w_in)
    r = MatMul (x, w_r)
    p = Reshape (r, rows)
    b = {OPS}{op} <{options}> (a, p, {inputs})
    y = MatMul (b, w_out)
    """
    every = {
        "w_in": (5, hidden),
        "w_r": (5, 4),
        "rows": np.int64([-1, 4]),
        **weights,
        "w_out": (hidden, 3),
    }
    return build("float[2,3,5] x", "float[2,3,3] y", body, every, domains=MS)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "identity"])
@pytest.mark.parametrize("bias", [True, False])
def test_hidden_units_of_experts(activation, bias):
    weights = {"w1": (4, 10, 12), "w2": (4, 12, 10)}
    weights |= {"b1": (4, 10), "b2": (4, 12)} if bias else {}
    inputs = "w1, b1, w2, b2" if bias else "w1, , w2"
    options = f'k=2, activation_type="{activation}"'
    found = check(experts(options, weights, inputs), [4, 10, 12], structural=[4])
    assert {group.size: group.kind for group in found.groups} == {4: "expert", 10: "hidden", 12: "unit"}
    assert found.cost.evaluate().macs == 6 * (5 * 12 + 5 * 4 + 2 * 2 * 10 * 12 + 12 * 3)


def test_gates_next_to_their_units():
    weights = {"w1": (4, 20, 12), "b1": (4, 20), "w2": (4, 12, 10)}
    options = 'k=1, activation_type="swiglu", swiglu_fusion=1'
    found = check(experts(options, weights, "w1, b1, w2"), [4, 10, 12], structural=[4])
    smaller = check_cut(found, {of_size(found, 10).id: drop(10, 4)})
    assert tuple(only(smaller, "MoE").inputs[2].shape) == (4, 18, 12)


def test_experts_go_when_asked_for():
    weights = {"w1": (4, 10, 12), "w2": (4, 12, 10)}
    found = solved(experts("k=3", weights, "w1, , w2"))
    smaller, _ = found.cut({of_size(found, 4).id: drop(4, 1, 3)})
    node = only(smaller, "MoE")
    assert node.attrs["k"] == 2
    assert tuple(node.inputs[2].shape) == (2, 10, 12)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [0, 16])
def test_packed_experts_lose_whole_bytes_or_blocks(bits, block):
    per_byte = 8 // bits
    weights = {
        "w1": packed(4, 64, 32 // per_byte),
        "s1": (4, 64, 2) if block else (4, 64),
        "w2": packed(4, 32, 64 // per_byte, seed=1),
        "s2": (4, 32, 4) if block else (4, 32),
    }
    options = f'k=2, activation_type="silu", expert_weight_bits={bits}'
    options += f", block_size={block}" if block else ""
    model = experts(options, weights, "w1, s1, , w2, s2", hidden=32, op="QMoE")
    units = 64 // (block or per_byte)
    check(model, sorted([4, units]), structural=[4])
