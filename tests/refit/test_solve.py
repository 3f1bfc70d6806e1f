"""The closed forms against brute force: elimination against refits of every subset, ridge against least squares."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from surgeon.refit.solve import STRENGTHS, Elimination, Moments, best_ridge, eliminate, ridge


def moments_of(x, t) -> Moments:
    result = Moments.empty(x.shape[1], t.shape[1])
    result.add(x, t)
    return result


def problem(seed: int, inputs: int = 6, outputs: int = 3, places: int = 200):
    """Correlated inputs, and a target that is not quite linear in them."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((places, inputs)) @ random.standard_normal((inputs, inputs))
    x += random.standard_normal(inputs)
    w = random.standard_normal((inputs + 1, outputs))
    t = x @ w[:-1] + w[-1] + 0.1 * random.standard_normal((places, outputs))
    return x, t, w


def refit_cost(hessian, w, rows) -> float:
    """The least quadratic error of weights with zero ``rows``, the others free."""
    free = np.setdiff1d(np.arange(len(w)), rows)
    root = np.linalg.cholesky(hessian).T
    best = np.zeros_like(w)
    best[free] = np.linalg.lstsq(root[:, free], root @ w, rcond=None)[0]
    return float(np.square(root @ (best - w)).sum())


def damped(moments: Moments, strength: float):
    scale = np.diag(moments.g)[:-1].mean()
    return moments.g + strength * scale * np.eye(len(moments.g))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("block", [1, 2])
def test_every_step_costs_what_a_refit_says(seed, block):
    channels = 8 // block
    x, t, w = problem(seed, inputs=8)
    moments = moments_of(x, t)
    blocks = np.random.default_rng(seed).permutation(8).reshape(channels, block)
    hessian = damped(moments, 1e-3)
    order, steps = eliminate([(Elimination.start(moments, w, blocks), 1.0)], channels)
    assert sorted(order) == list(range(channels))
    for count in range(1, channels + 1):
        cost = refit_cost(hessian, w, blocks[order[:count]].ravel())
        assert sum(steps[:count]) == pytest.approx(cost, rel=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_the_first_removal_is_the_best_and_no_subset_beats_the_bound(seed):
    x, t, w = problem(seed, inputs=6)
    moments, blocks = moments_of(x, t), np.arange(6)[:, None]
    hessian = damped(moments, 1e-3)
    order, steps = eliminate([(Elimination.start(moments, w, blocks), 1.0)], 6)
    for count in range(1, 7):
        costs = {subset: refit_cost(hessian, w, np.array(subset)) for subset in combinations(range(6), count)}
        best = min(costs.values())
        assert best <= sum(steps[:count]) * (1 + 1e-9)
        if count in (1, 6):
            assert sum(steps[:count]) == pytest.approx(best, rel=1e-6)
            assert costs[tuple(sorted(order[:count]))] == pytest.approx(best, rel=1e-6)


def test_costs_do_not_change_what_they_look_at():
    x, t, w = problem(0)
    elimination = Elimination.start(moments_of(x, t), w, np.arange(6)[:, None])
    alive = np.arange(6)
    np.testing.assert_array_equal(elimination.costs(alive), elimination.costs(alive))
    elimination.remove(2)
    assert not elimination.w[2].any()
    alive = np.delete(alive, 2)
    assert np.isfinite(elimination.costs(alive)).all()


def test_several_products_are_weighed_by_their_energy():
    first, second = problem(1), problem(2)
    blocks = np.arange(6)[:, None]

    def parts():
        return [Elimination.start(moments_of(x, t), w, blocks) for x, t, w in (first, second)]

    one, two = parts()
    total = one.costs(np.arange(6)) / 3.0 + two.costs(np.arange(6)) / 0.5
    order, steps = eliminate([(part, energy) for part, energy in zip(parts(), (3.0, 0.5), strict=True)], 6)
    assert order[0] == int(np.argmin(total))
    assert steps[0] == pytest.approx(total.min())


def test_a_copy_of_an_input_costs_next_to_nothing():
    x, _, w = problem(3, inputs=5)
    x = np.concatenate([x, x[:, 1:2]], axis=1)
    w = np.concatenate([w[:5], w[1:2] * 0.7, w[5:]])
    t = x @ w[:-1] + w[-1]
    moments, blocks = moments_of(x, t), np.arange(6)[:, None]
    for strength, least in ((1e-3, 0.1), (1e-7, 1e-5)):
        order, steps = eliminate([(Elimination.start(moments, w, blocks, strength), 1.0)], 6)
        assert order[0] in (1, 5)
        assert steps[0] < least * steps[1]


@pytest.mark.parametrize("seed", range(4))
def test_a_tiny_strength_is_least_squares(seed):
    x, t, w = problem(seed)
    extended = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    expected = np.linalg.lstsq(extended, t, rcond=None)[0]
    np.testing.assert_allclose(ridge(moments_of(x, t), w * 0, 1e-12), expected, rtol=1e-5, atol=1e-7)


def test_a_large_strength_keeps_the_start_but_not_its_bias():
    x, t, w = problem(5)
    start = w + np.random.default_rng(0).standard_normal(w.shape)
    solved = ridge(moments_of(x, t), start, 1e9)
    np.testing.assert_allclose(solved[:-1], start[:-1], atol=1e-5)
    np.testing.assert_allclose(solved[-1], (t - x @ start[:-1]).mean(axis=0), rtol=1e-4, atol=1e-4)


def test_inputs_that_never_move_keep_their_weights():
    x, t, w = problem(6)
    x[:, 2] = 0
    solved = ridge(moments_of(x, t), w, 1e-5)
    np.testing.assert_allclose(solved[2], w[2])
    assert np.isfinite(ridge(Moments.empty(6, 3), w, 1e-5)).all()


def test_error_and_energy_are_sums_of_squares():
    x, t, w = problem(7)
    moments = moments_of(x[:50], t[:50])
    moments.add(x[50:], t[50:])
    assert moments.error(w) == pytest.approx(np.square(x @ w[:-1] + w[-1] - t).sum(), rel=1e-6)
    assert moments.energy() == pytest.approx(np.square(t - t.mean(axis=0)).sum())
    assert moments.count == len(x)


@pytest.mark.parametrize("seed", range(4))
def test_the_strength_is_chosen_by_what_was_held_out(seed):
    x, t, w = problem(seed, inputs=12, places=60)
    fit, held_out = moments_of(x[:20], t[:20]), moments_of(x[20:], t[20:])
    best = best_ridge(fit, held_out, w * 0.9)
    errors = [held_out.error(ridge(fit, w * 0.9, strength)) for strength in STRENGTHS]
    assert held_out.error(best) == min(*errors, held_out.error(w * 0.9))


def test_the_start_stays_where_nothing_beats_it():
    x, _, w = problem(8)
    random = np.random.default_rng(0)
    fit = moments_of(x, random.standard_normal((len(x), 3)))
    assert best_ridge(fit, moments_of(x, x @ w[:-1] + w[-1]), w) is w
    assert best_ridge(fit, Moments.empty(6, 3), w) is w
    broken = moments_of(np.full_like(x, np.nan), random.standard_normal((len(x), 3)))
    assert best_ridge(broken, fit, w) is w
