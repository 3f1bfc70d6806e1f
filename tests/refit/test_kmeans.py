"""K-means of weighted numbers: no step makes it worse, and small cases are as good as the best of all."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.refit.kmeans import kmeans

STARTS = ["k-means++", "linear", "density", "random"]


def cost(numbers: np.ndarray, weights: np.ndarray, values: np.ndarray) -> float:
    return float((weights * np.square(numbers[:, None] - values).min(axis=1)).sum())


def best_cost(numbers: np.ndarray, weights: np.ndarray, count: int) -> float:
    """Of all ways to cut the sorted numbers into runs."""
    order = np.argsort(numbers)
    numbers, weights = numbers[order], weights[order]
    found = np.inf
    for cuts in itertools.combinations(range(1, len(numbers)), count - 1):
        total = 0.0
        for start, end in itertools.pairwise((0, *cuts, len(numbers))):
            run, mass = numbers[start:end], weights[start:end]
            total += float((mass * (run - np.average(run, weights=mass)) ** 2).sum())
        found = min(found, total)
    return found


@pytest.mark.parametrize("start", STARTS)
def test_each_value_is_the_mean_of_its_numbers(start) -> None:
    random = np.random.default_rng(0)
    numbers, weights = random.standard_normal(500), random.random(500) + 0.1
    values = kmeans(numbers, weights, 8, start, 0)
    assert len(values) == 8
    assert (np.diff(values) > 0).all()
    nearest = np.abs(numbers[:, None] - values).argmin(axis=1)
    means = [np.average(numbers[nearest == k], weights=weights[nearest == k]) for k in range(8)]
    assert values == pytest.approx(np.array(means), abs=0.02)
    assert cost(numbers, weights, values) < 0.06 * cost(
        numbers, weights, np.array([np.average(numbers, weights=weights)])
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4))
def test_small_cases_come_near_to_the_best(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    numbers, weights = random.standard_normal(9), random.random(9) + 0.1
    best = best_cost(numbers, weights, count)
    found = min(cost(numbers, weights, kmeans(numbers, weights, count, start, seed)) for start in STARTS)
    assert best * (1 - 1e-9) <= found <= max(2.0 * best, 1e-12)


@pytest.mark.parametrize("start", STARTS)
def test_fewer_different_numbers_than_values(start) -> None:
    numbers = np.array([1.0, 1.0, -2.0])
    assert kmeans(numbers, np.ones(3), 4, start, 0).tolist() == [-2.0, 1.0, 1.0, 1.0]
    assert kmeans(np.zeros(0), np.zeros(0), 2, start, 0).tolist() == [0.0, 0.0]
