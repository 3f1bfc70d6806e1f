"""Recurrent layers as two products: put through the gates, their targets are the states that onnxruntime computes."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from ops.oracle import build
from stats.products import analysed, check_view, operator, tensors, values

from surgeon.axes import normal
from surgeon.graph.copy import copy_of
from surgeon.stats.linear import contracted_coordinates, linear_views
from surgeon.stats.recurrent import GatedStateProduct, InputProduct, StateProduct
from surgeon.stats.replay import Replay
from surgeon.stats.sequences import named_sequences, rerun
from surgeon.stats.weight import is_shared

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, SAMPLES, INPUTS, HIDDEN = 5, 3, 4, 6


def model_of(kind, direction="forward", extra="", *, bias=True, initial=None, cell=True, outputs="y"):
    """A layer; ``initial`` is 'constant' or 'input'."""
    directions, rows = 2 if direction == "bidirectional" else 1, GATES[kind] * HIDDEN
    weights = {"w": (directions, rows, INPUTS), "r": (directions, rows, HIDDEN)}
    if bias:
        weights["b"] = (directions, 2 * rows)
    state = (directions, SAMPLES, HIDDEN)
    inputs = f"float[{STEPS},{SAMPLES},{INPUTS}] x"
    given = ["b" if bias else ""]
    if initial:
        given += ["", "h0"]
        if kind == "LSTM" and cell:
            given.append("c0")
            weights["c0"] = state
        if initial == "constant":
            weights["h0"] = state
        else:
            inputs += f", float[{directions},{SAMPLES},{HIDDEN}] h0"
    text = f'{outputs} = {kind} <hidden_size={HIDDEN}, direction="{direction}"{extra}> (x, w, r, {", ".join(given)})'
    results = ", ".join(f"float {name}" for name in outputs.split(", ") if name)
    return build(inputs, results, text.replace(", )", ")"), weights), weights, initial == "input"


def feeds_of(directions, with_state):
    feeds = {"x": values(STEPS, SAMPLES, INPUTS)}
    if with_state:
        feeds["h0"] = values(directions, SAMPLES, HIDDEN, seed=5)
    return feeds


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def states(kind, given, state, cell, reset_before):
    """The states of one direction ``[T, N, H]`` from pre-activations, given the state before each step of them.

    Args:
        kind: The operator.
        given: Both products ``[T, N, gates * H]``, in the direction's order.
        state: The states before each step ``[T, N, H]``.
        cell: The first cell state ``[N, H]``.
        reset_before: Whether the candidate's product saw the state after the reset gate.
    """
    w, r = (np.split(each, GATES[kind], axis=-1) for each in given)
    if kind == "RNN":
        return np.tanh(w[0] + r[0])
    if kind == "GRU":
        update, reset = sigmoid(w[0] + r[0]), sigmoid(w[1] + r[1])
        candidate = np.tanh(w[2] + (r[2] if reset_before else reset * r[2]))
        return (1 - update) * candidate + update * state
    result = []
    for t in range(len(state)):
        i, o, f, c = (w[k][t] + r[k][t] for k in range(4))
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(c)
        result.append(sigmoid(o) * np.tanh(cell))
    return np.array(result)


def reproduced(found, kind, known, cell):
    """``Y`` from the targets of both views."""
    node = operator(found, kind).node
    first, second = linear_views(operator(found, kind))
    places = np.arange(STEPS * SAMPLES)
    assert first.count(known.__getitem__) == second.count(known.__getitem__) == len(places)
    w = first.target(node, known.__getitem__, places)
    r = second.target(node, known.__getitem__, places)
    rows = second.rows(node, known.__getitem__, places)
    directions = len(w)
    if len(r) != directions:  # every gate is a group
        r = r.reshape(directions, 3, len(places), HIDDEN).transpose(0, 2, 1, 3).reshape(w.shape)
        rows = rows[::3]
    result = np.empty((STEPS, directions, SAMPLES, HIDDEN), np.float32)
    for d in range(directions):
        backwards = d == 1 or node.attrs["direction"] == "reverse"
        turn = slice(None, None, -1 if backwards else 1)
        given = [each[d].reshape(STEPS, SAMPLES, -1)[turn] for each in (w, r)]
        state = rows[d].reshape(STEPS, SAMPLES, HIDDEN)[turn]
        before = isinstance(second, GatedStateProduct)
        result[turn, d] = states(kind, given, state, cell[d], before)
    return result


@pytest.mark.parametrize("initial", [None, "constant", "input"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(
    ("kind", "extra"), [("LSTM", ""), ("GRU", ""), ("GRU", ", linear_before_reset=1"), ("RNN", "")]
)
def test_targets_through_the_gates_are_the_states(kind, extra, direction, bias, initial):
    model, _, with_state = model_of(kind, direction, extra, bias=bias, initial=initial)
    directions = 2 if direction == "bidirectional" else 1
    known = tensors(model, **feeds_of(directions, with_state))
    found = analysed(model)
    first, second = linear_views(operator(found, kind))
    assert (first.weight, second.weight) == (1, 2)
    assert type(second) is (GatedStateProduct if kind == "GRU" and not extra else StateProduct)
    assert first.reads == ("x",)
    assert set(second.reads) - {"x"} == ({"y", "h0"} if with_state else {"y"})
    for view in (first, second):
        assert (view.output, view.channel_axis) == ("", None)
        check_view(found, view, known)
        with pytest.raises(ValueError, match="no tensor holds"):
            view.results(known["y"], np.arange(1), 1)
    cell = np.zeros((directions, SAMPLES, HIDDEN))
    if kind == "LSTM" and initial:
        cell = operator(found, kind).node.inputs[6].values
    np.testing.assert_allclose(reproduced(found, kind, known, cell), known["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "extra"), [("LSTM", ""), ("GRU", ""), ("GRU", ", linear_before_reset=1"), ("RNN", "")]
)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_batches_first(kind, extra, direction):
    """onnxruntime has no kernel for layout 1: the same numbers as those of layout 0 are expected."""
    directions = 2 if direction == "bidirectional" else 1
    model, _, _ = model_of(kind, direction, extra, initial="input")
    known = tensors(model, **feeds_of(directions, with_state=True))
    turned = {
        "x": known["x"].swapaxes(0, 1),
        "h0": known["h0"].swapaxes(0, 1),
        "y": known["y"].transpose(2, 0, 1, 3),
    }
    found = analysed(model)
    places = np.arange(STEPS * SAMPLES)
    for view in linear_views(operator(found, kind)):
        node = view.op.node
        expected = [each(node, known.__getitem__, places) for each in (view.rows, view.target)]
        node.attrs["layout"] = 1
        assert view.count(turned.__getitem__) == len(places)
        results = [each(node, turned.__getitem__, places) for each in (view.rows, view.target)]
        del node.attrs["layout"]
        for result, other in zip(results, expected, strict=True):
            np.testing.assert_array_equal(result, other)


def test_a_clipped_reset_gate():
    model, _, _ = model_of("GRU", extra=", clip=0.2")
    known = tensors(model, **feeds_of(1, with_state=False))
    found = analysed(model)
    _, view = linear_views(operator(found, "GRU"))
    check_view(found, view, known)
    places = np.arange(STEPS * SAMPLES)
    first, _ = linear_views(operator(found, "GRU"))
    w, r = (each.target(view.op.node, known.__getitem__, places) for each in (first, view))
    r = r.transpose(1, 0, 2)
    w = w[0].reshape(-1, 3, HIDDEN)
    update = sigmoid(np.clip(w[:, 0] + r[:, 0], -0.2, 0.2))
    candidate = np.tanh(np.clip(w[:, 2] + r[:, 2], -0.2, 0.2))
    state = view.rows(view.op.node, known.__getitem__, places)[0]
    y = (1 - update) * candidate + update * state
    np.testing.assert_allclose(y.reshape(known["y"].shape), known["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_without_the_sequence_there_are_views_only_while_it_has_a_name(kind):
    model, _, _ = model_of(kind, outputs=", last")
    found = analysed(model)
    op = operator(found, kind)
    cut = copy_of(found.graph)
    assert linear_views(op) == []
    with named_sequences(found, cut):
        views = linear_views(op)
        name = op.node.outputs[0].name
        assert name == cut.nodes[0].outputs[0].name == "last/surgeon/sequence"
        assert found.shapes.dtypes[name] == 1
        assert [type(view) for view in views][:1] == [InputProduct]
        assert views[1].reads[0] == name
        assert views[0].bias.node == name
        feeds = feeds_of(1, with_state=False)
        replay = Replay(found.graph, found.shapes.dtypes, [feeds])
        replay.hold(name)
        replay.advance([name])
        known = {**feeds, name: replay.store.get(name, 0)}
        np.testing.assert_allclose(known[name][-1], tensors(model, **feeds)["last"], rtol=1e-5, atol=1e-6)
        for view in views:
            check_view(found, view, known)
    assert op.node.outputs[0].name == cut.nodes[0].outputs[0].name == ""
    assert linear_views(op) == []


def test_what_has_no_view():
    def of(inputs, node, **weights):
        shapes = {"w": (1, 18, INPUTS), "r": (1, 18, HIDDEN), "b": (1, 36), **weights}
        used = {name: each for name, each in shapes.items() if f"{name}" in node.split("(")[1] and each}
        return linear_views(analysed(build(f"float[5,3,4] x{inputs}", "float y", node, used)).ops[0])

    gru = f"y = GRU <hidden_size={HIDDEN}"
    assert of(", int32[3] lengths", f"{gru}> (x, w, r, b, lengths)") == []
    assert of(", float[1,36] v", f"{gru}> (x, w, r, v)") == []
    tanh = ', activations=["Tanh","Tanh"]'
    assert [type(v) for v in of("", f"{gru}{tanh}> (x, w, r, b)")] == [InputProduct]
    assert [type(v) for v in of("", f"{gru}{tanh}, linear_before_reset=1> (x, w, r, b)")] == [
        InputProduct,
        StateProduct,
    ]
    assert [type(v) for v in of(", float[1,18,4] u", f"{gru}> (x, u, r, b)", w=None)] == []
    assert [type(v) for v in of(", float[1,18,6] u", f"{gru}> (x, w, u, b)", r=None)] == [InputProduct]


@pytest.mark.parametrize(("kind", "groups"), [("LSTM", 2), ("GRU", 6), ("RNN", 2)])
def test_rows_that_belong_to_a_hidden_unit(kind, groups):
    model, _, _ = model_of(kind, "bidirectional")
    found = analysed(model)
    first, second = linear_views(operator(found, kind))
    hidden = normal(found.axes["y"][3])
    rows = contracted_coordinates(second, hidden)
    np.testing.assert_array_equal(rows, np.tile(np.arange(HIDDEN), (groups, 1)))
    assert contracted_coordinates(first, hidden) is None


@pytest.mark.parametrize(("kind", "turn"), [("LSTM", ""), ("GRU", "v = Identity (w)"), ("RNN", "")])
def test_states_for_other_weights(kind, turn):
    """The operator runs alone, with the weights it has by then, wherever they come from."""
    rows = GATES[kind] * HIDDEN
    body = (
        f"{turn} a = MatMul (x, u) y = {kind} <hidden_size={HIDDEN}> (a, {'v' if turn else 'w'}, r, , , h0)"
    )
    weights = {"u": (INPUTS, INPUTS), "w": (1, rows, INPUTS), "r": (1, rows, HIDDEN)}
    model = build(f"float[5,3,4] x, float[1,3,{HIDDEN}] h0", "float y", body, weights)
    known = tensors(model, **feeds_of(1, with_state=True))
    found = analysed(model)
    node = operator(found, kind).node
    given = {name: known[name] for name in ("a", "h0")}
    np.testing.assert_allclose(rerun(node, found.graph)(given.__getitem__), known["y"], rtol=1e-5, atol=1e-6)
    assert not is_shared(node.inputs[2])
    node.inputs[2] = gs.Constant("r", np.zeros((1, rows, HIDDEN), np.float32))
    other = build(
        f"float[5,3,4] x, float[1,3,{HIDDEN}] h0", "float y", body, {**weights, "r": node.inputs[2].values}
    )
    expected = tensors(other, **feeds_of(1, with_state=True))["y"]
    np.testing.assert_allclose(rerun(node, found.graph)(given.__getitem__), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "view"), [("LSTM", StateProduct), ("GRU", GatedStateProduct), ("RNN", StateProduct)]
)
def test_half_precision(kind, view):
    rows = GATES[kind] * HIDDEN
    shapes = {"w": (1, rows, INPUTS), "r": (1, rows, HIDDEN), "b": (1, 2 * rows)}
    weights = {name: (0.3 * values(*each)).astype(np.float16) for name, each in shapes.items()}
    body = f"y = {kind} <hidden_size={HIDDEN}> (x, w, r, b)"
    y = f"float16[{STEPS},1,{SAMPLES},{HIDDEN}] y"
    model = build(f"float16[{STEPS},{SAMPLES},{INPUTS}] x", y, body, weights)
    known = tensors(model, x=values(STEPS, SAMPLES, INPUTS).astype(np.float16))
    found = analysed(model)
    views = linear_views(operator(found, kind))
    assert [type(each) for each in views] == [InputProduct, view]
    for each in views:
        check_view(found, each, known, 2e-2)
