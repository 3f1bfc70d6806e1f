"""What a cut reaches, and runs of a cut graph beside the original: the same arrays as each alone."""

from __future__ import annotations

from random import Random

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ops.oracle import build
from random_graphs import network
from refit.test_carry import MODELS, choices, current, parts_of

from surgeon.axes import mask
from surgeon.engine import analyse
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session, with_outputs
from surgeon.graph.shapes import infer
from surgeon.probes import probe_feeds
from surgeon.refit.behind import beside, changed, kept_weight, touched
from surgeon.stats.linear import linear_views
from surgeon.stats.replay import Replay
from surgeon.stats.weight import weight_values

HEAD = "h = Gemm (x, w1, b1) r = Relu (h) k = Gemm (x, w4) z = Tanh (k) "
FLAG = "v = ReduceSum <keepdims=0> (x) f = Greater (v, o) "
BODIES = {
    "products in both": FLAG + "y = If (f) <then_branch = t () => (float[N,5] p) { p = MatMul (r, w2) },"
    " else_branch = e () => (float[N,5] q) { q = MatMul (r, w3) }>",
    "one that is not cut": FLAG + "y = If (f) <then_branch = t () => (float[N,5] p) { p = MatMul (r, w2) },"
    " else_branch = e () => (float[N,5] q) { q = MatMul (z, w3) }>",
    "beside what is cut": FLAG + "j = If (f) <then_branch = t () => (float[N,12] p) { p = Neg (z) },"
    " else_branch = e () => (float[N,12] q) { q = Abs (z) }> a = MatMul (j, w3) b = MatMul (r, w2) y = Add (a, b)",
    "a body in a body": FLAG + "y = If (f) <then_branch = t () => (float[N,5] p) { p = If (f) <then_branch = tt () =>"
    " (float[N,5] p2) { p2 = MatMul (r, w2) }, else_branch = te () => (float[N,5] p3) { p3 = MatMul (z, w3) }> },"
    " else_branch = e () => (float[N,5] q) { q = MatMul (z, w3) }>",
    "a sequence": "s = SplitToSequence <axis=1> (z, parts) a = SequenceAt (s, one) b = MatMul (r, w2)"
    " c = ReduceSum <keepdims=1> (a) y = Add (b, c)",
    "a sequence of what is cut": "s = SequenceConstruct (r, h) a = SequenceAt (s, one) y = MatMul (a, w2)",
}  # fmt: skip


def with_body(body):
    weights = {"w1": (6, 12), "b1": (12,), "w2": (12, 5), "w3": (12, 5), "w4": (6, 12), "o": np.float32(0),
               "parts": np.array([6, 6]), "one": np.array(1)}  # fmt: skip
    text = HEAD + BODIES[body]
    return build("float[N,6] x", "float[N,5] y", text, {k: v for k, v in weights.items() if k in text})


def names_of(graph, dtypes) -> list[str]:
    return [t.name for node in graph.nodes for t in node.outputs if t.name in dtypes]


def alone(graph, names, feeds):
    """Tensors of a graph, batch by batch, in one session without optimization."""
    model = to_model(graph)
    runner = session(with_outputs(model, names), optimize=False)
    order = [each.name for each in runner.get_outputs()]
    return [dict(zip(order, run(runner, batch), strict=True)) for batch in feeds]


