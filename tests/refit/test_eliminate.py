"""Elimination against brute force: every step costs what a refit of the rest says."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from refit.products import extended, problem

from surgeon.refit.eliminate import Apart, Elimination, eliminate, inverted


def gram_of(x):
    x = extended(x)
    return x.T @ x


def refit_cost(hessian, w, rows) -> float:
    """The least quadratic error of weights with zero ``rows``, the others free."""
    free = np.setdiff1d(np.arange(len(w)), rows)
    root = np.linalg.cholesky(hessian).T
    best = np.zeros_like(w)
    best[free] = np.linalg.lstsq(root[:, free], root @ w, rcond=None)[0]
    return float(np.square(root @ (best - w)).sum())


def damped(gram, strength: float):
    return gram + strength * np.diag(gram)[:-1].mean() * np.eye(len(gram))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("block", [1, 2])
def test_every_step_costs_what_a_refit_says(seed, block):
    channels = 8 // block
    x, _, w = problem(seed, inputs=8)
    blocks = np.random.default_rng(seed).permutation(8).reshape(channels, block)
    hessian = damped(gram_of(x), 1e-3)
    elimination = Elimination.start(gram_of(x), w, blocks)
    order, steps = eliminate([(elimination, 1.0)], np.arange(channels))
    assert sorted(order) == list(range(channels))
    for count in range(1, channels + 1):
        cost = refit_cost(hessian, w, blocks[order[:count]].ravel())
        assert sum(steps[:count]) == pytest.approx(cost, rel=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_the_first_removal_is_the_best_and_no_subset_beats_the_bound(seed):
    x, _, w = problem(seed, inputs=6)
    gram, blocks = gram_of(x), np.arange(6)[:, None]
    hessian = damped(gram, 1e-3)
    order, steps = eliminate([(Elimination.start(gram, w, blocks), 1.0)], np.arange(6))
    for count in range(1, 7):
        costs = {subset: refit_cost(hessian, w, np.array(subset)) for subset in combinations(range(6), count)}
        best = min(costs.values())
        assert best <= sum(steps[:count]) * (1 + 1e-9)
        if count in (1, 6):
            assert sum(steps[:count]) == pytest.approx(best, rel=1e-6)
            assert costs[tuple(sorted(order[:count]))] == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_left_has_the_weights_of_a_refit(seed):
    x, _, w = problem(seed, inputs=8)
    hessian = damped(gram_of(x), 1e-3)
    elimination = Elimination.start(gram_of(x), w, np.arange(8).reshape(4, 2))
    for gone in (2, 0):
        elimination.remove(gone)
    free = [2, 3, 6, 7, 8]  # the bias among them, which never goes and is not asked for
    expected = np.linalg.solve(hessian[np.ix_(free, free)], hessian[free] @ w)
    np.testing.assert_allclose(elimination.w[free[:-1]], expected[:-1], rtol=1e-6, atol=1e-9)
    assert not elimination.w[[0, 1, 4, 5]].any()


@pytest.mark.parametrize("seed", range(4))
def test_indices_that_are_gone_are_as_if_they_had_never_been(seed):
    """Zeros stand for the rows of indices that are gone; those that are there go as in a product without the others."""
    x, _, w = problem(seed, inputs=8)
    gram, alive = gram_of(x), np.array([1, 3, 4])
    blocks = np.zeros((5, 2), np.int64)
    blocks[alive] = [[5, 2], [0, 7], [3, 1]]
    order, steps = eliminate([(Elimination.start(gram, w, blocks), 2.0)], alive)
    dense_order, dense_steps = eliminate([(Elimination.start(gram, w, blocks[alive]), 2.0)], np.arange(3))
    assert order == alive[dense_order].tolist()
    assert steps == dense_steps
    assert alive.tolist() == [1, 3, 4]


@pytest.mark.parametrize("seed", range(4))
def test_some_of_the_rows_cost_what_they_cost_beside_the_others(seed):
    """A group has a few rows of a product: the others are free to make up for it, but are not worked with."""
    x, _, w = problem(seed, inputs=8)
    gram, blocks = gram_of(x), np.array([[6, 1], [3, 4]])
    hessian, inverse = damped(gram, 1e-3), inverted(gram)
    elimination = Elimination.among(inverse, w, blocks)
    assert elimination.w.shape == (4, w.shape[1])
    order, steps = eliminate([(elimination, 1.0)], np.arange(2))
    for count in (1, 2):
        cost = refit_cost(hessian, w, blocks[order[:count]].ravel())
        assert sum(steps[:count]) == pytest.approx(cost, rel=1e-6)
    np.testing.assert_array_equal(inverse, inverted(gram))


def test_nothing_to_remove_is_no_step():
    x, _, w = problem(0)
    elimination = Elimination.start(gram_of(x), w, np.arange(6)[:, None])
    assert eliminate([(elimination, 1.0)], np.array([], np.int64)) == ([], [])
    np.testing.assert_array_equal(elimination.w, w[:6])


def test_the_start_is_not_changed():
    x, _, w = problem(0)
    gram = gram_of(x)
    given = gram.copy(), w.copy()
    eliminate([(Elimination.start(gram, w, np.arange(6)[:, None]), 1.0)], np.arange(6))
    np.testing.assert_array_equal(gram, given[0])
    np.testing.assert_array_equal(w, given[1])


def test_costs_do_not_change_what_they_look_at():
    x, _, w = problem(0)
    elimination = Elimination.start(gram_of(x), w, np.arange(6)[:, None])
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
        return [Elimination.start(gram_of(x), w, blocks) for x, _, w in (first, second)]

    one, two = parts()
    total = one.costs(np.arange(6)) / 3.0 + two.costs(np.arange(6)) / 0.5
    weighed = [(part, energy) for part, energy in zip(parts(), (3.0, 0.5), strict=True)]
    order, steps = eliminate(weighed, np.arange(6))
    assert order[0] == int(np.argmin(total))
    assert steps[0] == pytest.approx(total.min())


def test_a_copy_of_an_input_costs_next_to_nothing():
    x, _, w = problem(3, inputs=5)
    x = np.concatenate([x, x[:, 1:2]], axis=1)
    w = np.concatenate([w[:5], w[1:2] * 0.7, w[5:]])
    for strength, least in ((1e-3, 0.1), (1e-7, 1e-5)):
        elimination = Elimination.start(gram_of(x), w, np.arange(6)[:, None], strength)
        order, steps = eliminate([(elimination, 1.0)], np.arange(6))
        assert order[0] in (1, 5)
        assert steps[0] < least * steps[1]


def test_an_input_that_never_moves_is_free():
    x, _, w = problem(4)
    x[:, 3] = 0
    order, steps = eliminate([(Elimination.start(gram_of(x), w, np.arange(6)[:, None]), 1.0)], np.arange(6))
    assert order[0] == 3
    assert steps[0] == pytest.approx(1e-3 * np.square(x).sum(axis=0).mean() * np.square(w[3]).sum(), rel=1e-6)


def test_what_stands_apart_costs_what_it_adds():
    random = np.random.default_rng(0)
    x, w = random.standard_normal((50, 12)), random.standard_normal((12, 5))
    blocks = np.array([[0, 7], [3, 4], [11, 2]])
    grams = np.stack([x[:, rows].T @ x[:, rows] for rows in blocks])
    problem = Apart.among(grams, w, blocks)
    expected = [np.square(x[:, rows] @ w[rows]).sum() for rows in blocks]
    np.testing.assert_allclose(problem.costs(np.arange(3)), expected)
    order, steps = eliminate([(problem, 1.0)], np.arange(3))
    assert order == np.argsort(expected).tolist()
    np.testing.assert_allclose(steps, np.sort(expected))
