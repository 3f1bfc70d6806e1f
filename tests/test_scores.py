"""Importance scores against their definitions, whatever the layout and the type of the weights."""

from __future__ import annotations

import numpy as np
import pytest

from surgeon import scores
from surgeon.axes import Atom, Concat, Product, Selection
from surgeon.scores import REDUCTIONS, SCORES, Activity, Slices


def draw(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def slices(values, axis, size=None, where=None):
    size = size or values.shape[axis]
    return Slices(values, axis, [np.arange(values.shape[axis]) if where is None else where], size)


def naive(values, axis, power):
    others = tuple(k for k in range(values.ndim) if k != axis)
    return (np.abs(values.astype(np.float64)) ** power).sum(axis=others)


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (5, 7), (1, 8, 2), (9,)])
@pytest.mark.parametrize("block", [1, 8, 1 << 22])
def test_norms_along_every_axis(shape, block, monkeypatch):
    monkeypatch.setattr(scores, "BLOCK", block)
    values = draw(*shape)
    for axis in range(len(shape)):
        np.testing.assert_allclose(scores.l1(slices(values, axis)), naive(values, axis, 1), rtol=1e-5)
        np.testing.assert_allclose(scores.l2(slices(values, axis)) ** 2, naive(values, axis, 2), rtol=1e-5)


def test_half_precision_does_not_overflow():
    values = np.full((2, 1000), 200.0, np.float16)
    np.testing.assert_allclose(scores.l1(slices(values, 0)), 200_000)
    np.testing.assert_allclose(scores.l2(slices(values, 0)), 200 * 1000**0.5, rtol=1e-6)


def test_positions_of_products_concatenations_and_selections_go_to_their_index():
    heads, other = Atom(3), Atom(2)
    axis = Concat((Product((heads, Atom(4))), other, Selection(heads, np.array([2, 0]))))
    values = draw(16, 5)
    expected = np.zeros(3)
    for position, head in enumerate([0] * 4 + [1] * 4 + [2] * 4 + [None, None, 2, 0]):
        if head is not None:
            expected[head] += np.abs(values[position]).sum()
    np.testing.assert_allclose(scores.l1(Slices.of(values, 0, axis, heads)), expected, rtol=1e-5)


def test_rows_hold_each_index_and_are_padded_where_positions_lack():
    values = np.arange(10.0, dtype=np.float32).reshape(5, 2)
    rows = slices(values, 0, 3, np.array([2, 0, 2, -1, 0])).rows()
    assert rows.tolist() == [[2, 3, 8, 9], [0, 0, 0, 0], [0, 1, 4, 5]]


@pytest.mark.parametrize("block", [10, 1 << 22])
def test_geometric_median_is_the_sum_of_distances(block, monkeypatch):
    monkeypatch.setattr(scores, "BLOCK", block)
    values = draw(7, 4, 3) + 5
    rows = values.reshape(7, -1).astype(np.float64)
    expected = np.linalg.norm(rows[:, None] - rows[None], axis=2).sum(axis=1)
    np.testing.assert_allclose(scores.geometric_median(slices(values, 0)), expected, rtol=1e-4)


@pytest.mark.parametrize("block", [10, 1 << 22])
def test_of_two_alike_only_the_smaller_is_redundant(block, monkeypatch):
    monkeypatch.setattr(scores, "BLOCK", block)
    values = draw(6, 20)
    values[4] = -0.5 * values[1]
    found = scores.redundancy(slices(values, 0))
    assert found[4] == pytest.approx(0, abs=2e-3)
    assert np.argmin(found) == 4
    norms = np.linalg.norm(values, axis=1)
    assert found[np.argmax(norms)] == pytest.approx(norms.max(), rel=1e-5)
    unit = values / norms[:, None]
    earlier = [j for j in range(6) if norms[j] > norms[0]]
    nearest = max((abs(unit[0] @ unit[j]) for j in earlier), default=0.0)
    assert found[0] == pytest.approx(norms[0] * (1 - nearest**2) ** 0.5, rel=1e-3)


def test_wanda_weighs_each_position_by_the_norm_of_its_input():
    weights, norms = draw(6, 5), np.arange(1.0, 7.0)
    index = np.array([0, 0, 1, 1, 2, 2])
    expected = (np.abs(weights).sum(axis=1) * norms).reshape(3, 2).sum(axis=1)
    np.testing.assert_allclose(scores.wanda(slices(weights, 0, 3, index), norms), expected, rtol=1e-5)


def test_scores_of_activations():
    activity = Activity(np.array([4.0, 9.0]), np.array([5.0, 0.0]), np.array([10.0, 10.0]))
    assert scores.activation_norm(activity).tolist() == [2.0, 3.0]
    assert scores.apoz(activity).tolist() == [0.5, 0.0]


def test_reductions_leave_out_what_a_tensor_does_not_have():
    table = np.array([[1.0, 2.0, np.nan], [3.0, 4.0, 5.0]])
    assert REDUCTIONS["mean"](table).tolist() == [2.0, 3.0, 5.0]
    assert REDUCTIONS["max"](table).tolist() == [3.0, 4.0, 5.0]
    assert REDUCTIONS["sum"](table).tolist() == [4.0, 6.0, 5.0]


def test_a_score_is_called_like_a_function():
    values = draw(4, 3)
    np.testing.assert_array_equal(SCORES["l2"](slices(values, 0)), scores.l2(slices(values, 0)))


def test_gradient_scores_are_losses_per_sample():
    slopes = scores.Slopes(np.array([4.0, 0.0]), np.array([10.0, 0.0]), 2.0)
    both = slopes.joined(scores.Slopes(np.array([2.0, 1.0]), np.array([2.0, 1.0]), 1.0))
    assert scores.taylor(slopes).tolist() == [4.0, 0.0]
    assert scores.fisher(slopes).tolist() == [2.5, 0.0]
    assert scores.fisher(both).tolist() == [2.0, pytest.approx(1 / 6)]
