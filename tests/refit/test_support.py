"""Weights on a support are the exact solution of each output's own normal equations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.refit.support import on_support


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
