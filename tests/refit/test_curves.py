"""Error curves: what costs nothing goes first, and what a curve promises is what refitting keeps."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build
from refit import networks

from surgeon.engine import analyse
from surgeon.graph.load import from_model
from surgeon.refit.curves import error_curves

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
    body = "h = Gemm (x, w1) k = Gemm (x, w2) t = Transpose <perm=[1,0]> (k) y = MatMul (h, t)"
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
