"""What stays as it is gets no gradient, and what is one value gets one."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.grad.optimizer import Optimizer
from surgeon.grad.ties import Tie


def weights(seed: int, shape: tuple[int, ...] = (6, 5)) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.choice(np.array([0.0, 0.3, -0.7, 1.1], np.float32), shape)


def test_zeros_get_no_gradient():
    values = weights(0)
    gradient = np.random.default_rng(1).standard_normal(values.shape).astype(np.float32)
    found = Tie.of(values, shared=False).together(gradient)
    assert (found[values == 0] == 0).all()
    assert (found[values != 0] == gradient[values != 0]).all()
    assert found.dtype == gradient.dtype


@given(st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_what_is_one_value_gets_the_mean(seed):
    values = weights(seed)
    gradient = np.random.default_rng(seed).standard_normal(values.shape).astype(np.float32)
    found = Tie.of(values, shared=True).together(gradient)
    for value in np.unique(values):
        expected = 0 if value == 0 else gradient[values == value].mean(dtype=np.float64)
        assert np.allclose(found[values == value], expected, rtol=1e-6, atol=1e-7)
        assert len(np.unique(found[values == value])) == 1


def test_channels_with_values_of_their_own_move_apart():
    values = np.array([[0.5, 0.5, 2.0], [0.5, 2.0, 2.0]], np.float32)
    gradient = np.array([[1, 3, 5], [7, 9, 11]], np.float32)
    tie = Tie.of(values, np.array([[0], [1]]), shared=True)
    assert tie.together(gradient).tolist() == [[2, 2, 5], [7, 10, 10]]


@given(st.integers(0, 30), st.sampled_from(["adam", "sgd"]), st.sampled_from([0.0, 0.1]))
@settings(max_examples=15, deadline=None)
def test_after_many_steps_there_are_as_many_values_and_the_same_zeros(seed, kind, decay):
    values = weights(seed, (33, 7))
    tie, random = Tie.of(values, shared=True), np.random.default_rng(seed)
    moved, optimizer = {"w": values.copy()}, Optimizer(kind, decay, None)
    for _ in range(20):
        gradient = tie.together(random.standard_normal(values.shape).astype(np.float32))
        optimizer.step(moved, {"w": gradient}, 0.01)
        moved["w"][...] = tie.same(moved["w"])
    assert ((moved["w"] == 0) == (values == 0)).all()
    for value in np.unique(values):
        assert len(np.unique(moved["w"][values == value])) == 1
    assert not np.array_equal(moved["w"], values)


def test_the_same_for_numbers_stored_otherwise():
    values = weights(3)
    places = np.random.default_rng(3).permutation(values.size).reshape(values.shape)
    stored = np.zeros(values.size, np.float32)
    stored[places.ravel()] = values.ravel()
    stored = stored.reshape(5, 6)
    for shared in (False, True):
        moved = Tie.of(values, shared=shared).arranged(places, (5, 6))
        assert (moved.free == (stored != 0)).all()
        gradient = np.random.default_rng(4).standard_normal((5, 6)).astype(np.float32)
        assert np.allclose(
            moved.together(gradient), Tie.of(stored, shared=shared).together(gradient), rtol=1e-6
        )


def test_numbers_that_stand_for_zero_stay_what_they_are():
    values = np.array([0.0, 1.0, 1.0])
    tie = Tie.of(values, shared=True)
    assert tie.same(np.array([128.0, 5.0, 6.0])).tolist() == [128.0, 5.0, 5.0]
