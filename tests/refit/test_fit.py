"""The best weights of one product: ridge regression against least squares, judged by what was held out."""

from __future__ import annotations

import numpy as np
import pytest
from refit.products import every_fourth, extended, problem, sample_of

from surgeon.refit.fit import STRENGTHS, Effort, fit
from surgeon.refit.through import Activation

RELU = Activation(lambda x: np.maximum(x, 0))


def least_squares(x, t, held_out):
    return np.linalg.lstsq(extended(x)[~held_out], t[~held_out], rcond=None)[0]


def errors(sample, weights):
    """Squared errors behind the activation on held-out places, and the targets' energy there around the mean of all."""
    x, t, other = (
        0 if each is None else each.astype(np.float64) for each in (sample.x, sample.target, sample.other)
    )
    seen = sample.through.function if sample.through is not None else (lambda values: values)
    wanted = seen(t + other)
    energy = np.square(wanted - wanted.mean(axis=1, keepdims=True))[:, sample.held_out].sum()
    return np.square(seen(x @ weights + other) - wanted)[:, sample.held_out].sum(), energy


@pytest.mark.parametrize("seed", range(4))
def test_a_tiny_strength_is_least_squares(seed):
    x, t, w = problem(seed)
    found = fit(sample_of(x, t), w[None] * 0, Effort((1e-12,), 0))
    best = least_squares(x, t, every_fourth(len(x)))
    # sums of float32 products are known to about 1e-6 of the largest: compare what the weights compute
    np.testing.assert_allclose(extended(x) @ found.weights[0], extended(x) @ best, atol=2e-4, rtol=2e-4)


def test_a_large_strength_keeps_the_start_but_not_its_bias():
    x, t, w = problem(5)
    start = w + np.random.default_rng(0).standard_normal(w.shape)
    start[-1] += 10
    solved = fit(sample_of(x, t), start[None], Effort((1e9,), 0)).weights[0]
    np.testing.assert_allclose(solved[:-1], start[:-1], atol=1e-5)
    fitted = ~every_fourth(len(x))
    mean = (t - x @ start[:-1])[fitted].mean(axis=0)
    np.testing.assert_allclose(solved[-1], mean, rtol=1e-4, atol=1e-4)


def test_inputs_that_never_move_keep_their_weights():
    x, t, w = problem(6)
    x[:, 2] = 0
    start = w.copy()
    start[[0, 1, 3]] *= 0.5
    found = fit(sample_of(x, t), start[None], Effort((1e-5,), 0))
    assert found.after < 0.1 * found.before
    np.testing.assert_allclose(found.weights[0, 2], w[2], rtol=1e-9)


def test_where_there_is_no_bias_to_find_none_is_made():
    """An operator without a place for a bias has zeros where others have the 1."""
    x, t, w = problem(6)
    w[-1] = 0
    sample = sample_of(x, t)
    sample.x[..., -1] = 0
    found = fit(sample, w[None] * 0.5)
    assert found.after < 0.5 * found.before
    assert not found.weights[0, -1].any()


@pytest.mark.parametrize("seed", range(4))
def test_the_strength_is_chosen_by_what_was_held_out(seed):
    x, t, w = problem(seed, inputs=12, places=60)
    held_out = np.arange(60) >= 20
    sample, start = sample_of(x, t, held_out), w[None] * 0.9
    found = fit(sample, start)
    each = [fit(sample, start, Effort((strength,), 0)) for strength in STRENGTHS]
    assert found.after == min(one.after for one in each)
    assert found.after <= found.before
    assert any(np.array_equal(found.weights, one.weights) for one in each)


@pytest.mark.parametrize(("through", "with_other"), [(None, False), (RELU, False), (RELU, True)])
def test_errors_are_sums_of_squares_over_energy(through, with_other):
    x, t, w = problem(7)
    other = np.random.default_rng(1).standard_normal(t.shape) if with_other else None
    sample, start = sample_of(x, t, other=other, through=through), w[None] * 0.8
    found = fit(sample, start)
    for weights, claimed in ((start, found.before), (found.weights, found.after)):
        error, energy = errors(sample, weights)
        assert claimed == pytest.approx(error / energy, rel=1e-4)
    assert found.after < found.before


def test_the_start_stays_where_nothing_beats_it():
    x, t, w = problem(8)
    held_out = every_fourth(len(x))
    t = extended(x) @ w
    t[~held_out] = np.random.default_rng(0).standard_normal(t.shape)[~held_out]
    found = fit(sample_of(x, t), w[None])
    np.testing.assert_array_equal(found.weights[0], w)
    assert found.before == found.after


@pytest.mark.parametrize("held_out", [np.zeros(200, bool), np.ones(200, bool)], ids=["none", "all"])
@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value")
def test_the_start_stays_where_nothing_judges_or_nothing_is_fitted(held_out):
    x, t, w = problem(8)
    found = fit(sample_of(x, t, held_out), w[None] * 0.5)
    np.testing.assert_array_equal(found.weights[0], w * 0.5)
    assert (found.before, found.after) == (0.0, 0.0)


@pytest.mark.parametrize("through", [None, RELU], ids=["plain", "relu"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("which", "place"), [
    pytest.param("x", 0, id="fitted inputs"),
    pytest.param("x", 3, id="inputs held out"),
    pytest.param("target", 0, id="fitted targets"),
    pytest.param("target", 3, id="targets held out"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
def test_the_start_stays_where_numbers_are_not_finite(through, value, place, which):
    x, t, w = problem(8)
    (x if which == "x" else t)[place, 0] = value
    found = fit(sample_of(x, t, through=through), w[None] * 0.9)
    np.testing.assert_array_equal(found.weights[0], w * 0.9)
    assert found.before == found.after
    assert np.isfinite(found.after)


def test_groups_are_fitted_each_for_itself():
    problems = [problem(seed, places=80) for seed in range(3)]
    x, t, w = (np.stack(each) for each in zip(*problems, strict=True))
    w[1] *= 0.7
    together = fit(sample_of(x, t), w)
    alone = [fit(sample_of(x[k], t[k]), w[k : k + 1]) for k in range(3)]
    for k in range(3):
        np.testing.assert_array_equal(together.weights[k], alone[k].weights[0])
    energies = [errors(sample_of(x[k], t[k]), w[k : k + 1])[1] for k in range(3)]
    for kind in ("before", "after"):
        total = sum(getattr(one, kind) * energy for one, energy in zip(alone, energies, strict=True))
        assert getattr(together, kind) == pytest.approx(total / sum(energies), rel=1e-4)


def test_one_group_that_is_not_finite_does_not_stop_the_others():
    problems = [problem(seed, places=80) for seed in range(2)]
    x, t, w = (np.stack(each) for each in zip(*problems, strict=True))
    x[0, :, 1] = np.nan
    found = fit(sample_of(x, t), w * 0.8)
    np.testing.assert_array_equal(found.weights[0], w[0] * 0.8)
    assert 0 < found.after < 0.5 * found.before


def test_what_is_given_is_not_changed():
    x, t, w = problem(1)
    other = np.random.default_rng(1).standard_normal(t.shape)
    sample, start = sample_of(x, t, other=other, through=RELU), w[None] * 0.9
    copies = [each.copy() for each in (sample.x, sample.target, sample.other, start)]
    fit(sample, start)
    for each, copy in zip((sample.x, sample.target, sample.other, start), copies, strict=True):
        np.testing.assert_array_equal(each, copy)
