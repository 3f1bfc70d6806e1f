"""Derivatives of LSTM, GRU and RNN."""

from __future__ import annotations

import numpy as np
import pytest
from grad.oracle import build, check

from surgeon.grad import gradient
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, SIZE, HIDDEN = 4, 2, 3, 2


def layer(
    op, attributes="", *, direction="forward", given="", lengths=None, peepholes=False, layout=0, **options
):
    """Checks one operator; ``given`` names what else it is given, of B, h and c."""
    ways, gates = 2 if direction == "bidirectional" else 1, GATES[op]
    state = (BATCH, ways, HIDDEN) if layout else (ways, BATCH, HIDDEN)
    weights = {"w": (ways, gates * HIDDEN, SIZE), "r": (ways, gates * HIDDEN, HIDDEN)}
    weights |= {"b": (ways, 2 * gates * HIDDEN)} if "B" in given else {}
    weights |= {name: state for name in "hc" if name in given}
    weights |= {"l": np.asarray(lengths, np.int32)} if lengths else {}
    weights |= {"p": (ways, 3 * HIDDEN)} if peepholes else {}
    names = ["x", *(name if name in weights else "" for name in ("w", "r", "b", "l", "h", "c", "p"))]
    names = names if op == "LSTM" else names[:6]
    outputs = "y, yh, yc" if op == "LSTM" else "y, yh"
    x, dims = ((BATCH, STEPS, SIZE), "N,S") if layout else ((STEPS, BATCH, SIZE), "S,N")
    more = f", layout={layout}" if layout else ""
    body = f'{outputs} = {op} <hidden_size={HIDDEN}, direction="{direction}"{attributes}{more}> ({",".join(names)})'
    last = f"T[{'N' if layout else ways},{ways if layout else 'N'},{HIDDEN}] yh"
    y = f"N,S,{ways},{HIDDEN}" if layout else f"S,{ways},N,{HIDDEN}"
    declared = f"T[{y}] y, {last}" + (f", {last.replace('yh', 'yc')}" if op == "LSTM" else "")
    return check(f"T[{dims},{SIZE}] x", declared, body, {"x": x}, weights, reference=False, **options)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("opset", [9, 14, 21])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_directions(op, opset, direction):
    layer(op, direction=direction, given="Bhc" if op == "LSTM" else "Bh", opset=opset)


@pytest.mark.parametrize("op", GATES)
def test_without_bias_or_first_state(op):
    layer(op)


def test_reset_before_or_after_the_product():
    layer("GRU", ", linear_before_reset=1", given="Bh")
    layer("GRU", ", linear_before_reset=1", direction="bidirectional")
    layer("GRU", ", linear_before_reset=0", given="Bh")


def test_peepholes():
    layer("LSTM", given="Bhc", peepholes=True, direction="bidirectional")


@pytest.mark.parametrize("op", GATES)
def test_sequences_of_several_lengths(op):
    layer(op, given="Bh", lengths=[4, 2], direction="bidirectional")


def test_other_activations():
    layer("RNN", ', activations=["Relu"]', given="B")
    layer(
        "LSTM", ', activations=["Sigmoid","Relu","Tanh","Sigmoid","Tanh","Tanh"]', direction="bidirectional"
    )


def test_what_is_not_written_out_is_told():
    body = "y, h = RNN <hidden_size=2, clip=1.0> (x, w, r)\nl = ReduceSum (y)"
    weights = {"w": (1, 2, 3), "r": (1, 2, 2)}
    graph = from_model(build("float[S,1,3] x", "float[1,1,1,1] l", body, weights))
    found = gradient(graph, "l", ["w", "x"])
    assert "clipped" in found.stopped["w"]


@pytest.mark.parametrize("op", GATES)
def test_like_torch(op):
    torch = pytest.importorskip("torch")
    size, steps, order = 5, 6, {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2], "RNN": [0]}[op]
    module = getattr(torch.nn, op)(SIZE, size)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    held = [getattr(module, name).detach().numpy() for name in names]
    held = [np.concatenate([np.split(each, len(order))[k] for k in order])[None] for each in held]
    weights = {"w": held[0], "r": held[1], "b": np.concatenate(held[2:], 1)}
    more = ", linear_before_reset=1" if op == "GRU" else ""
    body = f"y, h = {op} <hidden_size={size}{more}> (x, w, r, b)\ns = Sin (y)\nl = ReduceSum <keepdims=0> (s)"
    graph = from_model(build(f"float[S,N,{SIZE}] x", "float l", body, weights))
    found = gradient(graph, "l", ["x", "w", "r", "b"])
    x = torch.randn(steps, 3, SIZE, requires_grad=True)
    y, _ = module(x)
    y.sin().sum().backward()
    feeds = {"x": x.detach().numpy(), **weights}
    loss, dx, dw, dr, db = run(session(to_model(found.graph)), feeds)
    np.testing.assert_allclose(loss, y.sin().sum().item(), rtol=1e-4)
    np.testing.assert_allclose(dx, x.grad, rtol=1e-3, atol=1e-5)
    theirs = [getattr(module, name).grad.numpy() for name in names]
    theirs = [np.concatenate([np.split(each, len(order))[k] for k in order])[None] for each in theirs]
    for ours, their in zip((dw, dr, db), (*theirs[:2], np.concatenate(theirs[2:], 1)), strict=True):
        np.testing.assert_allclose(ours, their, rtol=1e-3, atol=1e-5)
