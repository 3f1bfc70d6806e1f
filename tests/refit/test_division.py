"""What is judged by depends on no sample that anything was learned from."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest
from ops.oracle import build
from refit.test_block import COURSE, noisy, state

from surgeon.grad.samples import Samples
from surgeon.grad.train import train
from surgeon.graph.load import from_model
from surgeon.refit import block
from surgeon.refit.division import divide

RANDOM = np.random.default_rng(0)
MATRICES = {"w": (6, 8), "u": (8, 4)}
FREE = "float[N,6] x"
ROWS = build(FREE, "float[N,4] y", "a = MatMul (x, w)\nb = Relu (a)\ny = MatMul (b, u)", MATRICES)
FOUND = build(
    FREE,
    "float[N,4] y, int64[2,K] k",
    "a = MatMul (x, w)\nb = Relu (a)\ny = MatMul (b, u)\nm = Greater (y, z)\nk = NonZero (m)",
    MATRICES | {"z": np.float32(0)},
)
WINDOWS = build(
    FREE,
    "float[N,24] y",
    "c = MatMul (x, w)\na = Reshape (c, four)\nb = MatMul (a, u)\nd = Relu (b)\ne = MatMul (d, v)\ny = Reshape (e, back)",
    {"w": (6, 24), "u": (8, 8), "v": (8, 8), "four": np.array([-1, 8]), "back": np.array([-1, 24])},
)
CENTRED = build(
    FREE,
    "float[N,4] y",
    "a = MatMul (x, w)\nm = ReduceMean <keepdims = 1> (a, zero)\nb = Sub (a, m)\nc = Relu (b)\ny = MatMul (c, u)",
    MATRICES | {"zero": np.array([0])},
)
WRITTEN = build(
    "float[8,6] x",
    "float[8,4] y",
    "a = MatMul (x, w)\nb = Reshape (a, s)\nc = Relu (b)\ny = MatMul (c, u)",
    MATRICES | {"s": np.array([8, 8])},
)


def numbered(batches=4, size=8, start=0):
    """Samples that tell which they are."""
    first = start + np.arange(batches * size, dtype=np.float32).reshape(batches, size, 1)
    return [{"x": np.tile(each, (1, 6))} for each in first]


def samples_of(feeds):
    return np.concatenate([batch["x"][:, 0] for batch in feeds]).tolist()


def divided(model, feeds, **options):
    return divide([from_model(model)], feeds, 0, **options)


def test_an_eighth_is_held_out_and_put_into_batches_of_its_own():
    found = divided(ROWS, numbered())
    assert len(samples_of(found.judge)) == 4
    assert sorted(samples_of(found.feeds)) == list(range(32))
    assert [len(batch["x"]) for batch in found.feeds] == [8, 8, 8, 4, 4]
    assert samples_of(divide([from_model(ROWS)], numbered(), 1).judge) != samples_of(found.judge)


@pytest.mark.parametrize("model", [CENTRED, WRITTEN])
def test_batches_whose_samples_are_not_apart_stay_whole(model):
    found = divided(model, numbered())
    assert len(found.judge) == 1
    assert sorted(samples_of(found.feeds)) == list(range(32))
    assert all(np.ptp(batch["x"][:, 0]) == 7 for batch in found.feeds)


def test_what_is_made_of_results_need_not_have_rows():
    assert len(divided(FOUND, numbered()).judge[0]["x"]) == 8
    assert len(divided(FOUND, numbered(), judged=["y"]).judge[0]["x"]) == 4
    sized = build(
        FREE, "float[8,4] r", "y = MatMul (x, w)\nr = Reshape (y, s)", {"w": (6, 4), "s": np.array([8, 4])}
    )
    assert len(divided(sized, numbered(), judged=["y"]).judge[0]["x"]) == 8


def test_samples_may_lie_further_in_or_have_several_rows():
    assert len(divided(WINDOWS, numbered(), judged=["e"]).judge[0]["x"]) == 4
    turned = build(
        "float[N,6] x",
        "float[N,4] y",
        "a = MatMul (x, w)\nt = Transpose (a)\nf = Reshape (t, flat)\nb = Relu (f)\nc = Reshape (b, back)\ny = Transpose (c)",
        {"w": (6, 4), "flat": np.array([-1, 1]), "back": np.array([4, -1])},
    )
    for name in "atfby":
        assert len(divided(turned, numbered(), judged=[name]).judge[0]["x"]) == 4


def test_all_graphs_have_to_keep_samples_apart():
    for graphs in ([ROWS, CENTRED], [CENTRED, ROWS]):
        assert len(divide([from_model(each) for each in graphs], numbered(), 0).judge[0]["x"]) == 8


def test_outputs_that_numpy_does_not_know_are_only_computed():
    body = "y = MatMul (x, w)\nb = Cast <to = 16> (y)"
    model = build(FREE, "float[N,4] y, bfloat16[N,4] b", body, {"w": (6, 4)})
    assert len(divided(model, numbered(), judged=["y"]).judge[0]["x"]) == 4


def test_variants_of_other_shapes():
    body = "a = MatMul (x, w)\ny = ReduceMean <keepdims = 0> (a, one)"
    model = build("float[N,T,6] x", "float[N,4] y", body, {"w": (6, 4), "one": np.array([1])})
    own = [{"x": RANDOM.standard_normal((8, 5, 6)).astype(np.float32)} for _ in range(4)]
    for lengths, size in (((7, 7, 7, 7), 1), ((4, 5, 6, 7), 8)):
        varied = [
            {"x": batch["x"][:, :1].repeat(length, 1)} for batch, length in zip(own, lengths, strict=True)
        ]
        found = divided(model, [*own, *varied], variants=1)
        assert [len(batch["x"]) for batch in found.judge] == ([4] if size == 1 else [8])
        assert {batch["x"].shape[1] for batch in found.judge} <= set(lengths)
        graph, reference = noisy(model)
        assert block.reconstruct(graph, reference, [*own, *varied], COURSE, variants=1).kept


def test_variants_of_other_numbers_of_samples():
    fewer = [{"x": batch["x"][:5]} for batch in numbered(start=100)]
    found = divided(ROWS, [*numbered(), *fewer], variants=1)
    assert [len(batch["x"]) for batch in found.judge] == [5]


@pytest.mark.parametrize("count", [1, 3])
def test_a_number_of_samples_that_is_declared_but_not_used(count):
    model = build(
        "float[8,6] x", "float[8,4] y", "a = MatMul (x, w)\nb = Relu (a)\ny = MatMul (b, u)", MATRICES
    )
    graph, reference = noisy(model)
    feeds = [{"x": RANDOM.standard_normal((8, 6)).astype(np.float32)} for _ in range(count)]
    found = block.reconstruct(graph, reference, feeds, COURSE)
    assert found.kept
    assert np.isfinite(found.outcome.before)


@pytest.mark.parametrize(("model", "size"), [(FOUND, 8), (WINDOWS, 8), (CENTRED, 1)])
def test_blocks_decide_how_samples_are_divided_and_outputs_are_judged_by_what_is_held_out(
    model, size, monkeypatch
):
    divisions, judged = [], []

    def seen(*args, **options):
        divisions.append(divide(*args, **options))
        return divisions[-1]

    def counted(graph, reference, feeds, *args):
        judged.append(feeds)
        return real(graph, reference, feeds, *args)

    real = block.Outputs
    monkeypatch.setattr(block, "divide", seen)
    monkeypatch.setattr(block, "Outputs", counted)
    graph, reference = noisy(model)
    feeds = [{"x": RANDOM.standard_normal((8, 6)).astype(np.float32)} for _ in range(8)]
    assert block.reconstruct(graph, reference, feeds, COURSE, variants=1).kept
    (division,) = divisions
    assert division.size == size
    assert judged == [division.judge]
    assert sum(len(batch["x"]) for batch in division.judge) == (4 if size == 8 else 8)


def test_of_what_is_held_out_variants_are_judged_by():
    feeds = [*numbered(), *numbered(start=100), *numbered(start=200)]
    found = divided(ROWS, feeds, variants=2)
    learned, judged = samples_of(found.learn), samples_of(found.judge)
    assert {number % 100 for number in learned}.isdisjoint({number % 100 for number in judged})
    assert len(set(learned)) == len(learned) == 3 * 28
    assert min(judged) >= 100
    assert len(set(judged)) == len(judged) == 2 * 4


@pytest.mark.parametrize("feeds", [numbered(1, 1), numbered(1, 8)])
def test_one_sample_is_not_divided(feeds):
    found = divided(CENTRED, feeds)
    assert (len(found.learn), len(found.judge)) == (1, 0)


def test_pieces_with_other_samples_are_divided_alike():
    found = divided(ROWS, numbered())
    windows = [np.repeat(batch["x"][:, 0], 3) for batch in found.feeds]
    for samples in (
        Samples.of(["x"], lambda name, batch: windows[batch], 5, rows=True),
        Samples.of(["x"], lambda name, batch: windows[batch], 5, rows=False),
    ):
        learn, judge = ([each for _, each in samples.take(part, 5)] for part in found.numbers(samples))
        assert {x for each in learn for x in each["x"]} == set(samples_of(found.learn))
        assert {x for each in judge for x in each["x"]} == set(samples_of(found.judge))


@pytest.mark.parametrize("model", [ROWS, FOUND, WINDOWS, CENTRED, WRITTEN])
@pytest.mark.parametrize("variants", [0, 1])
def test_weights_do_not_depend_on_what_is_judged_by(model, variants, monkeypatch):
    """Whatever blocks and the whole take for their samples: other values for those held out, the same weights."""
    learned = []
    real = [{"x": RANDOM.standard_normal((8, 6)).astype(np.float32)} for _ in range(6 * (1 + variants))]
    for held in (1, -3):

        def replaced(*args, held=held, **options):
            found = divide(*args, **options)
            for batch in found.judge:
                batch["x"] = held * batch["x"]
            return found

        def accepted(*args, **options):
            losses = count(0, -1)
            return train(*args, **options, judge=lambda values: next(losses))

        monkeypatch.setattr(block, "divide", replaced)
        monkeypatch.setattr(block, "train", accepted)
        monkeypatch.setattr(block.Outputs, "error", lambda self: float("nan"))
        graph, reference = noisy(model)
        found = block.reconstruct(graph, reference, [dict(each) for each in real], COURSE, variants=variants)
        assert len(found.kept) == len(found.errors) > 0
        learned.append(state(graph))
    assert all(np.array_equal(values, learned[1][name]) for name, values in learned[0].items())
