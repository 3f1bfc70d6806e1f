"""Samples are drawn fairly, the same for a seed, and are the rows they stand for, whatever batches they came in."""

from __future__ import annotations

import numpy as np
import pytest

from surgeon.grad.samples import Samples, drawn


def of(batches, *, rows=True):
    """Samples of tensors given as one list of arrays per name."""
    count = len(next(iter(batches.values())))
    return Samples.of(list(batches), lambda name, batch: batches[name][batch], count, rows=rows)


def uneven(sizes=(3, 1, 5, 2)):
    rows = np.arange(sum(sizes), dtype=np.float32)
    parts = np.split(rows, np.cumsum(sizes)[:-1])
    return {"x": [part[:, None] * [1, 10] for part in parts], "t": [100 + part for part in parts]}


@pytest.mark.parametrize(("count", "batch"), [(12, 4), (10, 3), (7, 7), (5, 64), (9, 1), (11, 8)])
def test_every_epoch_is_a_permutation(count, batch):
    numbers = np.arange(100, 100 + count)
    steps = [drawn(numbers, batch, 3, step) for step in range(4 * count)]
    assert {len(each) for each in steps} == {min(batch, count)}
    stream = np.concatenate(steps)
    epochs = stream[: len(stream) // count * count].reshape(-1, count)
    assert all((np.sort(epoch) == numbers).all() for epoch in epochs)
    if count > 5:
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_the_same_seed_draws_the_same_at_every_step_on_its_own():
    numbers = np.arange(20)
    first = [drawn(numbers, 6, 5, step) for step in range(12)]
    again = [drawn(numbers, 6, 5, step) for step in reversed(range(12))][::-1]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, [drawn(numbers, 6, 6, step) for step in range(12)])


@pytest.mark.parametrize("most", [1, 2, 4, 100])
def test_taken_rows_are_those_of_all_tensors_together(most):
    samples = of(uneven())
    assert samples.rows
    assert len(samples) == 11
    wanted = [10, 0, 3, 4, 8]
    pieces = list(samples.take(wanted, most))
    assert all(count <= most and count == len(feeds["x"]) for count, feeds in pieces)
    x = np.concatenate([feeds["x"] for _, feeds in pieces])
    t = np.concatenate([feeds["t"] for _, feeds in pieces])
    assert sorted(x[:, 0]) == sorted(wanted)
    np.testing.assert_array_equal(x, np.stack([t - 100, 10 * (t - 100)], axis=1))


def test_a_row_may_be_taken_twice():
    (count, feeds), *rest = of(uneven()).take([4, 4, 0], 10)
    assert (count, rest) == (3, [])
    np.testing.assert_array_equal(feeds["t"], [100, 104, 104])


def test_empty_batches_do_no_harm():
    samples = of(uneven((0, 3, 0, 2)))
    assert len(samples) == 5
    ((_, feeds),) = samples.take(np.arange(5), 10)
    np.testing.assert_array_equal(feeds["t"], 100 + np.arange(5))


@pytest.mark.parametrize(
    "batches",
    [
        {"x": [np.zeros((2, 3)), np.zeros((2, 4))]},  # sentences of two lengths
        {"x": [np.zeros((2, 3))] * 2, "y": [np.zeros((6, 3))] * 2},  # a window per row
        {"x": [np.zeros((2, 3))] * 2, "s": [np.zeros(())] * 2},
    ],
    ids=["lengths", "leading sizes", "scalar"],
)
def test_batches_that_have_no_common_rows_count_as_one_sample_each(batches):
    samples = of(batches)
    assert not samples.rows
    assert len(samples) == 2
    pieces = list(samples.take([1, 0], 10))
    assert [count for count, _ in pieces] == [1, 1]
    for number, (_, feeds) in zip((1, 0), pieces, strict=True):
        assert all(feeds[name] is batches[name][number] for name in batches)


def test_rows_are_not_told_apart_where_the_graph_does_not():
    assert len(of(uneven(), rows=False)) == 4


@pytest.mark.parametrize(("count", "held"), [(2, 1), (8, 1), (80, 10), (3, 1)])
def test_a_share_is_held_out(count, held):
    samples = of({"x": [np.zeros((count, 1))]})
    learn, out = samples.split(0.125, np.random.default_rng(0))
    assert len(out) == held
    np.testing.assert_array_equal(np.sort([*learn, *out]), np.arange(count))
