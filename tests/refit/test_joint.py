"""Two operators fitted together: the links between their places are those of the model, and no step makes it worse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ops.oracle import build
from refit import networks

from surgeon.engine import analyse
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session, with_outputs
from surgeon.refit.carry import get_weight
from surgeon.refit.fit import Effort
from surgeon.refit.joint import Wanted, fit_both
from surgeon.refit.pair import Linked, Pair, pair_before
from surgeon.refit.sweep import refit
from surgeon.refit.through import Activation, activation_after
from surgeon.stats.linear import linear_views
from surgeon.surgery import cut, keep_of

RANDOM = np.random.default_rng(1)
START = RANDOM.bit_generator.state


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order():
    RANDOM.bit_generator.state = START


PAIRS = {
    "convolutions": ("float[N,3,7,6] x", "h = Conv <pads=[1,1,1,1]> (x, w1, b1) r = Relu (h) y = Conv <strides=[2,1], pads=[1,0,1,2]> (r, w2)",
                     {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (5, 8, 3, 3)}),
    "crossed": ("float[N,4,6] x", "h = MatMul (x, w1) r = Relu (h) y = MatMul (w2, r)", {"w1": (6, 8), "w2": (3, 4)}),
    "strided": ("float[N,3,3,3] x", "h = Conv (x, w1) r = Relu (h) y = Conv <strides=[3,3], pads=[3,3,0,0]> (r, w2)",
                {"w1": (8, 3, 1, 1), "w2": (5, 8, 3, 3)}),
    "groups": ("float[N,4,7,6] x", "h = Conv <group=2> (x, w1) r = Clip (h, low, high) y = Conv <group=4, dilations=[2,2]> (r, w2, b2)",
               {"w1": (8, 2, 1, 1), "w2": (4, 2, 3, 3), "b2": (4,), "low": np.float32(0), "high": np.float32(6)}),
    "depthwise first": ("float[N,6,7,6] x", "h = Conv <group=6> (x, w1) r = Relu (h) y = Conv (r, w2)",
                        {"w1": (6, 1, 3, 3), "w2": (5, 6, 1, 1)}),
    "transposed": ("float[N,3,4,5] x", "h = ConvTranspose <strides=[2,2]> (x, w1) s = Sigmoid (h) r = Mul (h, s) y = Conv (r, w2)",
                   {"w1": (3, 6, 3, 3), "w2": (5, 6, 3, 3)}),
    "matrices": ("float[N,4,6] x", "h = MatMul (x, w1) i = Add (h, b1) r = Tanh (i) y = MatMul (r, w2)",
                 {"w1": (6, 8), "b1": (8,), "w2": (8, 3)}),
    "flat": ("float[N,6] x", "h = Gemm <transB=1> (x, w1, b1) r = LeakyRelu (h) y = Gemm (r, w2, b2)",
             {"w1": (8, 6), "b1": (8,), "w2": (8, 3), "b2": (3,)}),
}  # fmt: skip


def prepared(name):
    inputs, body, weights = PAIRS[name]
    model = build(inputs, "float y", body, weights)
    found = analyse(from_model(model)).analysis
    nodes = {node.outputs[0].name: node for node in found.graph.nodes}
    views = [view for op in found.ops for view in linear_views(op)]
    pair = pair_before(views[-1], {view.output: view for view in views}, nodes, {"y"})
    assert pair is not None
    assert (pair.first.op, pair.second.op) == (views[0].op, views[-1].op)
    shape = [8 if size == "N" else int(size) for size in inputs[inputs.index("[") + 1 : -3].split(",")]
    x = RANDOM.standard_normal(shape).astype(np.float32)
    names = [node.outputs[0].name for node in nodes.values() if node.outputs[0].name != "y"]
    outputs = session(with_outputs(model, names))
    arrays = dict(zip([each.name for each in outputs.get_outputs()], run(outputs, {"x": x}), strict=True))
    arrays["x"] = x
    return pair, nodes, arrays


def linked_of(pair: Pair, nodes, arrays, places=None):
    count = pair.second.count(arrays.__getitem__)
    return Linked.of_batch(
        pair, nodes, arrays.__getitem__, np.arange(count) if places is None else places, {}
    )


@pytest.mark.parametrize("name", PAIRS)
def test_linked_places_compute_what_the_model_does(name):
    pair, nodes, arrays = prepared(name)
    for places in (None, np.array([0, 2, 5])):
        linked = linked_of(pair, nodes, arrays, places)
        first, second = get_weight(pair.first, nodes), get_weight(pair.second, nodes)
        rows = linked.gathered(pair.through.function(linked.hidden(first)))
        at = np.arange(rows.shape[1]) if places is None else places
        expected = pair.second.results(arrays[pair.second.output], at, len(second))
        found = rows @ linked.arranged(second)[:, :-1] + second[:, -1:]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PAIRS)
def test_scattering_is_the_transpose_of_gathering(name):
    linked = linked_of(*prepared(name))
    values = RANDOM.standard_normal((linked.x.shape[1], linked.channels)).astype(np.float32)
    gradient = RANDOM.standard_normal(linked.gathered(values).shape).astype(np.float32)
    left = float((linked.gathered(values) * gradient).sum(dtype=np.float64))
    right = float((values * linked.scattered(gradient)).sum(dtype=np.float64))
    assert left == pytest.approx(right, rel=1e-4)


@pytest.mark.parametrize("name", PAIRS)
def test_places_are_fetched_whole_where_all_of_their_channels_are_read(name):
    linked = linked_of(*prepared(name))
    assert linked.width == (1 if name == "crossed" else linked.channels)
    single = linked.singly()
    values = RANDOM.standard_normal((linked.x.shape[1], linked.channels)).astype(np.float32)
    rows = linked.gathered(values)
    natural = np.empty_like(rows)
    np.put_along_axis(natural, np.broadcast_to(linked.order[:, None], rows.shape), rows, axis=2)
    np.testing.assert_array_equal(single.gathered(values), natural)
    np.testing.assert_allclose(linked.scattered(rows), single.scattered(natural), rtol=1e-5, atol=1e-5)
    weights = RANDOM.standard_normal((*linked.order.shape, 3))
    weights = np.concatenate([weights, weights[:, :1]], axis=1)
    np.testing.assert_array_equal(linked.restored(linked.arranged(weights)), weights)


def test_batches_that_are_fetched_in_different_ways_are_joined():
    """As one may be that has nothing but padding, where nothing says of which channel an input is."""
    pair, nodes, arrays = prepared("strided")
    parts = [linked_of(pair, nodes, arrays, np.array(each)) for each in ([1, 2], [0])]
    parts += [parts[0].singly()]
    first = get_weight(pair.first, nodes)
    joined = Linked.joined(parts)
    expected = np.concatenate([part.singly().gathered(part.hidden(first)) for part in parts], axis=1)
    np.testing.assert_array_equal(joined.gathered(joined.hidden(first)), expected)


def test_joined_batches_keep_their_links():
    pair, nodes, arrays = prepared("convolutions")
    parts = [linked_of(pair, nodes, arrays, np.arange(k, k + 4)) for k in (0, 7)]
    first = get_weight(pair.first, nodes)
    joined = Linked.joined(parts)
    expected = np.concatenate([part.singly().gathered(part.hidden(first)) for part in parts], axis=1)
    np.testing.assert_array_equal(joined.singly().gathered(joined.hidden(first)), expected)


@pytest.mark.parametrize("name", PAIRS)
def test_the_gradient_of_the_first_weights(name):
    """Against central differences of the squared error along random directions, behind a function without kinks."""
    pair, nodes, arrays = prepared(name)
    pair = replace(pair, through=Activation(np.tanh))
    linked = linked_of(pair, nodes, arrays)
    first, second = get_weight(pair.first, nodes), linked.arranged(get_weight(pair.second, nodes))
    target = RANDOM.standard_normal((len(second), linked.places, second.shape[2])).astype(np.float32)

    def result(weights):
        rows = linked.gathered(pair.through.function(linked.hidden(weights))).astype(np.float64)
        return rows @ second[:, :-1] + second[:, -1:]

    hidden = linked.hidden(first)
    slope = (
        pair.through.function(hidden + np.float32(1e-3)) - pair.through.function(hidden - np.float32(1e-3))
    ) / 2e-3
    back = ((result(first) - target) @ second[:, :-1].transpose(0, 2, 1)).astype(np.float32)
    gradient = linked.first_gradient(linked.scattered(back) * slope, len(first))
    for _ in range(3):
        direction = RANDOM.standard_normal(first.shape)
        width = 1e-3
        errors = [np.square(result(first + sign * width * direction) - target).sum() / 2 for sign in (1, -1)]
        assert float((gradient * direction).sum()) == pytest.approx(
            (errors[0] - errors[1]) / (2 * width), rel=2e-2
        )


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("behind", [False, True])
def test_the_best_is_never_worse_than_the_start(name, behind):
    pair, nodes, arrays = prepared(name)
    linked = linked_of(pair, nodes, arrays)
    first, second = get_weight(pair.first, nodes), get_weight(pair.second, nodes)
    target = pair.second.results(arrays[pair.second.output], np.arange(linked.places), len(second))
    other = RANDOM.standard_normal(target.shape).astype(np.float32) if behind else None
    relu = activation_after(
        from_model(build("float[N] x", "float[N] y", "h = Neg (x) y = Relu (h)", {})).nodes[0].outputs[0]
    )
    wanted = Wanted(target, other, RANDOM.random(target.shape[1]) < 0.2, relu if behind else None)
    start, best = fit_both(linked, pair.through, wanted, first * 0.7, second * 0.9)
    assert best.error < start.error
    start, best = fit_both(linked, pair.through, wanted, first, second)
    assert best.error <= start.error < 1e-6


def test_fewer_channels_find_other_features():
    """Together they learn a direction between two filters, which neither can alone."""
    weights = {"w1": (6, 8), "w2": (4, 3)}
    random = np.random.default_rng(3)
    half = random.standard_normal((6, 4)).astype(np.float32)
    noise = 0.3 * random.standard_normal((6, 4)).astype(np.float32)
    weights = {
        "w1": np.concatenate([half + noise, half - noise], axis=1),
        "w2": np.tile(random.standard_normal((4, 5)).astype(np.float32), (2, 1)),
    }
    model = build("float[N,6] x", "float[N,5] y", "h = Gemm (x, w1) r = Relu (h) y = Gemm (r, w2)", weights)
    x = random.standard_normal((4000, 6)).astype(np.float32)
    found = analyse(from_model(model))
    (group,) = found.groups
    keep = keep_of({group.id: np.arange(8) < 4}, {group.id: group.atom})
    feeds = [{"x": part} for part in np.split(x, 10)]
    unseen = random.standard_normal((1000, 6)).astype(np.float32)
    errors = []
    for joint in (0, 20):
        smaller = cut(found.analysis, keep)
        refit(found.analysis, smaller, keep, feeds, effort=Effort(joint=joint))
        errors.append(networks.relative_error(model, to_model(smaller), unseen))
    assert errors[1] < 0.5 * errors[0]


def test_without_places_to_judge_by_nothing_changes():
    pair, nodes, arrays = prepared("matrices")
    linked = linked_of(pair, nodes, arrays)
    first, second = get_weight(pair.first, nodes), get_weight(pair.second, nodes)
    target = np.ones((1, linked.links.shape[1], second.shape[2]), np.float32)
    wanted = Wanted(target, None, np.zeros(target.shape[1], bool), None)
    start, best = fit_both(linked, pair.through, wanted, first, second)
    assert best is start


@pytest.mark.parametrize("alpha", [0.5, 1.5, 2.0])
def test_a_scaled_product_is_no_second_operator(alpha):
    weights = {"w1": (6, 8), "w2": (8, 3)}
    body = f"h = Gemm (x, w1) r = Relu (h) y = Gemm <alpha={alpha}> (r, w2)"
    model = build("float[N,6] x", "float[N,3] y", body, weights)
    x = np.random.default_rng(0).standard_normal((2000, 6)).astype(np.float32)
    refitted, cut_only = (
        networks.relative_error(
            model, networks.pruned(model, f"prune{{ratio=0.5 {more}}}", {"x": x}).model, x
        )
        for more in ("", "reconstruct=false")
    )
    assert refitted < 0.75 * cut_only
