"""Rows of batches are told apart where the graph does so, and only there."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build

from surgeon.grad.rows import rows_are_apart
from surgeon.grad.samples import Samples
from surgeon.graph.load import from_model


def apart(model, batches, judged=None, **shapes):
    random = np.random.default_rng(0)
    arrays = [
        {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(batches)
    ]
    samples = Samples.of(list(shapes), lambda name, batch: arrays[batch][name], batches, rows=True)
    return rows_are_apart(from_model(model), samples, judged=judged)


def recurrent(direction):
    body = f'r, l = LSTM <hidden_size=4, direction="{direction}"> (x, w, u)\ny = Squeeze (r, one)'
    weights = {"w": (1, 16, 3), "u": (1, 16, 4), "one": np.array([1])}
    return build("float[T,N,3] x", "float[T,N,4] y", body, weights)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize(("batches", "steps"), [(1, 2), (1, 3), (1, 7), (2, 1), (2, 2), (4, 5)])
def test_time_is_not_taken_for_samples(direction, batches, steps):
    assert not apart(recurrent(direction), batches, x=(steps, 2, 3))


@pytest.mark.parametrize(("batches", "size"), [(1, 2), (1, 8), (3, 1), (2, 5)])
def test_convolutions_keep_samples_apart(batches, size):
    model = build("float[N,3,4,4] x", "float[N,5,2,2] y", "y = Conv (x, w)", {"w": (5, 3, 3, 3)})
    assert apart(model, batches, x=(size, 3, 4, 4))


@pytest.mark.parametrize(("batches", "size"), [(1, 2), (1, 8), (3, 1), (2, 5)])
def test_statistics_over_the_batch_do_not(batches, size):
    body = "m = ReduceMean <keepdims=1> (x, zero)\ny = Sub (x, m)"
    assert not apart(
        build("float[N,3] x", "float[N,3] y", body, {"zero": np.array([0])}), batches, x=(size, 3)
    )


def test_a_declared_size_of_the_batch_does_not_matter_but_one_that_is_used_does():
    flexible = build("float[1,3] x", "float[1,4] y", "y = MatMul (x, w)", {"w": (3, 4)})
    assert apart(flexible, 3, x=(1, 3))
    body = "r = Reshape (x, s)\ny = MatMul (r, w)"
    written = build("float[1,3] x", "float[1,4] y", body, {"w": (3, 4), "s": np.array([1, 3])})
    assert not apart(written, 3, x=(1, 3))


def test_outputs_without_rows():
    body = "y = ReduceSum <keepdims=0> (x)"
    assert not apart(build("float[N,3] x", "float y", body), 2, x=(4, 3))


def test_inputs_of_different_leading_sizes():
    body = "z = MatMul (b, w)\ny = Add (a, z)"
    model = build("float[N,3] a, float[M,5] b", "float[N,3] y", body, {"w": (5, 3)})
    assert not apart(model, 2, a=(4, 3), b=(1, 5))
    assert apart(model, 2, a=(4, 3), b=(4, 5))


@pytest.mark.parametrize(("batches", "size"), [(1, 2), (3, 1), (2, 6), (2, 4)])
def test_samples_may_be_further_in(batches, size):
    """A tensor inside that begins with time; along no axis are samples apart in statistics over all of them."""
    body = """
    t = Transpose <perm = [1, 0, 2]> (x)
    r = LSTM <hidden_size = 4> (t, w, u)
    s = Squeeze (r, one)
    m = ReduceMean <keepdims = 1> (x, zero)
    c = Sub (x, m)
    total = ReduceSum <keepdims = 0> (x)
    y = Transpose <perm = [1, 0, 2]> (s)
    """
    weights = {"w": (1, 16, 3), "u": (1, 16, 4), "one": np.array([1]), "zero": np.array([0])}
    model = build("float[N,6,3] x", "float[N,6,4] y, float total", body, weights)
    shape = (size, 6, 3)
    assert not apart(model, batches, x=shape)
    assert apart(model, batches, ["y"], x=shape)
    assert apart(model, batches, ["s"], x=shape)
    assert apart(model, batches, ["s", "y"], x=shape)
    assert not apart(model, batches, ["s", "c"], x=shape)
    assert not apart(model, batches, ["total"], x=shape)
