"""Blocks, and neighbours as one: who takes how many steps, and from what they learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from grad import structures
from ops.oracle import build
from refit.test_block import COURSE, batches, halved, noisy

from surgeon.reference import Reference
from surgeon.refit import block
from surgeon.refit.block import reconstruct
from surgeon.refit.turns import find_trainable, turns_of
from surgeon.stats.replay import Replay

VECTORS = [{"x": np.random.default_rng(seed).standard_normal((8, 6)).astype(np.float32)} for seed in range(8)]


def products(count, **lines):
    """Products with a Relu behind each; instead of that of one, other lines."""
    body = ["r0 = Identity (x)"]
    for k in range(count):
        body.append(f"c{k} = MatMul (r{k}, w{k})")
        body.append(lines.get(f"r{k + 1}", f"r{k + 1} = Relu (c{k})"))
    weights = {f"w{k}": (6, 6) for k in range(count)}
    numbers = {
        "first": np.array([0]),
        "zero": np.array(0),
        "two": np.array(2),
        "none": np.zeros(1, np.float32),
    }
    return build(
        "float[N,6] x", "float[N,6] y", "\n".join([*body, f"y = Identity (r{count})"]), weights | numbers
    )


@pytest.fixture
def taken(monkeypatch):
    """How many steps training took each time, but for second tries."""
    steps = []
    real = block.train

    def counted(*args, **options):
        course = args[5]
        if course.rate == COURSE.rate:
            steps.append(course.steps)
        return real(*args, **options)

    monkeypatch.setattr(block, "train", counted)
    return steps


@pytest.mark.parametrize(
    ("blocks", "neighbours", "joints"),
    [
        (6, 3, [3, 3, 3, None, None, None, None, None]),
        (8, 3, [3, 3, 3, None, 7, 7, None, None, None, None]),
        (2, 3, [None, None]),
        (3, 1, [None, None, None]),
    ],
)
def test_blocks_say_where_they_are_trained_once_more(blocks, neighbours, joints):
    graph, _ = noisy(products(2 * blocks))
    turns = turns_of(graph, neighbours)
    assert [turn.joint for turn in turns] == joints
    assert sum(turn.count == 1 for turn in turns) == blocks == len(find_trainable(graph))
    for turn in turns:
        inside = () if turn.joint is None else turns[turn.joint].block.nodes
        assert turn.joint is None or all(any(node is each for each in inside) for node in turn.block.nodes)


@pytest.mark.parametrize(
    ("steps", "expected"), [(10, [5, 5, 5, 10, 10, 10, 10, 10]), (5, [3, 3, 3, 5, 5, 5, 5, 5]), (1, [1] * 8)]
)
def test_blocks_that_are_trained_once_more_take_half_of_the_steps_before(steps, expected, taken):
    model = products(12)
    graph, reference = noisy(model)
    seen = []
    reconstruct(graph, reference, VECTORS, replace(COURSE, steps=steps), neighbours=3, progress=seen.append)
    assert taken == expected
    assert sum(seen) == steps * len(expected)


def gone(reference):
    """The same without what the third block puts out."""
    for node in reference.graph.nodes:
        for tensor in node.outputs:
            if tensor.name == "r6":
                tensor.name = "another"
    return Reference(reference.graph)


COUPLED = "m4 = ReduceMean <keepdims=1> (c3, first)\nd4 = Sub (c3, m4)\nr4 = Relu (d4)"


@pytest.mark.parametrize(
    ("model", "change", "expected"),
    [
        (products(12, r4=COUPLED), lambda reference: reference, [10, 10, 10, 10, 10, 10, 10]),
        (products(12), gone, [10, 10, 10, 10, 10, 10]),
    ],
)
def test_blocks_take_all_steps_where_neighbours_cannot_be_trained_as_one(model, change, expected, taken):
    graph, reference = noisy(model)
    seen = []
    steps = replace(COURSE, steps=10, batch=2)
    found = reconstruct(graph, change(reference), VECTORS, steps, neighbours=3, progress=seen.append)
    assert taken == expected
    assert sum(name.endswith(", 3 blocks") for name in found.errors) == 1  # the other three
    assert sum(seen) == 10 * len(turns_of(graph, 3))


def test_neighbours_are_not_trained_as_one_where_some_would_not_learn(taken):
    """What the first block puts out is read far behind, and is known; what the third puts out is not."""
    graph, reference = noisy(products(24, r23="k22 = Add (c22, r2)\nr23 = Relu (k22)"))
    assert turns_of(graph, 3)[3].block.makes == ("r2", "r6")
    found = reconstruct(graph, gone(reference), VECTORS, replace(COURSE, steps=10, batch=2), neighbours=3)
    assert taken[:2] == [10, 10]
    assert list(found.errors)[:2] == ["r2", "r4"]
    assert "r2, 3 blocks" not in found.errors


def test_neighbours_that_are_not_finished_have_a_careful_try():
    """Large steps spoil what they have, and half of the steps of each were left for this."""
    model = structures.residual(6)
    graph, reference = halved(model)
    found = reconstruct(graph, reference, batches(model), replace(COURSE, rate=1e-1), neighbours=3)
    joint, last = (name for name in found.errors if name.endswith(", 3 blocks"))
    assert joint in found.kept
    assert last not in found.kept


# a sequence cannot be kept: who reads it late runs early, along with what else it needs
SEQUENCES = {
    "r2": "q = SequenceConstruct (r1, r1)\ne1 = SequenceAt (q, zero)\nr2 = Mul (c1, e1)",
    "r6": "q2 = SequenceInsert (q, r4)\ns5 = SequenceAt (q2, two)\nn5 = Mul (s5, c5)\nr6 = Add (c5, n5)",
}


# what a condition is made of belongs to nobody, and depends on the first block
CONDITION = {
    "r1": "r1 = Relu (c0)\ns0 = Tanh (c0)\nm0 = Greater (s0, none)",
    "r3": "g2 = Where (m0, c2, none)\nr3 = Relu (g2)",
}


@pytest.mark.parametrize("neighbours", [1, 2, 3])
@pytest.mark.parametrize("lines", [SEQUENCES, CONDITION])
def test_blocks_read_what_was_trained_even_where_others_ran_ahead(lines, neighbours, monkeypatch):
    model = products(12, **lines)
    graph, reference = noisy(model, 0.3)
    real = block._Reconstruction._train
    stale = []

    def compared(self, number, *args):
        reads = self.turns[number].block.reads
        feeds = self.division.feeds
        fresh = Replay(graph, self.shapes.dtypes, feeds)
        for name in reads:
            fresh.hold(name)
        fresh.advance(reads)
        stale.extend(
            float(np.abs(fresh.get(name, batch) - self.new.get(name, batch)).max())
            for name in reads
            for batch in range(len(feeds))
        )
        real(self, number, *args)

    monkeypatch.setattr(block._Reconstruction, "_train", compared)
    found = reconstruct(
        graph,
        reference,
        VECTORS,
        COURSE,
        neighbours=neighbours,
        excluded=lambda name: name in ("w4", "w5"),
    )
    assert found.kept
    assert max(stale) < 1e-6


@pytest.mark.parametrize(("side", "batch"), [(8, 16), (32, 16), (64, 16), (96, 10), (256, 10)])
def test_of_large_images_fewer_make_a_step(side, batch, monkeypatch):
    """In 16 images of 64 by 64 there are as many places as in 64 of 32 by 32; but ten at least are looked at."""
    monkeypatch.setattr(block, "FEWEST", 10)
    courses = []
    real = block.train

    def seen(*args, **options):
        courses.append(args[5])
        return real(*args, **options)

    monkeypatch.setattr(block, "train", seen)
    body = "a = Conv <pads = [1, 1, 1, 1]> (x, w)\ny = Conv <pads = [1, 1, 1, 1]> (a, v)"
    model = build(
        f"float[N,2,{side},{side}] x",
        f"float[N,2,{side},{side}] y",
        body,
        {"w": (2, 2, 3, 3), "v": (2, 2, 3, 3)},
    )
    graph, reference = noisy(model)
    random = np.random.default_rng(0)
    feeds = [{"x": random.standard_normal((8, 2, side, side)).astype(np.float32)} for _ in range(3)]
    reconstruct(graph, reference, feeds, replace(COURSE, steps=2))
    assert {course.batch for course in courses} == {batch}


@pytest.mark.parametrize(("size", "steps"), [(1, 16), (5, 4), (16, 1), (40, 1)])
def test_a_step_has_as_many_samples_where_batches_are_taken_whole(size, steps, monkeypatch):
    """The first axis of what the block reads is time: of samples there are as many as the model's inputs have rows."""
    courses = []
    real = block.train

    def seen(*args, **options):
        assert not args[2].rows
        courses.append(args[5])
        return real(*args, **options)

    monkeypatch.setattr(block, "train", seen)
    body = """
    t = Transpose <perm = [1, 0, 2]> (x)
    r = LSTM <hidden_size = 4> (t, w, u)
    s = Squeeze (r, one)
    y = Transpose <perm = [1, 0, 2]> (s)
    """
    weights = {"w": (1, 16, 3), "u": (1, 16, 4), "one": np.array([1])}
    graph, reference = noisy(build("float[N,6,3] x", "float[N,6,4] y", body, weights))
    random = np.random.default_rng(0)
    feeds = [{"x": random.standard_normal((size, 6, 3)).astype(np.float32)} for _ in range(3)]
    reconstruct(graph, reference, feeds, replace(COURSE, steps=2))
    assert [course.batch for course in courses] == [steps]
