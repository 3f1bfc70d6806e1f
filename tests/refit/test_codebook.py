"""The constraint of few values: never more of them, no worse than k-means, zeros stay."""

from __future__ import annotations

import numpy as np
import pytest
from refit.test_sparse import problem

from surgeon.refit.codebook import Codebook
from surgeon.refit.rounding import distance


def book(ideal: np.ndarray, values: int, *, per_output: bool = False, zeros=None) -> Codebook:
    none = np.zeros(ideal[:, :-1].shape, bool)
    return Codebook(values, per_output, none if zeros is None else zeros, "k-means++", 0)


@pytest.mark.parametrize("values", [2, 3, 16])
@pytest.mark.parametrize("groups", [1, 3])
def test_no_more_values_than_asked_for(values: int, groups: int) -> None:
    ideal, hessian = problem(20, 6, groups=groups)
    found = book(ideal, values)(ideal, hessian)[:, :-1]
    assert len(np.unique(found)) <= values
    found = book(ideal, values, per_output=True)(ideal, hessian)[:, :-1]
    assert all(len(np.unique(found[g, :, o])) <= values for g in range(groups) for o in range(6))


@pytest.mark.parametrize("per_output", [False, True])
def test_it_does_better_than_k_means(per_output: bool) -> None:
    gains = []
    for seed in range(5):
        ideal, hessian = problem(32, 8, seed=seed)
        constraint = book(ideal, 6, per_output=per_output)
        weights = ideal[:, :-1]
        plain = ideal.copy()
        plain[:, :-1] = constraint.allowed(constraint.table(weights, np.ones_like(weights))).nearest(weights)
        found = constraint(ideal, hessian)
        gains.append(distance(found, ideal, hessian).sum() / distance(plain, ideal, hessian).sum())
    assert max(gains) < 0.9
    assert np.mean(gains) < 0.65


@pytest.mark.parametrize("per_output", [False, True])
def test_zeros_stay_and_count(per_output: bool) -> None:
    ideal, hessian = problem(24, 5)
    zeros = np.random.default_rng(0).random((1, 24, 5)) < 0.6
    ideal[:, :-1][zeros] = 0
    found = book(ideal, 4, per_output=per_output, zeros=zeros)(ideal, hessian)[:, :-1]
    assert (found[zeros] == 0).all()
    if per_output:
        assert all(len(np.unique(found[0, :, o])) <= 4 for o in range(5))
    else:
        assert len(np.unique(found)) <= 4


def test_values_are_the_best_for_their_places() -> None:
    ideal, hessian = problem(12, 3)
    found = book(ideal, 3)(ideal, hessian)
    least = distance(found, ideal, hessian).sum()
    for value in np.unique(found[:, :-1]):
        for shift in (-1e-3, 1e-3):
            moved = found.copy()
            moved[:, :-1][found[:, :-1] == value] += shift
            assert distance(moved, ideal, hessian).sum() >= least * (1 - 1e-9)


def test_as_many_values_as_weights_change_nothing() -> None:
    ideal, hessian = problem(4, 2)
    assert book(ideal, 8)(ideal, hessian) == pytest.approx(ideal, abs=1e-6)
