"""Refitting after a cut: errors go down or stay, whatever the operators share, and labels do not matter."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build
from refit import networks

import surgeon
from surgeon.engine import analyse
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.measure import inputs_of
from surgeon.passes import Context
from surgeon.refit.sampling import Places
from surgeon.refit.sweep import refit
from surgeon.stats.data import Chunk, from_chunks
from surgeon.surgery import cut, keep_of
from surgeon_passes.prune import Prune

X = networks.images()
UNSEEN = networks.images(100, seed=9)


def refitted(model, kept, feeds=None, **options):
    """The cut model before and after refitting, and what the sweep says."""
    found = analyse(from_model(model))
    keep = keep_of(kept(found), {group.id: group.atom for group in found.groups})
    smaller = cut(found.analysis, keep)
    before = to_model(smaller)
    result = refit(
        found.analysis, smaller, keep, feeds or [{"x": X[k : k + 20]} for k in range(0, 200, 20)], **options
    )
    return before, to_model(smaller), result


def every_second(found):
    return {group.id: np.arange(group.size) % 2 == 0 for group in found.groups}


def operators(result: surgeon.Result) -> list[dict]:
    return next(each for each in result.report["passes"] if each["name"] == "prune")["reconstruct"][
        "operators"
    ]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("batches", [1, 4, 10])
def test_no_operator_gets_worse_on_what_was_held_out(seed, batches):
    feeds = [{"x": part} for part in np.split(X[:80], batches)]
    model = networks.mixed(seed)
    before, after, result = refitted(model, every_second, feeds, seed=seed)
    assert list(result.errors) == ["p", "h", "m"]  # all that sum over channels that lost some
    assert all(later <= earlier for earlier, later in result.errors.values())
    assert networks.relative_error(model, after, UNSEEN) < networks.relative_error(model, before, UNSEEN)
    changed = dict(networks.widths(after).items() - networks.widths(before).items())
    assert set(changed) == {"p/surgeon/bias"}


@pytest.mark.parametrize("dependent", [False, True], ids=["copies", "mixtures"])
def test_what_the_rest_can_say_is_restored(dependent):
    model = networks.redundant_convolutions(dependent=dependent)

    def first_half(found):
        return {group.id: np.arange(12) < 6 for group in found.groups}

    before, after, _ = refitted(model, first_half)
    assert networks.relative_error(model, before, UNSEEN) > 0.1
    assert networks.relative_error(model, after, UNSEEN) < 1e-6


def test_nothing_cut_changes_nothing():
    before, after, result = refitted(networks.mixed(), lambda found: {})
    assert result.errors == {}
    assert before == after


def test_memory_does_not_change_results():
    results = [refitted(networks.mixed(), every_second, limit_bytes=limit)[1] for limit in (2**31, 20_000, 0)]
    assert results[0] == results[1] == results[2]


MULTILAYER = "h = Gemm (x, w1) r = Relu (h) "
SHAPES = {"w1": (6, 12), "w2": (12, 5), "w3": (12, 5)}
CASES = {
    "a number as bias": (MULTILAYER + "y = Gemm (r, w2, c)", {"c": np.float32(0.3)}, 1),
    "a vector of one as bias": (MULTILAYER + "y = Gemm (r, w2, c)", {"c": (1,)}, 1),
    "a row as bias": (MULTILAYER + "y = Gemm (r, w2, c)", {"c": (1, 5)}, 1),
    "a computed addend": (MULTILAYER + "c = Gemm (x, w4) y = Gemm (r, w2, c)", {"w4": (6, 5)}, 0),
    "a shared bias": (MULTILAYER + "m = MatMul (r, w2) y = Add (m, c) k = MatMul (r, w3) z = Add (k, c)",
                      {"c": (5,)}, 2),
    "a shared weight": (MULTILAYER + "s = Sigmoid (h) y = Gemm (r, w2) z = Gemm (s, w2)", {}, 0),
    "branches": (
        MULTILAYER + "v = ReduceSum <keepdims=0> (x) f = Greater (v, o) y = If (f) <then_branch = t () => (float[N,5] p) { p = MatMul (r, w2) },"
        " else_branch = e () => (float[N,5] q) { q = MatMul (r, w3) }>", {"o": np.float32(0)}, 0),
    "a sequence": (
        MULTILAYER + "s = SplitToSequence <axis=1> (x, k) a = SequenceAt (s, i) b = ReduceSum <keepdims=1> (a)"
        " t = Add (r, b) y = MatMul (t, w2)", {"i": np.array(1), "k": np.array([3, 3])}, 1),
    "a sequence read twice": (
        MULTILAYER + "s = SplitToSequence <axis=1> (x, k) a = SequenceAt (s, i) b = ReduceSum <keepdims=1> (a)"
        " t = Add (r, b) m = MatMul (t, w2) c = SequenceAt (s, j) d = ReduceSum <keepdims=1> (c)"
        " e = Add (r, d) n = MatMul (e, w3) y = Add (m, n)",
        {"i": np.array(1), "j": np.array(0), "k": np.array([3, 3])}, 2),
}  # fmt: skip


def test_operators_that_nothing_reaches_stay_as_they_are():
    """Rows that are picked by a condition that no sample meets."""
    body = MULTILAYER + (
        "y = Gemm (r, w2) v = ReduceSum <keepdims=0> (x, e) f = Greater (v, o) k = Compress <axis=0> (r, f)"
        " l = MatMul (k, w3) g = ReduceSum <keepdims=0> (l, z) u = Add (y, g)"
    )
    weights = SHAPES | {"e": np.array([1]), "z": np.array([0]), "o": np.float32(1e9)}
    model = build("float[N,6] x", "float[N,5] u", body, weights)
    rows = np.random.default_rng(0).standard_normal((60, 6)).astype(np.float32)
    feeds = [{"x": part} for part in np.split(rows, 3)]
    for more in ((), feeds):
        _, after, result = refitted(model, every_second, feeds, more=more)
        assert networks.outputs(after, rows).shape == (60, 5)
        assert len(result.errors) == 2


def test_variants_may_be_shorter_or_longer():
    model = build(
        "float[N,T,6] x", "float[N,T,5] y", "h = MatMul (x, w1) r = Relu (h) y = MatMul (r, w2)", SHAPES
    )
    rows = np.random.default_rng(0).standard_normal((8, 9, 6)).astype(np.float32)
    feeds = [{"x": part} for part in np.split(rows, 2)]
    for length in (0, 4, 18):
        more = [{"x": np.resize(each["x"], (4, length, 6))} for each in feeds]
        _, _, result = refitted(model, every_second, feeds, more=more)
        assert all(after <= before for before, after in result.errors.values())


@pytest.mark.parametrize("score", ["obs", "l2"])
@pytest.mark.parametrize("case", CASES)
def test_odd_networks_are_refitted_or_left_alone(case, score):
    body, weights, count = CASES[case]
    outs = "float[N,5] y" + (", float[N,5] z" if "z =" in body else "")
    used = {name: shape for name, shape in SHAPES.items() if name in body}
    model = build("float[N,6] x", outs, body, {**used, **weights})
    data = {"x": np.random.default_rng(0).standard_normal((128, 6)).astype(np.float32)}
    text = f"prune{{ratio=0.25 score={score}%s}}"
    result = networks.pruned(model, text % "", data)
    plain = networks.pruned(model, text % " reconstruct=false", data)
    found = operators(result)
    assert len(found) == count
    assert all(each["error_after"] <= each["error_before"] for each in found)
    names = [tensor.name for tensor in result.model.graph.initializer]
    assert len(names) == len(set(names))
    errors = [networks.relative_error(model, each.model, data["x"]) for each in (result, plain)]
    assert errors[0] < errors[1] if count else errors[0] == errors[1]


@pytest.mark.parametrize("score", ["obs", "l2"])
def test_the_same_bytes_with_any_number_of_threads(tmp_path, score):
    files = [tmp_path / f"{name}.onnx" for name in "abc"]
    for path, threads in zip(files, (1, 2, 1), strict=True):
        networks.pruned(
            networks.mixed(),
            f"prune{{macs=0.5 score={score}}}",
            {"x": X},
            threads=threads,
            destination=path,
            seed=4,
        )
    assert files[0].read_bytes() == files[1].read_bytes() == files[2].read_bytes()


class Unreadable(np.ndarray):
    """Labels that may be carried around and cut into batches, but never looked at."""

    def __array_ufunc__(self, *args, **kwargs):
        raise AssertionError("labels were computed with")

    def __array_function__(self, function, kinds, args, kwargs):
        if function is np.concatenate:
            return super().__array_function__(function, kinds, args, kwargs)
        raise AssertionError("labels were read")


@pytest.mark.parametrize("score", ["obs", "wanda"])
def test_labels_are_never_read(score):
    model = networks.mixed()
    results = []
    for labels in (
        None,
        np.full(len(X), "nan"),
        np.full(len(X), np.nan).view(Unreadable),
        np.arange(len(X)) % 5,
    ):
        graph = from_model(model)
        dataset = from_chunks("test", inputs_of(graph), lambda labels=labels: iter([Chunk({"x": X}, labels)]))
        context = Context(source_path=None, data=dataset)
        results.append(to_model(Prune(macs=0.5, score=score).run(graph, context)))
        assert context.record["reconstruct"]
    assert results[0] == results[1] == results[2] == results[3]


@pytest.mark.parametrize(("limit", "spills"), [(2**31, False), (20_000, True)])
def test_a_sweep_says_whether_memory_was_enough(limit, spills):
    _, _, result = refitted(networks.mixed(), every_second, limit_bytes=limit)
    assert bool(result.spilled) == spills


@pytest.mark.parametrize("seed", range(3))
def test_variants_of_few_samples_teach_what_they_do_not(seed):
    """Behind a pooling a sample is one equation: twelve of them say little of weights for as many channels."""
    model = networks.mixed(seed)
    feeds = [{"x": X[k : k + 3]} for k in range(0, 12, 3)]
    more = [{"x": X[k : k + 3]} for k in range(12, 120, 3)]  # as good as variants can be
    few, filled = (refitted(model, every_second, feeds, more=each)[1] for each in ((), more))
    errors = [networks.relative_error(model, each, UNSEEN) for each in (few, filled)]
    assert errors[1] < 0.8 * errors[0]


def test_variants_change_nothing_where_there_are_places_enough():
    model, feeds = networks.mixed(), [{"x": X[k : k + 20]} for k in range(0, 200, 20)]
    few = Places(per_input=1, fewest=150)
    ones = [refitted(model, every_second, feeds, more=more, places=few)[1] for more in ((), feeds)]
    assert ones[0] == ones[1]
