"""Outputs are compared relative to their variance, decisions by how many differ, and nothing hides behind an infinity."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from surgeon.stats.chunks import Chunk
from surgeon.stats.compare import Outputs, output_errors
from surgeon.stats.data import Input, from_chunks


def network(scale, *, decided=False):
    kind, last = (
        ("int64", "y = ArgMax <axis = 1, keepdims = 0> (h)") if decided else ("float", "y = Relu (h)")
    )
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float["N",3] x) => ({kind}["N"{"" if decided else ",3"}] y)
        <float[3] s = {{{", ".join(map(str, scale))}}}> {{ h = Mul (x, s) {last} }}"""
    return onnx.parser.parse_model(text)


def drawn(*sizes):
    random = np.random.default_rng(0)
    return [{"x": random.random((size, 3)).astype("f")} for size in sizes]


@pytest.mark.parametrize("sizes", [(6,), (4, 4), (5, 2)])
def test_the_error_is_relative_to_the_variance(sizes):
    feeds = drawn(*sizes)
    x = np.concatenate([each["x"] for each in feeds])
    found = Outputs.on(network((1.0, 1.0, 1.0)), feeds).divergence(network((1.0, 1.0, 0.5)), 1)
    assert found == pytest.approx(np.square(x[:, 2] / 2).sum() / np.square(x - x.mean(0)).sum(), rel=1e-5)


def test_outputs_that_are_single_numbers():
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float["N",3] x) => (float y) <float s = {FACTOR}> { h = ReduceMean <keepdims = 0> (x) y = Mul (h, s) }"""
    first, second = (onnx.parser.parse_model(text.replace("FACTOR", each)) for each in ("1.0", "0.5"))
    inputs = [Input("x", np.dtype("float32"), ("N", 3))]
    data = from_chunks("drawn", inputs, lambda: iter([Chunk(each) for each in drawn(4, 4)]), 4)
    assert output_errors(first, second, data, threads=1).mean() == pytest.approx(0.25, rel=1e-5)


def test_one_sample_and_decisions():
    feeds = drawn(1)
    x = feeds[0]["x"]
    found = Outputs.on(network((1.0, 1.0, 1.0)), feeds).divergence(network((1.0, 1.0, 0.5)), 1)
    assert found == pytest.approx(np.square(x[:, 2] / 2).sum() / np.square(x - x.mean()).sum(), rel=1e-5)
    judge = Outputs.on(network((1.0, 1.0, 1.0), decided=True), drawn(30))
    assert judge.divergence(network((1.0, 1.0, 1.0), decided=True), 1) == 0
    expected = (drawn(30)[0]["x"].argmax(1) != 2).mean()
    assert judge.divergence(network((1.0, 1.0, 9e9), decided=True), 1) == pytest.approx(expected)


def test_what_is_not_finite_is_infinitely_wrong():
    judge = Outputs.on(network((1.0, 1.0, 1.0)), drawn(4))
    assert judge.divergence(network((1.0, 1.0, "3e38")), 1) > 1e30
    other = Outputs.on(network((1.0, 1.0, 1.0)), [{"x": np.full((2, 3), 3e38, "f")}])
    assert other.divergence(network((1.0, 1.0, 2.0)), 1) == np.inf


def test_an_infinity_of_the_original_says_nothing_of_the_rest():
    feeds = drawn(6)
    x = feeds[0]["x"].copy()
    feeds[0]["x"][2, 1] = np.inf
    there = np.isfinite(feeds[0]["x"])
    mean = np.array([x[there[:, k], k].mean() for k in range(3)])
    found = Outputs.on(network((1.0, 1.0, 1.0)), feeds).divergence(network((1.0, 0.5, 1.0)), 1)
    wanted = np.square(x[there[:, 1], 1] / 2).sum() / np.square((x - mean)[there]).sum()
    assert found == pytest.approx(wanted, rel=1e-5)


def test_lists_of_other_lengths_cannot_be_compared():
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float["N",3] x) => (int64[2,"found"] y) <float[3] s = {%s}> { h = Mul (x, s) y = NonZero (h) }"""
    some, fewer = (onnx.parser.parse_model(text % scale) for scale in ("1, 1, 1", "1, 0, 1"))
    outputs = Outputs.on(some, drawn(4))
    assert outputs.divergence(some, 1) == 0
    assert outputs.divergence(fewer, 1) is None
    assert outputs.distance(fewer, 1) == np.inf
