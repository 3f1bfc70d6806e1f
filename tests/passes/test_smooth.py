"""The pass smooth: outliers move into weights, products lose less to 8 bits, the function stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ops.oracle import build

from surgeon.errors import UsageError
from surgeon.graph.copy import copy_of
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session, with_outputs
from surgeon.passes import Context
from surgeon.pipeline import same
from surgeon.stats.compare import is_clearly_less, output_errors
from surgeon.stats.data import graph_inputs
from surgeon.stats.synthetic import synthetic, synthetic_dataset
from surgeon.verify import relative_error
from surgeon_passes.quantize import Quantize
from surgeon_passes.quantizing.trial import Step, take_steps
from surgeon_passes.smooth import Smooth

WIDTH, INNER = 16, 24


def block():
    """A pre-norm transformer block; the scale of its first norm has two outliers."""
    scale = np.ones(WIDTH, np.float32)
    scale[[3, 11]] = 60
    body = """
    h = MatMul (x, w0) n = LayerNormalization <axis=-1> (h, s1, b1)
    q = MatMul (n, wq) k = MatMul (n, wk) v = MatMul (n, wv)
    shape = Constant <value_ints=[0,0,2,8]> () q1 = Reshape (q, shape) k1 = Reshape (k, shape) v1 = Reshape (v, shape)
    q2 = Transpose <perm=[0,2,1,3]> (q1) k2 = Transpose <perm=[0,2,3,1]> (k1) v2 = Transpose <perm=[0,2,1,3]> (v1)
    a = MatMul (q2, k2) p = Softmax <axis=-1> (a) o = MatMul (p, v2) o1 = Transpose <perm=[0,2,1,3]> (o)
    flat = Constant <value_ints=[0,0,16]> () o2 = Reshape (o1, flat) o3 = MatMul (o2, wo) r = Add (h, o3)
    m = LayerNormalization <axis=-1> (r, s2, b2) u = MatMul (m, w1) g = Gelu (u) d = MatMul (g, w2) y = Add (r, d)
    """
    small = {
        name: np.random.default_rng(len(name)).standard_normal((WIDTH, WIDTH)).astype("f") * 0.02
        for name in ("wq", "wkk")
    }
    weights = {
        "w0": (5, WIDTH), "s1": scale, "b1": (WIDTH,), "s2": (WIDTH,), "b2": (WIDTH,), "wq": small["wq"],
        "wk": small["wkk"], "wv": (WIDTH, WIDTH), "wo": (WIDTH, WIDTH), "w1": (WIDTH, INNER), "w2": (INNER, WIDTH),
    }  # fmt: skip
    return build("float[N,6,5] x", f"float[N,6,{WIDTH}] y", body, weights)


def context(graph) -> Context:
    inputs = tuple(graph_inputs(graph))
    return Context(source_path=Path("m.onnx"), inputs=inputs, data=synthetic_dataset(inputs, 3, samples=48))


def outputs(graph, feeds, *names):
    runner = session(with_outputs(to_model(graph), names), optimize=False)
    return dict(zip([o.name for o in runner.get_outputs()], run(runner, feeds), strict=True))


def rounded(array, low, high):
    """Asymmetric 8 bits with one scale."""
    step = (max(high, 0) - min(low, 0)) / 255
    zero = np.round(-min(low, 0) / step)
    return (np.clip(np.round(array / step) + zero, 0, 255) - zero) * step


def product_error(x, w):
    """What 8 bits do to a product, by an independent computation: one scale for x, one per column for w."""
    grid = np.abs(w).max(axis=0) / 127
    made = rounded(x, x.min(), x.max()) @ (np.round(w / grid) * grid)
    return float(((made - x @ w) ** 2).sum() / ((x @ w) ** 2).sum())


def test_outliers_move_into_weights_and_products_lose_less():
    graph = from_model(block())
    here = context(graph)
    result = Smooth().run(copy_of(graph), here)
    feeds = synthetic(graph_inputs(graph), seed=7, batch=32)
    before, after = (outputs(each, feeds, "n", "h", "v", "o2") for each in (graph, result))
    assert relative_error([before["y"], before["h"]], [after["y"], after["h"]]) < 1e-5
    weights = [
        {t.name: t.values for node in each.nodes for t in node.inputs if hasattr(t, "values")}
        for each in (graph, result)
    ]
    for name in ("wq", "wk", "wv"):
        errors = [
            product_error(each["n"].reshape(-1, WIDTH).astype("f8"), held[name].astype("f8"))
            for each, held in zip((before, after), weights, strict=True)
        ]
        assert errors[1] < errors[0] / 3
    facts = {entry["tensor"]: entry for entry in here.record["smoothed"]}
    assert facts["n"]["error_after"] < facts["n"]["error_before"] / 3
    assert 0 < facts["n"]["alpha"] <= 1
    sizes = [np.abs(each["n"]).max(axis=(0, 1)) for each in (before, after)]
    assert sizes[1].max() / np.median(sizes[1]) < sizes[0].max() / np.median(sizes[0])


def test_alpha_is_the_paper_s_formula():
    graph = from_model(block())
    here = context(graph)
    result = Smooth(alpha=0.5).run(copy_of(graph), here)
    assert {entry["alpha"] for entry in here.record["smoothed"]} == {0.5}
    feeds = [feeds for feeds, _ in here.data]
    x = np.concatenate([outputs(graph, each, "n")["n"] for each in feeds]).reshape(-1, WIDTH)
    held = {t.name: t.values for node in graph.nodes for t in node.inputs if hasattr(t, "values")}
    size = np.abs(x).max(axis=0)
    weight = np.max([np.abs(held[name]).max(axis=1) for name in ("wq", "wk", "wv")], axis=0)
    size, weight = np.maximum(size, size.max() / 100), np.maximum(weight, weight.max() / 100)
    wanted = np.sqrt(weight) / np.sqrt(size)
    wanted /= np.exp(np.log(wanted).mean())
    new = {t.name: t.values for node in result.nodes for t in node.inputs if hasattr(t, "values")}
    np.testing.assert_allclose(new["s1"] / held["s1"], wanted, rtol=1e-3)


def test_what_is_left_alone_says_why():
    graph = from_model(block())
    here = context(graph)
    Smooth().run(copy_of(graph), here)
    reasons = {entry["tensor"]: entry["reason"] for entry in here.record["left"]}
    assert "Gelu" in reasons["u"]
    assert "product of two activations" in reasons["q"]


def test_convolutions_are_left_to_equalize():
    body = "c = Conv (x, w1) r = Relu (c) y = Conv (r, w2)"
    graph = from_model(
        build("float[N,3,4,4] x", "float[N,4,4,4] y", body, {"w1": (8, 3, 1, 1), "w2": (4, 8, 1, 1)})
    )
    here = context(graph)
    assert same(Smooth().run(copy_of(graph), here), graph)
    assert "equalize" in here.record["left"][0]["reason"]


def test_options_are_checked():
    with pytest.raises(UsageError, match=r"lie in \[0, 1\]"):
        Smooth(alpha=1.5)
    with pytest.raises(UsageError, match="at least 1"):
        Smooth(samples=0)


def test_quantize_tries_it_and_keeps_it_where_it_helps():
    graph = from_model(block())
    here = context(graph)
    Quantize(mode="static", guard=False, equalize=False).run(copy_of(graph), here)
    facts = here.record["smooth"]
    assert facts["kept"] == (facts["error"]["with"] < facts["error"]["without"])
    assert facts["kept"]
    assert "equalize" not in here.record


def test_quantize_forces_it_or_leaves_it_out():
    graph = from_model(block())
    here = context(graph)
    Quantize(mode="static", guard=False, equalize=False, smooth=True).run(copy_of(graph), here)
    assert here.record["smooth"]["kept"]
    assert "error" not in here.record["smooth"]
    here = context(graph)
    Quantize(mode="static", guard=False, equalize=False, smooth=False).run(copy_of(graph), here)
    assert "smooth" not in here.record


def test_a_step_that_makes_it_worse_is_not_kept():
    """Judged by a quantizer that punishes what has changed."""
    graph = from_model(block())
    here = context(graph)
    reference = object()
    here.reference = None

    def quantized(candidate, data):
        model = to_model(candidate)
        if not same(candidate, graph):
            for entry in model.graph.initializer:
                if entry.name == "w2":
                    entry.raw_data = bytes(len(entry.raw_data))
        return model

    result, facts = take_steps(graph, [Step(Smooth(), None, tried=True)], quantized, here, 32)
    assert result is graph
    assert not facts["smooth"]["kept"]
    assert facts["smooth"]["error"]["without"] < facts["smooth"]["error"]["with"]
    assert here.record == {}
    assert reference is not None


def test_errors_of_outputs_are_relative():
    model = build("float[N,4] x", "float[N,4] y", "y = Mul (x, s)", {"s": np.float32(2)})
    other = build("float[N,4] x", "float[N,4] y", "y = Mul (x, s)", {"s": np.float32(2.2)})
    data = synthetic_dataset(graph_inputs(from_model(model)), 1, samples=8)
    found = output_errors(model, other, data, threads=1)
    assert found.shape == (8,)
    assert found.mean() == pytest.approx(0.01, rel=1e-4)
    (feeds, _), *_ = data
    size = (feeds["x"].astype("f8") ** 2).sum(axis=1)
    np.testing.assert_allclose(found, 0.01 * size / size.mean(), rtol=1e-3)


def test_a_gain_has_to_be_larger_than_its_doubt():
    many = np.random.default_rng(0).uniform(1, 2, 50)
    assert is_clearly_less(many * 0.9, many)
    assert not is_clearly_less(many, many)
    noisy = many.copy()
    noisy[0] -= 0.5
    noisy[1] += 0.45
    assert noisy.mean() < many.mean()
    assert not is_clearly_less(noisy, many)
