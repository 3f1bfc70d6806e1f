"""Optimizers do what their papers say, and what torch does; schedules begin and end where they should."""

from __future__ import annotations

import numpy as np
import pytest

from surgeon.grad.optimizer import Optimizer, rate_at


def draws(count=6, shape=(3, 4), seed=0):
    return list(np.random.default_rng(seed).standard_normal((count, *shape)))


def test_adam_follows_the_formulas_of_its_paper():
    start, gradients = draws(1)[0], draws(seed=1)
    values = {"w": start.copy()}
    optimizer = Optimizer()
    first, second, expected = np.zeros((3, 4)), np.zeros((3, 4)), start.copy()
    for t, g in enumerate(gradients, 1):
        optimizer.step(values, {"w": g}, 0.01)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        # algorithm 1 with the rearrangement of section 2, whose epsilon is that of the corrected root
        rate = 0.01 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        expected -= rate * first / (np.sqrt(second) + 1e-8)
        np.testing.assert_allclose(values["w"], expected, rtol=1e-12)


def test_the_first_step_of_adam_has_the_size_of_the_rate():
    values = {"w": np.zeros((2, 2))}
    Optimizer().step(values, {"w": np.array([[3.0, -0.01], [50.0, -2.0]])}, 0.1)
    np.testing.assert_allclose(values["w"], [[-0.1, 0.1], [-0.1, 0.1]], rtol=1e-3)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
@pytest.mark.parametrize(("decay", "clip"), [(0.0, None), (0.1, None), (0.0, 0.5), (0.1, 0.5)])
def test_as_torch_does(kind, decay, clip):
    torch = pytest.importorskip("torch")
    if kind == "sgd" and decay:
        pytest.skip("torch couples decay with momentum")
    values = {"w": draws(1)[0].astype(np.float32), "v": draws(1, (5, 2), 3)[0].astype(np.float32)}
    ours, theirs = (
        Optimizer(kind, decay, clip),
        {n: torch.nn.Parameter(torch.tensor(v)) for n, v in values.items()},
    )
    parameters = list(theirs.values())
    other = (
        torch.optim.AdamW(parameters, lr=0.02, weight_decay=decay)
        if kind == "adam"
        else torch.optim.SGD(parameters, lr=0.02, momentum=0.9)
    )
    for w, v in zip(draws(seed=1), draws(shape=(5, 2), seed=2), strict=True):
        gradients = {"w": w.astype(np.float32), "v": v.astype(np.float32)}
        ours.step(values, gradients, 0.02)
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(gradients[name])
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        other.step()
    for name, value in values.items():
        np.testing.assert_allclose(value, theirs[name].detach().numpy(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_only_matrices_decay_and_by_the_rate_alone(kind):
    values = {"w": np.full((2, 3), 2.0), "b": np.full(3, 2.0), "s": np.array(2.0)}
    zero = {name: np.zeros_like(value) for name, value in values.items()}
    Optimizer(kind, decay=0.5).step(values, zero, 0.1)
    np.testing.assert_allclose(values["w"], 2 * (1 - 0.1 * 0.5))
    assert (values["b"] == 2).all()
    assert values["s"] == 2


def test_decay_does_not_pass_through_the_running_means():
    with_decay, without = Optimizer(decay=0.3), Optimizer()
    one, two = {"w": np.ones((2, 2))}, {"w": np.ones((2, 2))}
    for g in draws(shape=(2, 2)):
        with_decay.step(one, {"w": g}, 0.1)
        without.step(two, {"w": g}, 0.1)
    for name, memory in with_decay.memory.items():
        np.testing.assert_array_equal(memory, without.memory[name])


def test_gradients_are_clipped_by_their_norm_together():
    values = {"a": np.zeros((2, 2)), "b": np.zeros(1)}
    optimizer = Optimizer("sgd", clip=1.0)
    optimizer.step(values, {"a": np.array([[2.0, 0], [0, 1]]), "b": np.array([2.0])}, 1.0)  # of norm 3
    np.testing.assert_allclose(values["a"], -np.array([[2, 0], [0, 1]]) / 3)
    np.testing.assert_allclose(values["b"], [-2 / 3])
    optimizer = Optimizer("sgd", clip=10.0)
    values = {"a": np.zeros(2)}
    optimizer.step(values, {"a": np.array([3.0, 4.0])}, 1.0)
    np.testing.assert_array_equal(values["a"], [-3, -4])
    optimizer.step(values, {"a": np.zeros(2)}, 0.0)  # a norm of zero divides nothing


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_that_is_not_finite_changes_nothing_and_leaves_no_trace(bad, clip):
    values = {"w": np.ones((2, 2)), "b": np.ones(2)}
    optimizer = Optimizer(clip=clip, decay=0.1)
    optimizer.step(values, {"w": np.ones((2, 2)), "b": np.ones(2)}, 0.1)
    before = {name: value.copy() for name, value in values.items()}
    means = {name: value.copy() for name, value in optimizer.memory.items()}
    optimizer.step(values, {"w": np.full((2, 2), bad), "b": np.ones(2)}, 0.1)
    assert all((values[name] == before[name]).all() for name in before)
    assert all((optimizer.memory[name] == means[name]).all() for name in means)
    assert optimizer.steps == 2


def test_types_and_scalars_stay():
    values = {"w": np.ones((2, 2), np.float32), "h": np.ones(3, np.float16), "s": np.array(1, np.float32)}
    optimizer = Optimizer(decay=0.1)
    for _ in range(3):
        optimizer.step(values, {name: np.ones_like(value) for name, value in values.items()}, 0.1)
    assert [value.dtype for value in values.values()] == [np.float32, np.float16, np.float32]
    assert values["s"].shape == ()
    assert values["s"] == pytest.approx(0.7, abs=1e-3)


def test_schedules_begin_and_end():
    steps = 1000
    for name, first in (("cosine", 1.0), ("constant", 1.0), ("one_cycle", 0.04)):
        assert rate_at(name, 0, steps) == pytest.approx(first, abs=1e-4), name
    assert rate_at("constant", steps - 1, steps) == 1
    for name in ("cosine", "one_cycle"):
        assert 0 < rate_at(name, steps - 1, steps) < 1e-5
    assert rate_at("cosine", 500, steps) == pytest.approx(0.5, abs=1e-2)
    course = [rate_at("one_cycle", step, steps) for step in range(steps)]
    top = int(np.argmax(course))
    assert top == pytest.approx(300, abs=1)
    assert course[top] == pytest.approx(1, abs=1e-4)
    assert (np.diff(course[:top]) > 0).all()
    assert (np.diff(course[top:]) < 0).all()


@pytest.mark.parametrize("name", ["cosine", "one_cycle", "constant"])
def test_a_single_step_has_a_rate(name):
    assert 0 < rate_at(name, 0, 1) <= 1


@pytest.mark.parametrize("shape", [(4,), (1, 4), (4, 1, 1), (1, 4, 1, 1), (1, 1), ()])
def test_what_has_one_axis_does_not_decay(shape):
    values = {"b": np.ones(shape), "w": np.ones((4, 2, 1, 1))}
    Optimizer(decay=0.5).step(values, {name: np.zeros_like(each) for name, each in values.items()}, 0.1)
    assert (values["b"] == 1).all()
    assert (values["w"] == 0.95).all()
