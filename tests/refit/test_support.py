"""Weights on a support are the exact solution of each output's own normal equations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.refit.support import _is_small, _one_by_one, _together, on_support


def problem(groups: int, rows: int, outputs: int, seed: int):
    random = np.random.default_rng(seed)
    x = random.standard_normal((groups, 3 * rows, rows)) @ random.standard_normal((groups, rows, rows))
    hessian = x.swapaxes(1, 2) @ x + np.eye(rows)
    ideal = random.standard_normal((groups, rows, outputs))
    return ideal, hessian, random.random((groups, rows, outputs)) < 0.5


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 5), st.integers(0, 1000))
def test_each_output_solves_its_own_equations(groups: int, rows: int, outputs: int, seed: int) -> None:
    ideal, hessian, support = problem(groups, rows, outputs, seed)
    found = on_support(ideal, hessian, support, np.zeros_like(ideal))
    assert (found[~support] == 0).all()
    for g in range(groups):
        wanted = hessian[g] @ ideal[g]
        for k in range(outputs):
            some = support[g, :, k]
            exact = np.linalg.solve(hessian[g][np.ix_(some, some)], wanted[some, k])
            assert found[g, some, k] == pytest.approx(exact, rel=1e-4, abs=1e-4)


def test_the_whole_support_gives_the_ideal_back() -> None:
    ideal, hessian, _ = problem(2, 6, 3, 0)
    found = on_support(ideal, hessian, np.ones(ideal.shape, bool), np.zeros_like(ideal))
    assert found == pytest.approx(ideal, rel=1e-4, abs=1e-4)


def test_a_start_that_is_right_already_stays() -> None:
    ideal, hessian, _ = problem(1, 5, 2, 1)
    assert np.array_equal(on_support(ideal, hessian, np.ones(ideal.shape, bool), ideal), ideal)


@settings(max_examples=10, deadline=None)
@given(st.floats(0.02, 0.98), st.sampled_from([np.float32, np.float64]), st.integers(0, 1000))
def test_both_ways_to_solve_say_the_same(share: float, kind: type, seed: int) -> None:
    ideal, hessian, _ = problem(2, 40, 30, seed)
    hessian = hessian + 10 * np.trace(hessian, axis1=1, axis2=2)[:, None, None] / 40 * np.eye(40)
    ideal, hessian = ideal.astype(kind), hessian.astype(kind)
    support = np.random.default_rng(seed).random(ideal.shape) < share
    alone = _one_by_one(hessian @ ideal, hessian, support)
    together = _together(hessian @ ideal, hessian, support, np.zeros_like(ideal), 100, 1e-6)
    assert alone is not None
    assert alone.dtype == together.dtype == kind
    assert alone == pytest.approx(together, abs=1e-4)
    assert (alone[~support] == 0).all()


def test_few_weights_of_many_are_solved_for_alone() -> None:
    support = np.zeros((1, 1000, 200), bool)
    support[:, :100] = True
    assert _is_small(support, 30)
    assert not _is_small(~support, 30)


def test_a_matrix_that_is_not_definite_is_left_to_what_can_take_it() -> None:
    ideal, hessian = np.ones((1, 3, 2)), np.diag([1.0, 1.0, -1e-9])[None]
    support = np.ones((1, 3, 2), bool)
    assert _one_by_one(hessian @ ideal, hessian, support) is None
    support[:, 2] = False
    assert on_support(ideal, hessian, support, ideal)[:, :2] == pytest.approx(1.0)
