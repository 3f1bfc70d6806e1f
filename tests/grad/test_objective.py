"""A loss and its gradients: the same in pieces and as a whole, and right for every shape that arrives."""

from __future__ import annotations

import numpy as np
import pytest
from grad.learning import objective, perceptron, regression, samples, values_of
from ops.oracle import build

from surgeon.errors import DataError
from surgeon.grad.memory import ROOM, activation_bytes
from surgeon.grad.objective import BATCH, COMPILED
from surgeon.graph.load import from_model


def whole(data):
    return [(len(data["x"]), data)]


def pieces(data, sizes):
    ends = np.cumsum(sizes)
    return [(n, {k: v[end - n : end] for k, v in data.items()}) for n, end in zip(sizes, ends, strict=True)]


@pytest.mark.parametrize("sizes", [(60,), (59, 1), (1, 20, 39), (7,) * 8 + (4,)])
def test_pieces_average_to_the_whole(sizes):
    graph, data = perceptron(), regression()
    of, start = objective(graph), values_of(graph)
    loss, gradients = of.gradients(start, whole(data))
    hidden = np.tanh(data["x"] @ start["w1"] + start["b1"])
    difference = hidden @ start["w2"] + start["b2"] - data["t"]
    assert loss == pytest.approx(np.square(difference).mean(), rel=1e-5)
    np.testing.assert_allclose(gradients["w2"], hidden.T @ difference * 2 / difference.size, rtol=1e-4)
    other, again = of.gradients(start, pieces(data, sizes))
    assert other == pytest.approx(loss, rel=1e-6)
    assert of.value(start, pieces(data, sizes)) == pytest.approx(loss, rel=1e-6)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(again[name], gradient, rtol=1e-4, atol=1e-7)


def test_gradients_agree_with_differences():
    graph, data = perceptron(), regression()
    of, start = objective(graph), values_of(graph)
    _, gradients = of.gradients(start, whole(data))
    random = np.random.default_rng(0)
    for _ in range(3):
        way = {name: random.standard_normal(value.shape).astype(np.float32) for name, value in start.items()}
        ahead, behind = (
            of.value({n: v + np.float32(sign * 1e-2) * way[n] for n, v in start.items()}, whole(data))
            for sign in (1, -1)
        )
        slope = sum(float((way[name] * gradients[name]).sum()) for name in start)
        assert (ahead - behind) / 2e-2 == pytest.approx(slope, rel=2e-3)


def sentences(rows=True):
    """Attention-like mean over a sequence of any length."""
    body = "h = MatMul (x, w)\nr = Relu (h)\nm = ReduceMean <keepdims=0> (r, one)\ny = MatMul (m, v)"
    weights = {"w": (3, 5), "v": (5, 2), "one": np.array([1])}
    graph = from_model(build("float[N,T,3] x, float[N,2] t", "float[N,2] y", body, weights))
    return graph, objective(graph, rows=rows)


@pytest.mark.parametrize("rows", [True, False])
def test_several_shapes(rows):
    graph, of = sentences(rows)
    start, random = values_of(graph), np.random.default_rng(0)
    parts = []
    for length in (1, 4, 9, 4):
        feeds = {"x": random.standard_normal((3, length, 3)), "t": random.standard_normal((3, 2))}
        parts.append((3 if rows else 1, {name: each.astype(np.float32) for name, each in feeds.items()}))
    loss, gradients = of.gradients(start, parts)
    each = [of.gradients(start, [part]) for part in parts]
    assert loss == pytest.approx(np.mean([one for one, _ in each]), rel=1e-6)
    for name in gradients:
        np.testing.assert_allclose(
            gradients[name], np.mean([found[name] for _, found in each], axis=0), atol=1e-6
        )


def test_compiled_shapes_do_not_pile_up():
    graph, of = sentences()
    start = values_of(graph)
    for length in range(1, COMPILED + 4):
        of.value(start, [(1, {"x": np.ones((1, length, 3), np.float32), "t": np.ones((1, 2), np.float32)})])
    assert len(of._compiled) == COMPILED


def test_the_graph_is_left_alone():
    graph, data = perceptron(), regression()
    before = values_of(graph)
    objective(graph).gradients({name: 0 * value for name, value in before.items()}, whole(data))
    after = values_of(graph)
    assert all((after[name] == before[name]).all() for name in before)
    assert [tensor.name for tensor in graph.inputs] == ["x", "t"]
    assert len(graph.nodes) == 3


