"""Sizes that two probes agree on by chance do not become constants."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import surgeon
from surgeon.graph.canonical import canonicalize
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.shapes import infer

# What is made of the length n between two convolutions: primes are all odd, and larger than small numbers.
UNSTEADY = {
    "padded to even": "m = Mod (n, two)  z = Concat <axis = 0> (none, m)  p = Pad (r, z)",
    "padded to a multiple": "m = Div (n, two)  k = Mul (m, two)  d = Sub (n, k)  z = Concat <axis = 0> (none, d)  p = Pad (r, z)",
    "a sign": "d = Sub (n, four)  m = Sign (d)  f = Cast <to = 1> (m)  p = Mul (r, f)",
    "a limit": "m = Min (n, four)  f = Cast <to = 1> (m)  p = Mul (r, f)",
    "a part of it": "a = Slice (x, zero, four, last)  t = Shape (a)  k = Gather <axis = 0> (t, last)  f = Cast <to = 1> (k)  p = Mul (r, f)",
}


def _model(parse, body):
    random = np.random.default_rng(0)
    return parse(
        "net (float[B,4,N] x) => (float[B,6,M] y) { s = Shape (x)  n = Gather <axis = 0> (s, last)"
        " c = Conv <pads = [1, 1]> (x, w1)  r = Relu (c) " + body + " y = Conv <pads = [1, 1]> (p, w2) }",
        zero=np.array([0]),
        two=np.array([2]),
        four=np.array([4]),
        last=np.array([2]),
        none=np.zeros(5, np.int64),
        w1=random.standard_normal((16, 4, 3)).astype(np.float32),
        w2=random.standard_normal((6, 16, 3)).astype(np.float32),
    )


@pytest.mark.parametrize("body", UNSTEADY.values(), ids=list(UNSTEADY))
def test_the_canonical_form_computes_the_same_at_other_sizes(parse, run, body) -> None:
    model = _model(parse, body)
    graph = from_model(model)
    canonicalize(graph, infer(graph))
    for length in (1, 2, 3, 4, 5, 13, 64):
        feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, length)).astype(np.float32)}
        np.testing.assert_array_equal(run(to_model(graph), **feeds)[0], run(model, **feeds)[0])


@pytest.mark.parametrize("body", UNSTEADY.values(), ids=list(UNSTEADY))
def test_such_models_are_cut(parse, run, tmp_path, body) -> None:
    model = _model(parse, body)
    onnx.save(model, tmp_path / "model.onnx")
    passes = ["prune{macs=0.6}"]
    cut = to_model(surgeon.run(tmp_path / "model.onnx", passes=passes).graph)
    smaller = next(tensor for tensor in cut.graph.initializer if tensor.name.startswith("w1"))
    assert smaller.dims[0] < 16
    for length in (1, 2, 3, 4, 5, 13, 64):
        feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, length)).astype(np.float32)}
        assert run(cut, **feeds)[0].shape == run(model, **feeds)[0].shape
