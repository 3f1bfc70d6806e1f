"""Low rank: as good as any, in the metric of the data; what the curve foretells is what the factors leave out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.refit.lowrank import LowRank, centred, curve, definite, factors, gram_of, nearest


def drawn(seed, inputs, outputs, places=200):
    random = np.random.default_rng(seed)
    x = random.standard_normal((places, inputs)) @ random.standard_normal((inputs, inputs)) + 0.5
    return x, random.standard_normal((inputs, outputs))


def spectrum(x, weights):
    """Singular values of the outputs themselves: what no matrix of a smaller rank can leave out less of."""
    return np.linalg.svd(x @ weights, compute_uv=False) ** 2 / len(x)


@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_products_are_optimal_at_every_rank(seed, inputs, outputs):
    """Eckart and Young: nothing of rank r is nearer to the outputs than their own truncated decomposition."""
    x, weights = drawn(seed, inputs, outputs)
    order, moments = np.arange(inputs)[:, None], gram_of(x)
    found = curve(weights, moments, order, min(inputs, outputs))
    best = spectrum(x, weights)
    for rank in range(min(inputs, outputs) + 1):
        assert found.errors[rank] == pytest.approx(best[rank:].sum(), abs=1e-6 * best.sum())
        near = nearest(weights, moments, order, rank)
        assert np.linalg.matrix_rank(near, tol=1e-8 * np.abs(weights).max()) <= rank
        error = np.square(x @ (weights - near)).sum() / len(x)
        assert error == pytest.approx(best[rank:].sum(), abs=1e-6 * best.sum())


def test_no_search_finds_anything_better():
    x, weights = drawn(3, 4, 3)
    moments, order = gram_of(x), np.arange(4)[:, None]
    error = np.square(x @ (weights - nearest(weights, moments, order, 1))).sum()
    random = np.random.default_rng(0)
    tried = []
    for _ in range(40):  # alternating least squares from anywhere
        right = random.standard_normal((1, 3))
        for _ in range(30):
            left = np.linalg.lstsq(x, x @ weights @ np.linalg.pinv(right), rcond=None)[0]
            right = np.linalg.lstsq(x @ left, x @ weights, rcond=None)[0]
        tried.append(np.square(x @ (weights - left @ right)).sum())
    assert error == pytest.approx(min(tried), rel=1e-6)
    plain = np.linalg.svd(weights)
    truncated = plain[1][0] * np.outer(plain[0][:, 0], plain[2][0])
    assert error < np.square(x @ (weights - truncated)).sum()


ORDERS = {
    "3x1 then 1x3": np.arange(36).reshape(4, 3, 3).transpose(0, 1, 2).reshape(12, 3),
    "1x3 then 3x1": np.arange(36).reshape(4, 3, 3).transpose(0, 2, 1).reshape(12, 3),
    "1x1 then 3x3": np.arange(36).reshape(4, 9),
}


@pytest.mark.parametrize("words", ORDERS)
def test_taps_in_the_second_factor(words):
    x, weights = drawn(1, 36, 5, 400)
    order, moments = ORDERS[words], gram_of(x)
    full = min(len(order), order.shape[1] * 5)
    found = curve(weights, moments, order, full)
    assert (np.diff(found.errors) <= 1e-9 * found.total).all()
    assert found.errors[0] == pytest.approx(np.square(x @ weights).sum() / 400)
    assert found.errors[full] < 1e-6 * found.total
    for rank in (1, 2, full):
        near = nearest(weights, moments, order, rank)
        matrix = near[order.ravel()].reshape(len(order), -1)
        assert np.linalg.matrix_rank(matrix, tol=1e-8 * np.abs(matrix).max()) <= rank
        error = np.square(x @ (weights - near)).sum() / 400
        assert error <= found.errors[rank] + 1e-6 * found.total  # the first factor is improved as well
        first, second = factors(near, order, rank)
        again = np.tensordot(first, second, 1).reshape(matrix.shape)
        assert np.allclose(again, matrix, atol=1e-8)
        assert np.allclose(np.linalg.norm(first, axis=0), np.linalg.norm(second.reshape(rank, -1), axis=1))


def test_independent_inputs_with_taps_are_a_plain_decomposition():
    """With moments that treat all inputs alike the best is known in closed form for every arrangement."""
    _, weights = drawn(2, 36, 5)
    for order in ORDERS.values():
        values = np.linalg.svd(weights[order.ravel()].reshape(len(order), -1), compute_uv=False) ** 2
        for rank in (1, 3, 7):
            near = nearest(weights, np.eye(36), order, rank)
            assert np.square(weights - near).sum() == pytest.approx(values[rank:].sum(), rel=1e-6)


def test_with_several_taps_alternation_finds_nothing_much_better():
    random = np.random.default_rng(5)
    mixed = np.eye(36) + 0.5 * random.standard_normal((36, 36)) / 6  # neighbours are alike, as in images
    x, weights = random.standard_normal((400, 36)) @ mixed, random.standard_normal((36, 5))
    order, moments = ORDERS["1x1 then 3x3"], definite(gram_of(x))
    error = np.square(x @ (weights - nearest(weights, moments, order, 2))).sum()
    random = np.random.default_rng(0)
    taps = np.eye(9)
    found = []
    for _ in range(3):
        first = random.standard_normal((4, 2))
        for _ in range(40):
            second = np.linalg.lstsq(x @ np.kron(first, taps), x @ weights, rcond=None)[0]
            columns = [
                (x @ (np.kron(np.outer(np.eye(4)[i], np.eye(2)[r]), taps) @ second)).ravel()
                for i in range(4)
                for r in range(2)
            ]
            first = np.linalg.lstsq(np.stack(columns, 1), (x @ weights).ravel(), rcond=None)[0].reshape(4, 2)
        second = np.linalg.lstsq(x @ np.kron(first, taps), x @ weights, rcond=None)[0]
        found.append(np.square(x @ (weights - np.kron(first, taps) @ second)).sum())
    assert error < 1.05 * min(found)


def test_the_bias_makes_up_for_the_mean():
    x, weights = drawn(4, 6, 5)
    rows = np.concatenate([x + 3, np.ones((len(x), 1))], axis=1)
    ideal = np.concatenate([weights, np.ones((1, 5))])
    hessian = definite(rows.T @ rows)
    order = np.arange(6)[:, None]
    near = LowRank(order, 2)(ideal[None], hessian[None])[0]
    error = np.square(rows @ (near - ideal)).sum() / len(x)
    assert error == pytest.approx(spectrum(x - x.mean(0), weights)[2:].sum(), rel=1e-5)
    assert centred(gram_of(rows)) == pytest.approx(np.cov(x.T, bias=True), rel=1e-6)


def test_inputs_that_never_vary_and_weights_of_zero():
    moments = definite(np.zeros((4, 4)))
    order = np.arange(4)[:, None]
    assert not nearest(np.zeros((4, 3)), moments, order, 2).any()
    found = curve(np.zeros((4, 3)), moments, order, 2)
    assert found.total == 0
    assert not found.errors.any()


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e4])
def test_sums_that_rounding_made_indefinite(scale):
    """A few rows with a large mean, summed in single precision: what is left of the rest is noise, negative here and there."""
    random = np.random.default_rng(0)
    x = (scale * (100 + random.standard_normal((12, 40)))).astype(np.float32)
    rows = np.concatenate([x, np.ones((12, 1), np.float32)], axis=1)
    moments = centred((rows.T @ rows).astype(np.float64))
    assert np.linalg.eigvalsh(moments).min() < 0
    weights = random.standard_normal((40, 30))
    for order in (np.arange(40)[:, None], np.arange(40).reshape(10, 4)):
        assert np.isfinite(nearest(weights, moments, order, 3)).all()
        errors = curve(weights, moments, order, 9).errors
        assert np.isfinite(errors).all()
        assert (np.diff(errors) <= 1e-9 * errors[0]).all()
