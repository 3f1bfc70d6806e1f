"""Products in blocks equal those in one piece, and do not depend on the number of threads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon.stats.blocks import ROWS, moments, product, rowwise, workers

LEADING = st.sampled_from([(), (1,), (3,)])
LENGTHS = st.sampled_from([0, 1, ROWS - 1, ROWS, ROWS + 1, 3 * ROWS + 5])


@given(LEADING, LENGTHS, st.integers(1, 5), st.integers(1, 4))
def test_blocks_are_as_good_as_one_piece(
    leading: tuple[int, ...], rows: int, inputs: int, outputs: int
) -> None:
    random = np.random.default_rng(rows + inputs)
    x, y = random.standard_normal((*leading, rows, inputs)), random.standard_normal((*leading, rows, outputs))
    weights = random.standard_normal((*leading, inputs, outputs))
    with workers(2):
        np.testing.assert_allclose(product(x, weights), x @ weights, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(moments(x, y), np.swapaxes(x, -1, -2) @ y, rtol=1e-10, atol=1e-9)
        np.testing.assert_array_equal(rowwise(np.hypot, x, x[..., :1]), np.hypot(x, x[..., :1]))


def test_single_precision_stays_so_and_is_summed_in_double() -> None:
    x = np.ones((5000 * ROWS // 4, 1), np.float32)
    assert moments(x, x) == len(x)
    assert product(x, np.ones((1, 1), np.float32)).dtype == np.float32


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_change_nothing(threads: int) -> None:
    x = np.random.default_rng(0).standard_normal((5 * ROWS + 7, 40)).astype(np.float32)
    with workers(threads):
        found = moments(x, x), product(x, x[:40])
    assert found[0].tobytes() == moments(x, x).tobytes()
    assert found[1].tobytes() == product(x, x[:40]).tobytes()
