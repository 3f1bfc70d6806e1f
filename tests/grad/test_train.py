"""Training finds what is known to be best, never ends worse than it began, and can be stopped anywhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from grad.learning import linear, objective, perceptron, regression, samples, squared, values_of

from surgeon.errors import DataError, UsageError
from surgeon.grad.samples import Samples
from surgeon.grad.train import Course, train

LEARN, HELD = np.arange(12, 60), np.arange(12)
COURSE = Course(steps=40, batch=16, rate=0.02, evaluations=8)


def run(course=COURSE, *, graph=None, data=None, **options):
    graph = graph or perceptron()
    of = objective(graph, threads=options.pop("threads", 1))
    return train(of, values_of(graph), samples(data or regression()), LEARN, HELD, course, **options)


def same(first, second):
    return first.keys() == second.keys() and all(
        (first[name].view(np.uint32) == second[name].view(np.uint32)).all() for name in first
    )


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_a_linear_model_reaches_the_closed_form(optimizer, ridge):
    graph, data = linear(4), regression(60)

    def loss(tape):
        w = tape.find("w")
        return squared(tape) + (w * w).sum() * ridge

    course = Course(1500, batch=60, rate=0.05, optimizer=optimizer, evaluations=1)
    everything = np.arange(60)
    state = train(objective(graph, loss), values_of(graph), samples(data), everything, everything, course)
    x, t = data["x"].astype(float), data["t"].astype(float)
    centred, aim = x - x.mean(axis=0), t - t.mean(axis=0)
    # the mean is over samples and outputs
    w = np.linalg.solve(centred.T @ centred + ridge * t.size * np.eye(4), centred.T @ aim)
    np.testing.assert_allclose(state.best["w"], w, atol=2e-3)
    np.testing.assert_allclose(state.best["b"], t.mean(axis=0) - x.mean(axis=0) @ w, atol=2e-3)


def test_decoupled_decay_of_plain_descent_is_ridge():
    graph, data = linear(4), regression(60)
    course = Course(3000, 60, 0.02, "constant", "sgd", decay=0.6, evaluations=1)
    everything = np.arange(60)
    state = train(objective(graph), values_of(graph), samples(data), everything, everything, course)
    # where descent stands still, ten times the loss's gradient (momentum adds it up) is −decay × w; half of it is the ridge
    x, t = data["x"].astype(float), data["t"].astype(float)
    centred, aim = x - x.mean(axis=0), t - t.mean(axis=0)
    w = np.linalg.solve(centred.T @ centred + 0.03 * t.size * np.eye(4), centred.T @ aim)
    np.testing.assert_allclose(state.parameters["w"], w, atol=2e-3)


def test_it_learns_and_says_so():
    state = run()
    assert state.improved
    assert state.loss < 0.7 * state.before
    assert len(state.history) == 8
    assert state.loss == min(loss for _, _, loss in state.history)
    assert [step for step, _, _ in state.history] == list(range(5, 41, 5))
    of = objective(perceptron())
    assert of.value(state.best, samples(regression()).take(HELD, 100)) == state.loss


def test_parameters_that_are_given_stay():
    graph = perceptron()
    start = values_of(graph)
    copies = {name: value.copy() for name, value in start.items()}
    train(objective(graph), start, samples(regression()), LEARN, HELD, COURSE)
    assert same(start, copies)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("rate", [50.0, 1e20, 1e38])
@pytest.mark.filterwarnings("error")
def test_a_run_that_diverges_ends_where_it_began(optimizer, rate):
    graph = linear(4)
    state = run(replace(COURSE, rate=rate, optimizer=optimizer), graph=graph)
    assert not state.improved
    assert same(state.best, values_of(graph))
    assert state.loss == state.before


@pytest.mark.filterwarnings("error")
def test_samples_that_are_not_numbers_are_passed_over():
    data = regression()
    data["x"][20] = np.nan
    data["t"][30] = np.inf
    state = run(data=data)
    assert all(np.isfinite(value).all() for value in state.parameters.values())
    assert state.improved


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("verdict", [float("nan"), float("inf")])
def test_what_cannot_be_judged_is_not_accepted(verdict):
    state = run(judge=lambda values: verdict)
    assert not state.improved
    assert same(state.best, values_of(perceptron()))
    verdicts = iter([1.0, float("nan"), 0.5, float("nan"), float("nan"), 0.6, 0.7, 0.8, 0.9])
    state = run(judge=lambda values: next(verdicts))
    assert state.loss == 0.5
    assert not same(state.best, state.parameters)


def test_equal_is_not_better():
    assert not run(judge=lambda values: 1.0).improved


def test_patience():
    verdicts = iter([1.0, 0.9, 1.0, 1.0, 1.0])
    state = run(replace(COURSE, patience=3), judge=lambda values: next(verdicts))
    assert state.optimizer.steps == 20
    assert state.loss == 0.9


def test_no_steps_change_nothing():
    state = run(replace(COURSE, steps=0))
    assert same(state.best, values_of(perceptron()))
    assert state.history == []


def test_progress_counts_every_step():
    seen = []
    run(progress=seen.append)
    assert sum(seen) == COURSE.steps


def test_the_same_seed_gives_the_same_and_another_does_not():
    assert same(run().parameters, run().parameters)
    assert not same(run().parameters, run(replace(COURSE, seed=1)).parameters)


def test_threads_do_not_matter():
    assert same(run(threads=1).parameters, run(threads=2).parameters)


@pytest.mark.parametrize("most", [1, 5, 16])
def test_samples_may_run_in_pieces(most):
    whole, pieces = run(), run(replace(COURSE, most=most))
    for name, value in whole.parameters.items():
        np.testing.assert_allclose(pieces.parameters[name], value, atol=2e-3)
    assert pieces.loss == pytest.approx(whole.loss, rel=1e-3)


def noise(feeds, random):
    return {**feeds, "x": feeds["x"] + random.standard_normal(feeds["x"].shape).astype(np.float32)}


class Stop(Exception):
    """What ends a run in the middle."""


def interrupted(path, after, **options):
    left = iter(range(after))

    def progress(count):
        if count and next(left, None) is None:
            raise Stop

    with pytest.raises(Stop):
        run(checkpoint=path, progress=progress, **options)


@pytest.mark.parametrize("after", [5, 11, 33])
@pytest.mark.parametrize("augment", [None, noise])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_run_taken_up_again_ends_like_one_that_went_through(tmp_path, after, augment, optimizer):
    course, path = replace(COURSE, optimizer=optimizer, decay=0.01, clip=1.0), tmp_path / "run.npz"
    whole = run(course, augment=augment)
    interrupted(path, after, course=course, augment=augment)
    assert path.exists()
    seen = []
    again = run(course, augment=augment, checkpoint=path, progress=seen.append)
    assert seen[0] == after // 5 * 5
    assert sum(seen) == course.steps
    assert same(again.parameters, whole.parameters)
    assert same(again.best, whole.best)
    assert again.history == whole.history
    assert (again.loss, again.before, again.waited) == (whole.loss, whole.before, whole.waited)
    finished = run(course, augment=augment, checkpoint=path)
    assert same(finished.best, whole.best)


def test_augmentation_is_seeded_and_leaves_the_held_out_samples_alone():
    first, second = run(augment=noise), run(augment=noise)
    assert same(first.parameters, second.parameters)
    assert not same(first.parameters, run().parameters)
    assert first.before == run().before


KILLED = """
import sys, time
from pathlib import Path
from grad.test_train import run
run(checkpoint=Path(sys.argv[1]), progress=lambda count: time.sleep(0.05))
"""


@pytest.mark.skipif(os.name != "posix", reason="needs a signal that cannot be caught")
def test_a_run_that_was_killed(tmp_path):
    path = tmp_path / "run.npz"
    folders = [str(Path(__file__).parents[1]), *sys.path]
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    )
    for _ in range(1200):
        if path.exists() or child.poll() is not None:
            break
        time.sleep(0.05)
    time.sleep(0.12)
    assert child.poll() is None, "it ended before it could be killed"
    child.send_signal(signal.SIGKILL)
    child.wait()
    seen = []
    again = run(checkpoint=path, progress=seen.append)
    assert 0 < seen[0] < COURSE.steps
    assert same(again.parameters, run().parameters)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.npz"
    run(checkpoint=path)
    other = perceptron(seed=5)
    for attempt in (
        lambda: run(replace(COURSE, rate=0.03), checkpoint=path),
        lambda: run(graph=other, checkpoint=path),
        lambda: run(graph=linear(4), checkpoint=path),
        lambda: train(
            objective(perceptron()), values_of(perceptron()), samples(regression()), HELD, LEARN, COURSE,
            checkpoint=path,
        ),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="other options"):
            attempt()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path, content):
    path = tmp_path / "run"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="not a checkpoint"):
        run(checkpoint=path)


def test_other_arrays_and_half_a_checkpoint_are_none_either(tmp_path):
    array, half, foreign = (tmp_path / name for name in ("array.npy", "half", "foreign.npz"))
    np.save(array, np.zeros(3))
    np.savez(foreign, x=np.zeros(3))
    run(checkpoint=half)
    half.write_bytes(half.read_bytes()[:2000])
    for path in (array, half, foreign):
        with pytest.raises(UsageError, match="not a checkpoint"):
            run(checkpoint=path)


def test_a_checkpoint_that_cannot_be_written_is_a_users_error(tmp_path):
    with pytest.raises(UsageError, match="no checkpoint can be written"):
        run(checkpoint=tmp_path / "none" / "c.npz")


def test_too_few_samples():
    graph = linear(4)
    data = regression(1)
    one = Samples.of(["x", "t"], lambda name, batch: data[name], 1, rows=True)
    learn, held = one.split(0.1, np.random.default_rng(0))
    with pytest.raises(DataError, match="two samples"):
        train(objective(graph), values_of(graph), one, learn, held, COURSE)
