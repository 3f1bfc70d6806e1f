"""Rounding with error feedback: on the grid, never worse than nearest, and near to the best there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.refit.rounding import Rounded, distance


def problem(seed, groups, inputs, outputs, correlation=0.9, bits=3):
    """Weights, a matrix of inputs that go together, and a grid."""
    random = np.random.default_rng(seed)
    ideal = random.standard_normal((groups, inputs + 1, outputs))
    shared = random.standard_normal((groups, 50, 1))
    x = correlation * shared + (1 - correlation) * random.standard_normal((groups, 50, inputs + 1))
    x[..., -1] = 1  # the bias
    hessian = x.swapaxes(1, 2) @ x + 1e-3 * np.eye(inputs + 1)
    most = 2 ** (bits - 1) - 1
    scale = np.broadcast_to(np.abs(ideal[:, :-1]).max(axis=1, keepdims=True) / most, ideal[:, :-1].shape)
    return ideal, hessian, Rounded(scale, np.zeros_like(scale), -most, most)


def nearest(constraint, ideal):
    return np.concatenate([constraint.nearest(ideal[:, :-1]), ideal[:, -1:]], axis=1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(1, 5),
    st.floats(0, 0.99),
    st.booleans(),
)
def test_never_worse_than_nearest_and_on_the_grid(seed, groups, inputs, outputs, correlation, ordered):
    ideal, hessian, grid = problem(seed, groups, inputs, outputs, correlation)
    for sweeps in (0, 2):
        constraint = Rounded(grid.scale, grid.zero, grid.least, grid.most, ordered=ordered, sweeps=sweeps)
        found = constraint(ideal, hessian)
        plain = distance(nearest(constraint, ideal), ideal, hessian)
        assert (distance(found, ideal, hessian) <= plain * (1 + 1e-9) + 1e-12).all()
        steps = found[:, :-1] / grid.scale
        assert np.abs(steps - np.rint(steps)).max() < 1e-9
        assert np.abs(np.rint(steps)).max() <= grid.most


@pytest.mark.parametrize("seed", range(8))
def test_near_to_the_best_of_all_roundings(seed):
    ideal, hessian, constraint = problem(seed, 1, 5, 1, correlation=0.7)
    bias = hessian[0, -1, -1]
    schur = hessian[0, :-1, :-1] - np.outer(hessian[0, :-1, -1], hessian[0, -1, :-1]) / bias
    scale = constraint.scale[0, :, 0]
    best = min(
        (np.array(steps) * scale - ideal[0, :-1, 0]) @ schur @ (np.array(steps) * scale - ideal[0, :-1, 0])
        for steps in itertools.product(range(constraint.least, constraint.most + 1), repeat=5)
    )
    found = distance(constraint(ideal, hessian), ideal, hessian)[0, 0]
    plain = distance(nearest(constraint, ideal), ideal, hessian)[0, 0]
    assert best - 1e-9 <= found <= plain + 1e-9
    assert found <= best + 0.25 * (plain - best) + 1e-9


def test_feedback_pays_where_inputs_go_together():
    ideal, hessian, constraint = problem(0, 1, 200, 16, correlation=0.6)
    plain = distance(nearest(constraint, ideal), ideal, hessian).sum()
    fed_back = Rounded(constraint.scale, constraint.zero, constraint.least, constraint.most, sweeps=0)
    assert distance(fed_back(ideal, hessian), ideal, hessian).sum() < 0.3 * plain
    assert distance(constraint(ideal, hessian), ideal, hessian).sum() < 0.2 * plain


def test_without_correlation_it_is_nearest():
    ideal, _, constraint = problem(3, 2, 30, 4)
    hessian = np.broadcast_to(np.diag(np.arange(1.0, 32.0)), (2, 31, 31))
    assert np.array_equal(constraint(ideal, hessian), nearest(constraint, ideal))


@pytest.mark.parametrize("ordered", [False, True])
def test_blocks_of_rows_do_not_change_the_result(ordered, monkeypatch):
    ideal, hessian, grid = problem(5, 2, 37, 3)
    constraint = Rounded(grid.scale, grid.zero, grid.least, grid.most, ordered=ordered)
    whole = constraint(ideal, hessian)
    monkeypatch.setattr("surgeon.refit.rounding.BLOCK", 5)
    assert np.allclose(constraint(ideal, hessian), whole, atol=1e-12)