def test_parameters_without_a_gradient_are_named_with_the_reason():
    body = "a = MatMul (x, w)\nm = MatMul (x, u)\nk = ArgMax <axis=1, keepdims=1> (m)\nc = Cast <to=1> (k)\ny = Add (a, c)"
    weights = {"w": (4, 2), "u": (4, 3)}
    graph = from_model(build("float[N,4] x, float[N,2] t", "float[N,2] y", body, weights))
    of = objective(graph)
    loss, gradients = of.gradients(values_of(graph), whole(regression()))
    assert np.isfinite(loss)
    assert list(gradients) == ["w"]
    assert list(of.stopped) == ["u"]


def test_parts_of_gradients_that_are_left_out_are_told():
    body = "a = MatMul (x, w)\nm = MatMul (v, w)\nd = Det (m)\ny = Add (a, d)"
    weights = {"w": (4, 2), "v": (2, 4)}
    graph = from_model(build("float[N,4] x, float[N,2] t", "float[N,2] y", body, weights))
    of = objective(graph)
    _, gradients = of.gradients(values_of(graph), whole(regression()))
    assert "w" in gradients
    assert "Det" in of.partial["w"]


def test_an_input_without_data_is_named():
    of = objective(perceptron())
    with pytest.raises(DataError, match="no data"):
        of.value(values_of(perceptron()), [(2, {"x": np.zeros((2, 4), np.float32)})])


def test_integers_and_half_floats_may_be_fed():
    body = "e = Gather (w, i)\nh = Cast <to=1> (g)\ns = Add (e, h)\ny = MatMul (s, v)"
    graph = from_model(
        build("int64[N] i, float16[N,3] g, float[N,2] t", "float[N,2] y", body, {"w": (6, 3), "v": (3, 2)})
    )
    of, start = objective(graph), values_of(graph)
    feeds = {
        "i": np.array([0, 2, 2]),
        "g": np.ones((3, 3), np.float16),
        "t": np.zeros((3, 2), np.float32),
    }
    _, gradients = of.gradients(start, [(3, feeds)])
    touched = np.abs(gradients["w"]).sum(axis=1) > 0
    np.testing.assert_array_equal(touched, [True, False, True, False, False, False])


@pytest.mark.parametrize("limit", [10_000, 50_000, 10**6])
def test_as_many_samples_as_fit_into_memory(limit):
    graph, data = perceptron(), regression()
    of = objective(graph)
    most = of.most(data, limit)
    found = of._of(data, of.parameters).found
    few, more = (activation_bytes(found.graph, BATCH, size) for size in (most, most + 1))
    assert few <= limit / ROOM < more
    assert most < limit / (4 * (8 + 2))  # a sample's hidden values and outputs at least


def test_at_least_one_sample_runs():
    of = sentences()[1]
    feeds = {"x": np.ones((2, 900, 3), np.float32), "t": np.ones((2, 2), np.float32)}
    assert of.most(feeds, 1) == 1
    longer = of.most({**feeds, "x": feeds["x"][:, :90]}, 10**6)
    assert longer == pytest.approx(10 * of.most(feeds, 10**6), rel=0.3)
    assert sentences(rows=False)[1].most(feeds, 10**9) == 1


@pytest.mark.parametrize(("batch", "piece"), [(8, 32), (64, 32), (256, 64)])
def test_batches_are_divided_alike_whatever_the_threads(batch, piece):
    for threads in (1, 2, 8):
        of = objective(perceptron(), threads=threads)
        assert of.divide(regression(), batch, 10**9) == piece


def test_pieces_side_by_side_come_to_what_they_come_to_one_by_one():
    data = samples(regression())
    found = []
    for threads in (1, 3):
        of = objective(perceptron(), threads=threads)
        most = of.divide(regression(), 64, 10**9)
        found.append(of.gradients(values_of(perceptron()), data.take(np.arange(60), most)))
    (loss, gradients), (again, others) = found
    assert loss == again
    for name, each in gradients.items():
        np.testing.assert_array_equal(each, others[name])


def test_what_fits_once_runs_alone():
    of = objective(perceptron(), threads=4)
    one = of.most(regression(), 10_000)
    assert of.divide(regression(), 4 * one, 10_000) == one
    assert of._aside == 1
