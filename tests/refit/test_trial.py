"""Trials: batches that judge are others than those fitted to, and errors of outputs are relative to their variance."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from surgeon.graph.load import from_model
from surgeon.refit.trial import Comparison, Feeds


def test_batches_judge_that_nothing_was_fitted_to():
    batches = [{"x": np.zeros((10, 2))} for _ in range(12)]
    feeds = Feeds.of(batches, 60)
    assert (len(feeds.trial), len(feeds.judge), len(feeds.fit)) == (3, 2, 10)
    assert not {id(each) for each in feeds.judge} & {id(each) for each in (*feeds.trial, *feeds.fit)}
    few = Feeds.of(batches[:2], 60)
    assert (len(few.trial), len(few.judge), len(few.fit)) == (1, 1, 2)
    one = Feeds.of(batches[:1], 60)
    assert one.trial == one.judge == one.fit == batches[:1]


def network(scale, *, decided=False):
    kind, last = (
        ("int64", "y = ArgMax <axis = 1, keepdims = 0> (h)") if decided else ("float", "y = Relu (h)")
    )
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float["N",3] x) => ({kind}["N"{"" if decided else ",3"}] y)
        <float[3] s = {{{", ".join(map(str, scale))}}}> {{ h = Mul (x, s) {last} }}"""
    return from_model(onnx.parser.parse_model(text))


def drawn(*sizes):
    random = np.random.default_rng(0)
    return [{"x": random.random((size, 3)).astype("f")} for size in sizes]


@pytest.mark.parametrize("sizes", [(6,), (4, 4), (5, 2)])
def test_the_error_is_relative_to_the_variance(sizes):
    feeds = drawn(*sizes)
    x = np.concatenate([each["x"] for each in feeds])
    found = Comparison(network((1.0, 1.0, 1.0)), feeds, 1)(network((1.0, 1.0, 0.5)))
    assert found == pytest.approx(np.square(x[:, 2] / 2).sum() / np.square(x - x.mean(0)).sum(), rel=1e-5)


def test_one_sample_and_decisions():
    feeds = drawn(1)
    x = feeds[0]["x"]
    found = Comparison(network((1.0, 1.0, 1.0)), feeds, 1)(network((1.0, 1.0, 0.5)))
    assert found == pytest.approx(np.square(x[:, 2] / 2).sum() / np.square(x - x.mean()).sum(), rel=1e-5)
    judge = Comparison(network((1.0, 1.0, 1.0), decided=True), drawn(30), 1)
    assert judge(network((1.0, 1.0, 1.0), decided=True)) == 0
    expected = (drawn(30)[0]["x"].argmax(1) != 2).mean()
    assert judge(network((1.0, 1.0, 9e9), decided=True)) == pytest.approx(expected)


def test_what_is_not_finite_is_infinitely_wrong():
    judge = Comparison(network((1.0, 1.0, 1.0)), drawn(4), 1)
    assert judge(network((1.0, 1.0, "3e38"))) > 1e30
    other = Comparison(network((1.0, 1.0, 1.0)), [{"x": np.full((2, 3), 3e38, "f")}], 1)
    assert other(network((1.0, 1.0, 2.0))) == np.inf
