"""Weights carried over to a further cut: what is left computes what the refitted graph does without the rest."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build
from refit import networks
from refit.test_norms import unfused

from surgeon.engine import analyse
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.refit.carry import Current, carry_over, get_weight, set_weight
from surgeon.refit.sweep import refit
from surgeon.stats.linear import linear_views
from surgeon.surgery import cut, keep_of, without_empty_axes

HEAD = "h = Gemm (x, w1, b1) r = Relu (h) "
WEIGHTS = {"w1": (6, 12), "b1": (12,), "w2": (12, 5), "w3": (12, 5)}


def gemms(body, **weights):
    used = {name: value for name, value in {**WEIGHTS, **weights}.items() if name in HEAD + body}
    return build("float[N,6] x", "float[N,5] y", HEAD + body, used)


def convolutions():
    """Grouped, depthwise and transposed ones."""
    body = """
    a = Conv (x, w1)
    r = Relu (a)
    d = Conv <group=16, pads=[1,1,1,1]> (r, wd, bd)
    g = Conv <group=4> (d, wg)
    s = Relu (g)
    t = ConvTranspose <group=2, strides=[2,2]> (s, wt)
    y = Conv (t, w2)
    """
    weights = {
        "w1": (16, 3, 1, 1), "wd": (16, 1, 3, 3), "bd": (16,), "wg": (16, 4, 3, 3), "wt": (16, 6, 2, 2), "w2": (5, 12, 1, 1),
    }  # fmt: skip
    return build("float[N,3,6,6] x", "float[N,5,H,W] y", body, weights)


MODELS = {
    "mixed": networks.mixed,
    "redundant": lambda: networks.redundant_convolutions(dependent=False),
    "unfused": unfused,
    "shared norms": lambda: unfused(shared=True),
    "convolutions": convolutions,
    "a bias behind a sum": lambda: gemms("m = MatMul (r, w2) y = Add (m, c)", c=(5,)),
    "a shared bias": lambda: gemms("m = MatMul (r, w2) a = Add (m, c) k = MatMul (r, w3) b = Add (k, c) y = Mul (a, b)", c=(5,)),
    "a shared weight": lambda: gemms("m = MatMul (r, w2) s = Sigmoid (h) k = MatMul (s, w2) a = Add (m, k) b = Relu (a) y = MatMul (b, w4)", w4=(5, 5)),
    "a scaled bias": lambda: gemms("y = Gemm <alpha=0.5, beta=2.0> (r, w2, c)", c=(5,)),
    "a turned weight": lambda: gemms("w = Transpose <perm=[1,0]> (wt) y = MatMul (r, w)", wt=(5, 12)),
    "a weight on the left": lambda: gemms("t = Transpose <perm=[1,0]> (r) z = MatMul (wl, t) y = Transpose <perm=[1,0]> (z)", wl=(5, 12)),
    **{f"{kind} {way}": lambda kind=kind, way=way: networks.layers(kind, way)
       for kind in ("LSTM", "GRU", "RNN") for way in ("forward", "bidirectional")},
}  # fmt: skip


def data_of(model, count, seed=1):
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    if len(shape) == 4:
        return networks.images(count, seed)
    if len(shape) == 3:
        return networks.sequences(count, seed)
    return np.random.default_rng(seed).standard_normal((count, 6)).astype(np.float32)


def parts_of(model, count=60):
    x = data_of(model, count)
    return [{"x": part} for part in np.array_split(x, 4, axis=1 if x.ndim == 3 else 0)]


def choices(found, seed=0):
    """What a first cut keeps of each group, and a second one, which takes more from every other group."""
    random = np.random.default_rng(seed)
    first, second = {}, {}
    for number, group in enumerate(found.groups):
        kept = random.permutation(group.size) < max(group.size * 3 // 4, 2)
        first[group.id] = kept
        second[group.id] = kept & (np.cumsum(kept) > kept.sum() // 2) if number % 2 == 0 else kept
    return first, second


def current(found, kept) -> Current:
    keep = keep_of(kept, {group.id: group.atom for group in found.groups})
    keep = without_empty_axes(found.analysis, keep)
    return Current(keep, cut(found.analysis, keep))


def refitted(model):
    """The analysed model, what two cuts keep, and the first of them refitted."""
    found = analyse(from_model(model))
    first, second = choices(found)
    before = current(found, first)
    result = refit(found.analysis, before.graph, before.keep, parts_of(model))
    assert result.errors
    return found, first, second, before


@pytest.mark.parametrize("name", MODELS)
def test_the_same_cut_has_the_same_outputs(name):
    model = MODELS[name]()
    found, first, _, before = refitted(model)
    again = current(found, first)
    x = data_of(model, 20, seed=9)
    expected = networks.outputs(to_model(before.graph), x)
    assert np.abs(networks.outputs(to_model(again.graph), x) - expected).max() > 0.01 * np.abs(expected).max()
    carry_over(found.analysis, before, again)
    np.testing.assert_allclose(networks.outputs(to_model(again.graph), x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_further_cut_is_a_cut_of_the_refitted_model(name):
    """Analysed as a model of its own and cut to the same indices, the refitted graph computes the same."""
    model = MODELS[name]()
    found, first, second, before = refitted(model)
    after = current(found, second)
    carry_over(found.analysis, before, after)
    anew = analyse(from_model(to_model(before.graph)))
    kept = {group.id: second[group.id][first[group.id]] for group in anew.groups if group.id in first}
    assert any(not flags.all() for flags in kept.values())
    further = {key for key in first if not np.array_equal(first[key], second[key])}
    assert further == {key for key, flags in kept.items() if not flags.all()}
    expected = current(anew, kept).graph
    x = data_of(model, 20, seed=9)
    results = [networks.outputs(to_model(graph), x) for graph in (after.graph, expected)]
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-5 * np.abs(results[1]).max())


@pytest.mark.parametrize("name", MODELS)
def test_the_earlier_graph_and_the_original_stay(name):
    found, _, second, before = refitted(MODELS[name]())
    whole = current(found, {}).graph
    models = [to_model(graph) for graph in (before.graph, whole)]
    carry_over(found.analysis, before, current(found, second))
    assert models == [to_model(graph) for graph in (before.graph, current(found, {}).graph)]


@pytest.mark.parametrize("name", MODELS)
def test_nothing_cut_before_has_nothing_to_carry(name):
    found = analyse(from_model(MODELS[name]()))
    _, second = choices(found)
    after = current(found, second)
    expected = to_model(after.graph)
    carry_over(found.analysis, current(found, {}), after)
    assert to_model(after.graph) == expected


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_layers_whose_states_nobody_reads_are_carried_over_too(kind):
    model = networks.layers(kind, outputs=", l")
    found, first, _, before = refitted(model)
    again = current(found, first)
    carry_over(found.analysis, before, again)
    x = data_of(model, 20, seed=9)
    results = [networks.outputs(to_model(each.graph), x) for each in (again, before)]
    np.testing.assert_allclose(*results, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_weights_that_are_set_are_read_again(name):
    found = analyse(from_model(MODELS[name]()))
    each = current(found, choices(found)[0])
    for view in [view for op in found.analysis.ops for view in linear_views(op)]:
        given = get_weight(view, each.nodes)
        wanted = np.random.default_rng(0).standard_normal(given.shape).astype(np.float32)
        if view.bias is None:
            assert not given[:, -1].any()
            wanted[:, -1] = 0
        set_weight(view, each.nodes, wanted.astype(np.float64))
        np.testing.assert_allclose(get_weight(view, each.nodes), wanted, rtol=1e-6)
