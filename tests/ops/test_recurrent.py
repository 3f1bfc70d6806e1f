"""Recurrent layers: one hidden size for gates, recurrence, both directions and all that follows."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build, check, check_cut, drop, ints, of_size, only, solved

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
HIDDEN, INPUT = 6, 5


def weights_of(
    op: str, directions: int = 1, inner: int = INPUT, suffix: str = "", hidden: int = HIDDEN
) -> dict:
    rows = GATES[op] * hidden
    return {
        f"w{suffix}": (directions, rows, inner),
        f"r{suffix}": (directions, rows, hidden),
        f"v{suffix}": (directions, 2 * rows),
    }


# ``[T, D, N, H]`` to ``[T, N, D * H]`` and a classifier
CLASSIFIER = "t = Transpose <perm=[0,2,1,3]> (h)\nf = Reshape (t, join)\ny = MatMul (f, w_out)"


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_one_layer(op, direction):
    directions = 2 if direction == "bidirectional" else 1
    extra = ", linear_before_reset=1" if op == "GRU" else ""
    model = build(
        "float[T,N,5] x",
        "float[T,N,3] y",
        f'h = {op} <hidden_size={HIDDEN}, direction="{direction}"{extra}> (x, w, r, v)\n{CLASSIFIER}',
        {**weights_of(op, directions), "join": ints(0, 0, -1), "w_out": (directions * HIDDEN, 3)},
    )
    found = check(model, [HIDDEN])
    assert found.groups[0].kind == "hidden"
    smaller = check_cut(found, {found.groups[0].id: drop(HIDDEN, 1, 4)})
    node = only(smaller, op)
    assert node.attrs["hidden_size"] == HIDDEN - 2
    assert tuple(node.inputs[2].shape) == (directions, GATES[op] * (HIDDEN - 2), HIDDEN - 2)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_without_bias_and_with_a_cuttable_input(op):
    weights = weights_of(op, 1, 7)
    del weights["v"]
    model = build(
        "float[T,N,5] x",
        "float[T,N,3] y",
        f"a = MatMul (x, w_in)\nh = {op} <hidden_size={HIDDEN}> (a, w, r)\n{CLASSIFIER}",
        {"w_in": (5, 7), **weights, "join": ints(0, 0, -1), "w_out": (HIDDEN, 3)},
    )
    check(model, [HIDDEN, 7])


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_two_stacked_bidirectional_layers(op):
    body = f"""
    h1 = {op} <hidden_size={HIDDEN}, direction="bidirectional"> (x, w1, r1, v1)
    t1 = Transpose <perm=[0,2,1,3]> (h1)
    f1 = Reshape (t1, join)
    h = {op} <hidden_size=4, direction="bidirectional"> (f1, w2, r2, v2)
    {CLASSIFIER}
    """
    weights = {
        **weights_of(op, 2, INPUT, "1"),
        **weights_of(op, 2, 2 * HIDDEN, "2", hidden=4),
        "join": ints(0, 0, -1),
        "w_out": (8, 3),
    }
    found = check(build("float[T,N,5] x", "float[T,N,3] y", body, weights), [4, HIDDEN])
    smaller = check_cut(found, {of_size(found, HIDDEN).id: drop(HIDDEN, 0), of_size(found, 4).id: drop(4, 1)})
    assert [n.attrs["hidden_size"] for n in smaller.nodes if n.op == op] == [HIDDEN - 1, 3]


@pytest.mark.parametrize(("op", "states"), [("LSTM", 2), ("GRU", 1), ("RNN", 1)])
def test_initial_states_shrink_along(op, states):
    given = ", ".join(["h0", "c0"][:states])
    outputs = "h, last" + (", cell" if states == 2 else "")
    body = f"""
    {outputs} = {op} <hidden_size={HIDDEN}> (x, w, r, v, , {given})
    s = Squeeze (last, zero)
    y = MatMul (s, w_out)
    """
    weights = {
        **weights_of(op),
        "h0": (1, 2, HIDDEN),
        **({"c0": (1, 2, HIDDEN)} if states == 2 else {}),
        "zero": ints(0),
        "w_out": (HIDDEN, 3),
    }
    found = check(build("float[4,2,5] x", "float[2,3] y", body, weights), [HIDDEN])
    smaller = check_cut(found, {found.groups[0].id: drop(HIDDEN, 0)})
    assert tuple(only(smaller, op).inputs[5].shape) == (1, 2, HIDDEN - 1)


def test_initial_states_computed_for_a_dynamic_batch():
    """What exporters write: zeros of ``[D, N, H]``, whose size is a constant in a shape program."""
    body = f"""
    s = Shape (x)
    n = Slice (s, one, two)
    shape = Concat <axis=0> (d, n, hidden)
    h0 = ConstantOfShape (shape)
    h = GRU <hidden_size={HIDDEN}> (x, w, r, v, , h0)
    {CLASSIFIER}
    """
    weights = {
        **weights_of("GRU"),
        "one": ints(1),
        "two": ints(2),
        "d": ints(1),
        "hidden": ints(HIDDEN),
        "join": ints(0, 0, -1),
        "w_out": (HIDDEN, 3),
    }
    check(build("float[T,N,5] x", "float[T,N,3] y", body, weights), [HIDDEN])


def test_lengths_of_sequences():
    weights = {
        **weights_of("LSTM"),
        "lengths": np.int32([4, 2]),
        "join": ints(0, 0, -1),
        "w_out": (HIDDEN, 3),
    }
    body = f"h = LSTM <hidden_size={HIDDEN}> (x, w, r, v, lengths)\n{CLASSIFIER}"
    check(build("float[4,2,5] x", "float[4,2,3] y", body, weights), [HIDDEN])


def test_lengths_of_sequences_may_be_an_input():
    """Made-up lengths are at most as long as the sequences, or the proof has nothing to run on."""
    body = f"h = LSTM <hidden_size={HIDDEN}> (x, w, r, v, lengths)\n{CLASSIFIER}"
    weights = {**weights_of("LSTM"), "join": ints(0, 0, -1), "w_out": (HIDDEN, 3)}
    check(build("float[T,N,5] x, int32[N] lengths", "float[T,N,3] y", body, weights), [HIDDEN])


@pytest.mark.parametrize("directions", [1, 2])
def test_peepholes_have_three_gates(directions):
    direction = "bidirectional" if directions == 2 else "forward"
    weights = {
        **weights_of("LSTM", directions),
        "p": (directions, 3 * HIDDEN),
        "join": ints(0, 0, -1),
        "w_out": (directions * HIDDEN, 3),
    }
    body = f'h = LSTM <hidden_size={HIDDEN}, direction="{direction}"> (x, w, r, v, , , , p)\n{CLASSIFIER}'
    found = check(build("float[T,N,5] x", "float[T,N,3] y", body, weights), [HIDDEN])
    smaller = check_cut(found, {found.groups[0].id: drop(HIDDEN, 3)})
    assert tuple(only(smaller, "LSTM").inputs[7].shape) == (directions, 3 * (HIDDEN - 1))


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_batch_first_layout_has_the_same_algebra(op):
    """onnxruntime runs layout 0 only, so the axes are all there is to check."""
    model = build(
        "float[N,T,5] x",
        "float[N,T,3] y",
        f"h = {op} <hidden_size={HIDDEN}, layout=1> (x, w, r, v)\nf = Reshape (h, join)\ny = MatMul (f, w_out)",
        {**weights_of(op), "join": ints(0, 0, -1), "w_out": (HIDDEN, 3)},
    )
    found = solved(model)
    (group,) = found.groups
    assert group.size == HIDDEN
    assert {("h", 3), ("w", 1), ("r", 1), ("r", 2), ("v", 1), ("w_out", 0)} <= set(group.members)
    smaller, _ = found.cut({group.id: drop(HIDDEN, 0)})
    assert only(smaller, op).attrs["hidden_size"] == HIDDEN - 1
