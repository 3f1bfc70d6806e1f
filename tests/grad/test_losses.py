"""Losses have the values of their formulas, whichever axis the classes are on and whatever the numbers mean."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build

from surgeon.grad.losses import cross_entropy, divergence, kind_of, relative_error
from surgeon.grad.objective import Objective
from surgeon.graph.load import from_model
from surgeon.graph.shapes import infer


def softmax(values, axis):
    powers = np.exp(values - values.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def value(write, feeds, opset=21):
    """A loss of ``y``, which is what is fed as ``x``, and of ``t``."""
    shapes = {
        name: ",".join(["N", *map(str, array.shape[1:])]) if array.ndim else ""
        for name, array in feeds.items()
    }
    names = {np.dtype(np.float16): "float16", np.dtype(np.float32): "float", np.dtype(np.int64): "int64"}
    texts = ", ".join(f"{names[array.dtype]}[{shapes[name]}] {name}" for name, array in feeds.items())
    kind = names[feeds["x"].dtype]
    graph = from_model(build(texts, f"{kind}[{shapes['x']}] y", "y = Identity (x)", opset=opset))
    objective = Objective(graph, write, [], rows=True)
    return objective.value({}, [(len(feeds["x"]), feeds)])


def of_kind(scores, kind, axis):
    chances = softmax(scores, axis)
    return {"values": scores, "probabilities": chances, "logarithms": np.log(chances)}[kind]


SHAPES = [((5, 4), 1), ((5, 3, 4), 2), ((5, 4, 3), 1), ((5, 4, 2, 3), 1)]
KINDS = ["values", "probabilities", "logarithms"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_divergence(kind, temperature, shape, axis):
    ours, theirs = normal(*shape), normal(*shape, seed=1)
    p, q = softmax(theirs / temperature, axis), softmax(ours / temperature, axis)
    expected = temperature**2 * (p * (np.log(p) - np.log(q))).sum(axis).mean()
    feeds = {"x": of_kind(ours, kind, axis), "t": of_kind(theirs, kind, axis)}
    for opset in (11, 21):

        def loss(tape):
            return divergence(tape, tape.find("y"), tape.find("t"), kind, axis, temperature)

        assert value(loss, feeds, opset) == pytest.approx(expected, rel=1e-4)


def test_divergence_from_itself_is_nothing_and_certainty_is_finite():
    sure = np.eye(3, dtype=np.float32)

    def loss(tape):
        return divergence(tape, tape.find("y"), tape.find("t"), "probabilities", 1)

    assert value(loss, {"x": sure, "t": sure}) == pytest.approx(0, abs=1e-6)
    assert np.isfinite(value(loss, {"x": sure[::-1].copy(), "t": sure}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_cross_entropy(kind, shape, axis):
    scores = normal(*shape)
    labels = np.random.default_rng(2).integers(0, shape[axis], [s for k, s in enumerate(shape) if k != axis])
    chosen = np.take_along_axis(softmax(scores, axis), np.expand_dims(labels, axis), axis)

    def loss(tape):
        return cross_entropy(tape, tape.find("y"), tape.find("t"), kind, axis)

    for opset in (11, 21):
        found = value(loss, {"x": of_kind(scores, kind, axis), "t": labels}, opset)
        assert found == pytest.approx(-np.log(chosen).mean(), rel=1e-4)


def test_labels_that_are_no_class_count_nothing():
    scores = normal(4, 3)
    labels = np.array([0, -100, 255, -1])

    def loss(tape):
        return cross_entropy(tape, tape.find("y"), tape.find("t"), "values", 1)

    expected = -np.log(softmax(scores, 1)[0, 0]) / 4
    assert value(loss, {"x": scores, "t": labels}) == pytest.approx(expected, rel=1e-5)


def test_labels_with_an_axis_of_one_more_or_less():
    scores, labels = normal(4, 3), np.array([[0], [2], [1], [1]])

    def loss(tape):
        return cross_entropy(tape, tape.find("y"), tape.find("t"), "values", 1)

    expected = -np.log(softmax(scores, 1)[np.arange(4), labels[:, 0]]).mean()
    assert value(loss, {"x": scores, "t": labels}) == pytest.approx(expected, rel=1e-5)


def test_half_floats_do_not_overflow():
    far = np.full((2, 3), 500, np.float16)

    def loss(tape):
        return relative_error(tape.find("y"), tape.find("t"), 2.0)

    assert value(loss, {"x": far, "t": np.zeros_like(far)}) == pytest.approx(125_000)


def found_in(shape, body, opset=21, inputs="float[N,4,2,3] x", weights=None):
    graph = from_model(build(inputs, f"float[{shape}] y", body, weights, opset=opset))
    return kind_of(graph.outputs[0], infer(graph), opset)


def test_what_numbers_are():
    assert found_in("N,4,2,3", "y = Relu (x)") == ("values", 1)
    assert found_in("N,4,3", "y = Relu (x)", inputs="float[N,4,3] x") == ("values", 2)
    assert found_in("N,4,2,3", "y = Softmax (x)") == ("probabilities", 3)
    assert found_in("N,4,2,3", "y = LogSoftmax <axis=1> (x)") == ("logarithms", 1)
    assert found_in("N,4,2,3", "s = Softmax <axis=-3> (x)\ny = Identity (s)") == ("probabilities", 1)
    assert found_in("N,4", "y = Softmax (x)", 11, "float[N,4] x") == ("probabilities", 1)


def test_an_old_softmax_over_several_axes_is_none():
    assert found_in("N,4,2,3", "y = Softmax <axis=1> (x)", 11) == ("values", 1)
    assert found_in("N,4,2,3", "y = Softmax <axis=3> (x)", 11) == ("probabilities", 3)


def test_the_axis_is_followed_through_reshapes():
    sizes = {"s": np.array([0, 4, 6])}
    body = "p = Softmax <axis=1> (x)\ny = Reshape (p, s)"
    assert found_in("N,4,6", body, weights=sizes) == ("probabilities", 1)
    mixed = {"s": np.array([0, 24])}
    assert found_in("N,24", body, weights=mixed)[0] == "values"
