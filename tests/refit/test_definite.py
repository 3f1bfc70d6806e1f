"""Inverses of positive definite matrices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.refit.definite import SMALL, inverses


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 2 * SMALL),
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 99),
)
def test_a_matrix_times_its_inverse_is_one(count: int, rows: int, kind: type, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((count, 3 * rows, rows))
    matrices = (x.swapaxes(1, 2) @ x / (3 * rows) + np.eye(rows)).astype(kind)
    before = matrices.copy()
    found = inverses(matrices)
    assert found.dtype == kind
    assert found @ matrices == pytest.approx(np.broadcast_to(np.eye(rows), matrices.shape), abs=1e-5)
    assert np.array_equal(found, found.swapaxes(1, 2)) or rows <= SMALL
    assert np.array_equal(matrices, before)


def test_a_matrix_that_rounding_has_left_indefinite_has_an_inverse() -> None:
    matrix = np.diag([*[1.0] * SMALL, -0.5])[None]
    assert inverses(matrix)[0] == pytest.approx(np.diag([*[1.0] * SMALL, -2.0]))
    with pytest.raises(np.linalg.LinAlgError):
        inverses(np.zeros((1, SMALL + 1, SMALL + 1)))