def close(first, second) -> bool:
    """Up to what the order of sums in a float does."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if not np.issubdtype(first.dtype, np.floating):
        return bool(np.array_equal(first, second))
    scale = np.abs(first[np.isfinite(first)]).max(initial=0)
    return bool(np.allclose(first, second, rtol=1e-4, atol=1e-5 * scale, equal_nan=True))


def some_cut(found, seed):
    """About half of the groups lose something, one at least where there are any."""
    first, _ = choices(found, seed)
    chosen = np.random.default_rng(seed).random(len(first)) < 0.5
    chosen[: not chosen.any()] = True
    return {name: flags for (name, flags), each in zip(first.items(), chosen, strict=True) if each}


def check(model: onnx.ModelProto, feeds, seed=0, *, exact=True):
    """What holds for a cut of a model; with ``exact`` also what `changed` says, see the test of reductions."""
    found = analyse(from_model(model))
    whole, cut = found.analysis.graph, current(found, some_cut(found, seed))
    names, different = (kind(found.analysis, cut.keep) for kind in (touched, changed))
    dtypes = infer(cut.graph).dtypes
    tensors = names_of(cut.graph, dtypes)
    shared = [name for name in names_of(whole, found.analysis.shapes.dtypes) if name in tensors]
    before, after = alone(whole, shared, feeds), alone(cut.graph, tensors, feeds)
    for name in shared:
        for one, two in zip(before, after, strict=True):
            if name not in names:
                np.testing.assert_array_equal(one[name], two[name], err_msg=name)
            elif exact and name not in different:
                assert close(kept_part(found, name, one[name], cut.keep), two[name]), name
    for limit in (2**31, 0):
        check_beside(found, cut, feeds, names, tensors, after, limit, seed)


def kept_part(found, name, array, keep):
    for k, axis in enumerate(found.analysis.axes[name] or []):
        array = (
            np.compress(mask(axis, keep), array, axis=k) if mask(axis, keep).size == array.shape[k] else array
        )
    return array


def check_beside(found, cut, feeds, names, tensors, expected, limit, seed):
    """Asked for in any order, a run beside the original has the arrays that the cut graph has alone."""
    original = Replay(found.analysis.graph, found.analysis.shapes.dtypes, feeds, limit_bytes=limit)
    replay = beside(original, found.analysis, cut.graph, names)
    assert replay.store.limit == limit
    order = list(np.random.default_rng(seed).permutation(tensors))
    for name in order:
        replay.hold(name)
    for name in order:
        replay.advance([name])
        for batch in range(len(feeds)):
            assert close(replay.get(name, batch), expected[batch][name]), name
        replay.release(name)
    if limit == 0:
        assert original.store.used == replay.store.used == 0
    # what was computed once is handed over, not computed twice
    assert {name for name in tensors if name not in names and name in replay.made} <= folded(found, cut)


def folded(found, cut) -> set[str]:
    """Tensors of the cut graph that it has to compute itself though nothing was cut of them: see `_own`."""
    given = {t.name for node in found.analysis.graph.nodes for t in node.outputs}
    dtypes = infer(cut.graph).dtypes
    made = {t.name for node in cut.graph.nodes for t in node.outputs}
    sequences = {t.name for node in cut.graph.nodes for t in node.outputs if t.name not in dtypes}
    makers = {
        t.name
        for node in cut.graph.nodes
        if sequences & {each.name for each in node.inputs}
        for t in node.outputs
    }
    return (made - given) | makers


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", MODELS)
def test_runs_beside_the_original_are_those_alone(name, seed):
    model = MODELS[name]()
    check(model, parts_of(model, 12), seed)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("body", BODIES)
def test_bodies_and_sequences_are_followed(body, seed):
    model = with_body(body)
    x = np.random.default_rng(1).standard_normal((12, 6)).astype(np.float32)
    check(model, [{"x": part} for part in (x[:4], -x[:4], x[4:])], seed)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32 - 1))
def test_random_networks_run_beside_each_other(seed):
    model = network(Random(seed), 3)
    found = analyse(from_model(model))
    feeds = [feeds for _, feeds in zip(range(2), probe_feeds(found.analysis), strict=False)]
    check(model, feeds, seed % 1000, exact=False)


def test_what_is_touched_and_what_is_changed_by_hand():
    """Channels of a are cut: it and its Relu lose some, the rest of them stays; the product behind them changes."""
    body = "a = Gemm (x, w1) r = Relu (a) b = Gemm (r, w2) k = Gemm (x, w3) s = Add (b, k) y = Neg (s)"
    found = analyse(
        from_model(build("float[N,6] x", "float[N,5] y", body, {"w1": (6, 8), "w2": (8, 5), "w3": (6, 5)}))
    )
    (group,) = found.groups
    keep = {group.atom: np.arange(8) < 5}
    assert changed(found.analysis, keep) == {"b", "s", "y"}
    assert touched(found.analysis, keep) == {"a", "r", "b", "s", "y"}
    for nothing in ({}, {group.atom: np.ones(8, bool)}):
        assert changed(found.analysis, nothing) == touched(found.analysis, nothing) == set()


@pytest.mark.parametrize("reduction", ["ReduceMean", "ReduceMax", "ReduceL2", "ReduceSum"])
def test_a_reduction_over_what_was_cut_changes_its_result(reduction):
    body = f"a = Conv (x, w1) c = {reduction} <keepdims=1> (a, one) y = Conv (c, w2)"
    weights = {"w1": (8, 3, 1, 1), "w2": (5, 1, 1, 1), "one": np.array([1])}
    found = analyse(from_model(build("float[N,3,4,4] x", "float[N,5,4,4] y", body, weights)))
    (group,) = [each for each in found.groups if each.size == 8]
    assert changed(found.analysis, {group.atom: np.arange(8) < 5}) == {"c", "y"}


def test_a_body_carries_changes_out():
    found = analyse(from_model(with_body("products in both")))
    (group,) = [each for each in found.groups if each.size == 12]
    keep = {group.atom: np.arange(12) < 5}
    assert "y" in changed(found.analysis, keep)
    assert {"h", "r", "y"} <= touched(found.analysis, keep)
    assert {"k", "z", "v", "f"}.isdisjoint(touched(found.analysis, keep))


def test_the_original_runs_only_what_is_asked_for():
    model = with_body("beside what is cut")
    found = analyse(from_model(model))
    keep = next(group for group in found.groups if "w1" in group.id)
    cut = current(found, {keep.id: np.arange(12) < 5})
    feeds = [{"x": np.ones((2, 6), np.float32)}]
    original = Replay(found.analysis.graph, found.analysis.shapes.dtypes, feeds)
    replay = beside(original, found.analysis, cut.graph, touched(found.analysis, cut.keep))
    replay.hold("b")
    replay.advance(["b"])
    assert replay.get("b", 0).shape == (2, 5)
    assert "b" not in original.store
    assert original.runs(["h", "r", "b", "a", "j"]) >= {
        "h",
        "r",
        "b",
        "a",
        "j",
    }  # none of these has run there
    assert replay.runs(["y"]) == {"y"}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_kept_of_a_weight_is_what_the_cut_graph_has(name):
    found = analyse(from_model(MODELS[name]()))
    first, _ = choices(found)
    cut = current(found, first)
    for view in [view for op in found.analysis.ops for view in linear_views(op)]:
        node = cut.nodes[view.op.node.outputs[0].name]
        smaller = view.matrices(node, weight_values(node.inputs[view.weight]))
        original = view.matrices(view.op.node, weight_values(view.op.node.inputs[view.weight]))
        flags = kept_weight(found.analysis, view, cut.keep)
        assert flags.shape == original.shape
        np.testing.assert_array_equal(original[flags], smaller.ravel())
