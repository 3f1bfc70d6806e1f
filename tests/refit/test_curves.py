"""Error curves: what costs nothing goes first, and what a curve promises is what refitting keeps."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from ops.oracle import build
from refit import networks
from refit.test_carry import convolutions, current
from refit.test_norms import unfused

from surgeon.engine import analyse
from surgeon.errors import SurgeonError
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.refit import definite, sensitivity
from surgeon.refit.curves import Curve, error_curves
from surgeon.refit.sweep import refit
from surgeon_passes.pruning import describe

X = networks.images()
UNSEEN = networks.images(100, seed=9)


def curves_of(model, x=X, **options):
    found = analyse(from_model(model))
    feeds = [{"x": part} for part in np.array_split(x, 5)]
    return found, error_curves(found.analysis, found.groups, feeds, **options)


@pytest.mark.parametrize("dependent", [False, True], ids=["copies", "mixtures"])
@pytest.mark.parametrize("seed", range(3))
def test_redundant_channels_go_first_and_cost_next_to_nothing(dependent, seed):
    model = networks.redundant_convolutions(dependent=dependent, seed=seed)
    _, curves = curves_of(model)
    (curve,) = curves.values()
    assert sorted(curve.order) == list(range(12))
    half = networks.NEEDED
    assert sum(curve.steps[:half]) < 0.2 * curve.steps[half]
    assert sum(curve.steps[:half]) < 0.01
    if not dependent:  # one of each pair is left
        values = networks.weights(model)["w1"].reshape(12, -1)
        assert len(np.unique(values[list(curve.order[half:])], axis=0)) == half


@pytest.mark.parametrize("dependent", [False, True], ids=["copies", "mixtures"])
def test_pruning_finds_redundant_channels_and_restores_the_network(tmp_path, dependent):
    model = networks.redundant_convolutions(dependent=dependent)
    path = tmp_path / "data.npz"
    np.savez(path, x=X)
    result = networks.pruned(model, "prune{macs=0.51 score=obs multiple_of=1}", path)
    assert networks.widths(result.model)["w1"][0] == networks.NEEDED
    assert networks.relative_error(model, result.model, UNSEEN) < 1e-5
    worse = networks.pruned(model, "prune{macs=0.51 score=random multiple_of=1 reconstruct=false}", path)
    assert networks.relative_error(model, worse.model, UNSEEN) > 0.05


@pytest.mark.parametrize("name", ["convolutions", "mixed"])
def test_products_with_too_many_inputs_lose_what_each_index_adds(name, monkeypatch):
    """No inverse: an index costs the square of what it adds, and the others are not moved."""
    model = convolutions() if name == "convolutions" else networks.mixed()
    found, usual = curves_of(model)
    monkeypatch.setattr(definite, "MOST_INPUTS", 1)
    _, curves = curves_of(model)
    assert curves.keys() == usual.keys()
    for group in found.groups:
        if group.id in curves:
            assert sorted(curves[group.id].order) == list(range(group.size))
            assert list(curves[group.id].steps) == sorted(curves[group.id].steps)
            # what is made up for costs less, but for the damping
            assert curves[group.id].steps[0] > 0.9 * usual[group.id].steps[0] - 1e-4


def test_the_run_says_what_is_not_refitted(tmp_path, monkeypatch):
    model = networks.redundant_convolutions(dependent=False)
    path = tmp_path / "data.npz"
    np.savez(path, x=X)
    monkeypatch.setattr(definite, "MOST_INPUTS", 1)
    monkeypatch.setattr(describe, "MOST_INPUTS", 1)
    result = networks.pruned(model, "prune{macs=0.51 score=obs multiple_of=1}", path)
    assert any("not refitted" in warning for warning in result.report["warnings"])
    assert not next(each for each in result.report["passes"] if each["name"] == "prune")["reconstruct"][
        "operators"
    ]


def test_steps_are_the_errors_of_refits():
    """For a linear consumer the sum of the steps is the least-squares error of what is left."""
    weights = {"w1": (6, 8), "b1": (8,), "w2": (8, 3)}
    model = build(
        "float[N,6] x", "float[N,3] y", "h = Gemm (x, w1, b1) r = Relu (h) y = MatMul (r, w2)", weights
    )
    x = np.random.default_rng(0).standard_normal((2000, 6)).astype(np.float32)
    _, curves = curves_of(model, x)
    (curve,) = curves.values()
    values = networks.weights(model)
    hidden = np.maximum(x @ values["w1"] + values["b1"], 0).astype(np.float64)
    y = hidden @ values["w2"]
    for count in range(1, 8):
        left = np.concatenate([hidden[:, list(curve.order[count:])], np.ones((len(x), 1))], axis=1)
        error = np.square(left @ np.linalg.lstsq(left, y, rcond=None)[0] - y).sum()
        energy = np.square(y - y.mean()).sum()
        assert sum(curve.steps[:count]) == pytest.approx(error / energy, rel=0.05, abs=0.003)


def test_groups_without_a_weighted_consumer_have_no_curve():
    body = 'h = Gemm (x, w1) k = Gemm (x, w2) y = Einsum <equation="ni,mi->nm"> (h, k)'
    model = build("float[N,6] x", "float[N,N] y", body, {"w1": (6, 8), "w2": (6, 8)})
    _, curves = curves_of(model, np.ones((10, 6), np.float32))
    assert curves == {}


@pytest.mark.parametrize("options", [{"threads": 2}, {"limit_bytes": 0}, {"limit_bytes": 30_000}])
def test_curves_depend_on_the_seed_only(options):
    assert curves_of(networks.mixed())[1] == curves_of(networks.mixed(), **options)[1]


def test_constant_inputs_and_dead_channels_have_finite_costs():
    model = networks.mixed()
    _, curves = curves_of(model, np.zeros_like(X[:20]))
    assert curves
    assert all(np.isfinite(curve.steps).all() for curve in curves.values())
    assert all(sorted(c.order) == list(range(len(c.order))) for c in curves.values())


def test_progress_counts_operators():
    seen: list[int] = []
    curves_of(networks.mixed(), progress=seen.append)
    assert seen == [1] * 3


SHORTCUT = """
a = Conv <pads=[1,1,1,1]> (x, w1)
r = Relu (a)
b = Conv <pads=[1,1,1,1]> (r, w2)
c = Relu (b)
d = Conv <pads=[1,1,1,1]> (c, w3)
e = Conv (r, w4)
f = Add (d, e)
g = Relu (f)
h = Conv (g, w5)
i = Relu (h)
j = Conv (i, w6)
p = GlobalAveragePool (j)
y = Flatten (p)
"""


def shortcut():
    """A residual block whose shortcut is a convolution that runs after the branch."""
    weights = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (12, 8, 3, 3), "w4": (12, 8, 1, 1), "w5": (10, 12, 3, 3),
               "w6": (5, 10, 1, 1)}  # fmt: skip
    return build("float[N,3,6,6] x", "float[N,5] y", SHORTCUT, weights)


def test_a_stream_may_be_computed_from_what_later_operators_read():
    found, curves = curves_of(shortcut())
    assert curves.keys() == {group.id for group in found.groups}


def cut_and_refitted(model, parts, seed=0):
    """An analysed model, what a first cut keeps of its groups, and the cut, refitted."""
    found = analyse(from_model(model))
    random = np.random.default_rng(seed)
    kept = {group.id: random.permutation(group.size) < group.size * 3 // 4 for group in found.groups}
    before = current(found, kept)
    refit(found.analysis, before.graph, before.keep, parts)
    return found, kept, before


MODELS = {
    "mixed": (networks.mixed, networks.images()),
    "convolutions": (convolutions, networks.images()),
    "layers": (lambda: networks.layers("GRU"), networks.sequences()),
    "unfused": (lambda: unfused(shortcut=False), networks.images()),
}


@pytest.mark.parametrize("name", MODELS)
def test_curves_of_a_cut_graph_rank_what_is_left(name):
    make, x = MODELS[name]
    parts = [{"x": part} for part in np.array_split(x, 5, axis=1 if name == "layers" else 0)]
    found, kept, before = cut_and_refitted(make(), parts)
    curves = error_curves(found.analysis, found.groups, parts, current=before)
    assert curves.keys() == error_curves(found.analysis, found.groups, parts).keys()
    for key, curve in curves.items():
        assert sorted(curve.order) == np.flatnonzero(kept[key]).tolist()
        assert len(curve.steps) == len(curve.order)
        assert min(curve.steps) >= 0


def chain():
    """Every group has one consumer."""
    body = """
    a = Conv <pads=[1,1,1,1]> (x, w1, b1)
    r = Relu (a)
    b = Conv <strides=[2,2]> (r, w2)
    s = Tanh (b)
    c = ConvTranspose <strides=[2,2]> (s, w3, b3)
    t = Relu (c)
    f = Flatten (t)
    g = Gemm (f, w4, b4)
    u = Relu (g)
    y = MatMul (u, w5)
    """
    weights = {"w1": (12, 3, 3, 3), "b1": (12,), "w2": (10, 12, 3, 3), "w3": (10, 8, 2, 2), "b3": (8,),
               "w4": (8 * 16, 14), "b4": (14,), "w5": (14, 5)}  # fmt: skip
    return build("float[N,3,6,6] x", "float[N,5] y", body, weights)


@pytest.mark.parametrize("seed", range(3))
def test_curves_of_a_cut_graph_are_those_of_the_smaller_model(seed):
    """Up to the numbers of indices, and to a factor: the energy of a stream is that in the original."""
    parts = [{"x": part} for part in np.array_split(X, 5)]
    found, kept, before = cut_and_refitted(chain(), parts, seed)
    curves = error_curves(found.analysis, found.groups, parts, current=before, seed=3)
    anew = analyse(from_model(to_model(before.graph)))
    smaller = error_curves(anew.analysis, anew.groups, parts, seed=3)
    assert curves.keys() == smaller.keys() == kept.keys()
    for key, curve in curves.items():
        left = np.flatnonzero(kept[key])
        assert curve.order == tuple(left[list(smaller[key].order)].tolist())
        ratios = np.divide(curve.steps, smaller[key].steps)
        # sums of float32 products are the same up to their order
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-3)


@pytest.mark.parametrize("limit_bytes", [0, 30_000])
def test_memory_does_not_change_curves_of_a_cut_graph(limit_bytes):
    parts = [{"x": part} for part in np.array_split(X, 5)]
    found, _, before = cut_and_refitted(networks.mixed(), parts)
    some, more = (
        error_curves(found.analysis, found.groups, parts, current=before, **options)
        for options in ({}, {"limit_bytes": limit_bytes})
    )
    assert some == more


def test_a_current_graph_that_lost_nothing_has_the_curves_of_the_original():
    found, curves = curves_of(networks.mixed())
    parts = [{"x": part} for part in np.array_split(X, 5)]
    whole = current(found, {})
    assert error_curves(found.analysis, found.groups, parts, current=whole) == curves


def test_a_shortcut_that_was_not_cut_is_read_from_the_original():
    parts = [{"x": part} for part in np.array_split(X, 5)]
    found = analyse(from_model(shortcut()))
    (last,) = [group for group in found.groups if group.size == 10]
    before = current(found, {last.id: np.arange(10) < 8})
    curves = error_curves(found.analysis, found.groups, parts, current=before)
    assert len(curves) == len(found.groups)


def test_masked_outputs_do_not_hide_what_a_cut_does():
    weights = {"w1": (6, 16), "w2": (16, 16), "w3": (16, 5)}
    body = "h = Gemm (x, w1) r = Relu (h) k = Gemm (r, w2) s = Relu (k) z = Gemm (s, w3) y = Add (z, hidden)"
    hidden = np.array([0, 0, -np.inf, 0, 0], np.float32)
    model = build("float[N,6] x", "float[N,5] y", body, {**weights, "hidden": hidden})
    x = np.random.default_rng(0).standard_normal((400, 6)).astype(np.float32)
    record = networks.pruned(model, "prune{macs=0.5 multiple_of=1}", {"x": x}).report["passes"][-1]
    assert record["curves"]
    for curve in record["curves"].values():
        assert all(np.isfinite(curve["errors"]))
        assert 0 < curve["sensitivity"]["outputs"] < np.inf


def test_a_model_that_takes_many_samples_at_a_time_is_probed_with_two_batches():
    weights = {"w1": (12, 16), "w2": (16, 5)}
    model = build(
        "float[300,12] x", "float[300,5] y", "h = Gemm (x, w1) r = Relu (h) y = Gemm (r, w2)", weights
    )
    x = np.random.default_rng(0).standard_normal((900, 12)).astype(np.float32)
    record = networks.pruned(model, "prune{ratio=0.5}", {"x": x}).report["passes"][-1]
    assert record["reconstruct"]["operators"]


def test_channels_that_never_fire_say_nothing_of_those_that_do():
    """Nine tenths of each layer are dead: all of it goes before anything that is alive, and the last layer is not emptied."""
    random = np.random.default_rng(0)
    weights = {
        name: random.standard_normal(shape).astype(np.float32) / 2
        for name, shape in {"w1": (8, 40), "w2": (40, 80), "w3": (80, 3)}.items()
    }
    weights |= {"b1": np.zeros(40, np.float32), "b2": np.zeros(80, np.float32)}
    weights["b1"][8:], weights["b2"][8:] = -100, -1000
    body = """
        a = Gemm (x, w1, b1) r = Relu (a)
        c = Gemm (r, w2, b2) s = Relu (c)
        y = MatMul (s, w3)
    """
    model = build("float[N,8] x", "float[N,3] y", body, weights)
    x = random.standard_normal((96, 8)).astype(np.float32)
    result = networks.pruned(model, "prune{macs=0.033 multiple_of=1}", {"x": x})
    curves = result.report["passes"][-1]["curves"]
    assert all(curve["sensitivity"]["outputs"] > 1e-4 for curve in curves.values())
    for group in result.plan.groups:
        assert max(group.kept) < 8
        assert len(group.kept) >= 5


@pytest.mark.parametrize(
    ("steps", "removed"),
    [
        ([1.0] * 10, [6, 8, 9]),
        ([0.0] * 6 + [1.0] * 4, [8, 9]),
        ([0.0] * 9 + [1.0], [9]),
        ([0.0] * 10, [9]),
        ([1e-9, 2e-9, *[1.0] * 8], [7, 9]),
        ([1.0], []),
    ],
)
def test_trials_begin_with_all_that_is_free_and_go_on_to_the_last_but_one(steps, removed):
    group = SimpleNamespace(size=len(steps))
    found = list(sensitivity.trials(group, Curve(tuple(range(len(steps))), tuple(steps))))
    assert [number for number, _ in found] == removed
    assert [local for _, local in found] == pytest.approx([sum(steps[:number]) for number in removed])


@pytest.mark.parametrize(
    ("answers", "removed"),
    [
        ([0.5], 6),
        ([0.0, 0.5], 8),
        ([0.0, SurgeonError("does not run")], 6),
        ([0.0, np.nan], 6),
        ([0.0, 0.0, 0.0], 9),
        ([SurgeonError("does not run")], None),
        ([None], None),
    ],
)
def test_a_trial_goes_on_until_the_outputs_change_and_keeps_what_was_measured(monkeypatch, answers, removed):
    group, left = SimpleNamespace(size=10), list(answers)

    def divergence(*_):
        answer = left.pop(0)
        if isinstance(answer, SurgeonError):
            raise answer
        return answer

    monkeypatch.setattr(sensitivity, "_divergence", divergence)
    curve = Curve(tuple(range(10)), (1.0,) * 10)
    probe = sensitivity._probe(analyse(from_model(networks.mixed())).analysis, group, curve, None, 0)
    assert (probe.removed if probe else None) == removed
    assert not left
