"""Whole graphs learn, take samples apart only where the graph does, stay what they were where they cannot, and spare what they must."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from grad import structures
from ops.oracle import build

from surgeon.errors import DataError
from surgeon.grad.ties import Tie
from surgeon.grad.train import Course
from surgeon.graph.copy import copy_of
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.graph.weights import peek
from surgeon.refit import whole
from surgeon.refit.whole import Lesson, Parameters, train_whole

COURSE = Course(steps=60, batch=16, rate=5e-3, evaluations=6)
WANTED = "wanted"
TURNED = "t = Transpose (w1)\na = MatMul (x, t)\nb = Relu (a)\nc = MatMul (b, w2)\ny = Add (c, b2)"


def turned():
    model = build("float[N,6] x", "float[N,4] y", TURNED, {"w1": (6, 6), "w2": (6, 4), "b2": (4,)})
    for node in model.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return model


def squared(tape):
    difference = tape.find("y") - tape.find(WANTED)
    return (difference * difference).mean()


def lesson(model, feeds, **options):
    """What a model puts out, as what another should."""
    runner = session(model)
    taught = [{**each, WANTED: run(runner, each)[0]} for each in feeds]
    return Lesson(taught, squared, **options)


def noisy(model, size=0.2):
    graph = from_model(model)
    random = np.random.default_rng(0)
    for name, constant in constants(graph).items():
        if np.dtype(constant.dtype).kind == "f" and name.startswith(("w", "b")):
            values = peek(constant)
            constant.values = (values + size * random.standard_normal(values.shape)).astype(values.dtype)
    return graph


def constants(graph):
    return {t.name: t for node in graph.nodes for t in node.inputs if hasattr(t, "_values") and t.name}


def state(graph):
    return {name: np.array(peek(constant)) for name, constant in constants(graph).items()}


def changed(graph, before):
    return {name for name, values in state(graph).items() if values.tobytes() != before[name].tobytes()}


def vectors(batches=6, samples=16):
    random = np.random.default_rng(1)
    return [{"x": x} for x in random.standard_normal((batches, samples, 6)).astype(np.float32)]


def test_what_is_off_comes_nearer():
    graph = noisy(turned())
    found = train_whole(graph, lesson(turned(), vectors()), COURSE)
    assert found.state.improved
    assert found.state.loss < 0.3 * found.state.before
    assert found.stopped == {}
    unseen = {"x": np.random.default_rng(9).standard_normal((50, 6)).astype(np.float32)}
    assert changed(graph, state(noisy(turned()))) == {"w1", "w2", "b2"}
    error, before = (
        np.square(run(session(to_model(each)), unseen)[0] - run(session(turned()), unseen)[0]).mean()
        for each in (graph, noisy(turned()))
    )
    assert error < 0.5 * before


@pytest.mark.filterwarnings("error")
def test_what_does_not_get_better_stays_bit_for_bit():
    graph = noisy(turned())
    before = state(graph)
    found = train_whole(graph, lesson(turned(), vectors()), replace(COURSE, rate=1e6))
    assert not found.state.improved
    assert changed(graph, before) == set()


@pytest.mark.parametrize(
    ("excluded", "stays"),
    [("w2", {"w2"}), ("MatMul_c", {"w2"}), ("Transpose_t", {"w1"}), ("MatMul_a", {"w1"}), ("Add_y", {"b2"})],
)
def test_what_is_excluded_stays_also_behind_a_transpose(excluded, stays):
    graph = noisy(turned())
    before = state(graph)
    train_whole(graph, lesson(turned(), vectors()), COURSE, excluded=lambda name: name == excluded)
    assert changed(graph, before) == {"w1", "w2", "b2"} - stays


def test_nothing_to_train_takes_no_steps():
    graph, seen = noisy(turned()), []
    found = train_whole(
        graph, lesson(turned(), vectors()), COURSE, excluded=lambda _: True, progress=seen.append
    )
    assert not found.state.improved
    assert sum(seen) == found.state.optimizer.steps == 0


def spied(monkeypatch):
    """Whether what was learned from was rows."""
    found = []
    original = whole.train

    def spy(objective, start, samples, *rest, **options):
        found.append(samples.rows)
        return original(objective, start, samples, *rest, **options)

    monkeypatch.setattr(whole, "train", spy)
    return found


def test_samples_are_told_apart_where_the_graph_does_and_only_there(monkeypatch):
    found = spied(monkeypatch)
    train_whole(noisy(turned()), lesson(turned(), vectors()), COURSE)
    single = build("float[1,6] x", "float[1,4] y", TURNED, {"w1": (6, 6), "w2": (6, 4), "b2": (4,)})
    train_whole(noisy(single), lesson(single, vectors(20, 1)), COURSE)
    body = f"m = ReduceMean <keepdims=1> (x, zero)\nd = Sub (x, m)\n{TURNED.replace('(x, t)', '(d, t)')}"
    weights = {"w1": (6, 6), "w2": (6, 4), "b2": (4,), "zero": np.array([0])}
    centred = build("float[N,6] x", "float[N,4] y", body, weights)
    train_whole(noisy(centred), lesson(centred, vectors()), COURSE)
    assert found == [True, True, False]


def test_outputs_that_are_no_floats_do_not_matter(monkeypatch):
    found = spied(monkeypatch)
    body = f"{TURNED}\ni = ArgMax <axis=1> (c)\nn = Cast <to=8> (i)\nz = Shape (x)"
    outputs = "float[N,4] y, string[N,1] n, int64[2] z"
    model = build("float[N,6] x", outputs, body, {"w1": (6, 6), "w2": (6, 4), "b2": (4,)})
    assert train_whole(noisy(model), lesson(model, vectors()), COURSE).state.improved
    assert found == [True]


def test_a_first_axis_of_time_is_not_taken_for_samples(monkeypatch):
    found = spied(monkeypatch)
    body = "r = LSTM <hidden_size=4> (x, w, u)\ny = Squeeze (r, one)"
    weights = {"w": (1, 16, 3), "u": (1, 16, 4), "one": np.array([1])}
    model = build("float[T,N,3] x", "float[T,N,4] y", body, weights)
    feeds = [{"x": x} for x in np.random.default_rng(0).standard_normal((8, 5, 4, 3)).astype(np.float32)]
    result = train_whole(noisy(model), lesson(model, feeds), replace(COURSE, batch=2))
    assert found == [False]
    assert result.state.improved


def test_what_the_loss_reads_inside_keeps_samples_apart_too(monkeypatch):
    """Rows of a matrix that lists all places of all samples are no samples."""
    found = spied(monkeypatch)
    body = "f = Reshape (x, flat)\nm = MatMul (f, w1)\nb = Reshape (m, back)\ny = MatMul (b, w2)"
    sizes = {"flat": np.array([-1, 6]), "back": np.array([-1, 3, 6])}
    model = build("float[N,3,6] x", "float[N,3,4] y", body, {"w1": (6, 6), "w2": (6, 4), **sizes})
    feeds = [{"x": x} for x in np.random.default_rng(0).standard_normal((8, 4, 3, 6)).astype(np.float32)]
    course = replace(COURSE, steps=5)
    train_whole(noisy(model), lesson(model, feeds), course)
    train_whole(noisy(model), lesson(model, feeds, inside=["m"]), course)
    assert found == [True, False]


def test_little_memory_runs_samples_in_parts_and_ends_alike():
    model = structures.residual(1)
    feeds = [structures.feeds(model, 16, seed) for seed in range(4)]
    losses = []
    for limit in (2**31, 100_000):
        found = train_whole(noisy(model, 0.05), lesson(model, feeds), COURSE, limit_bytes=limit)
        losses.append(found.state.loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_variants_and_what_is_taught_of_them_are_what_is_learned():
    model, seen = turned(), []
    runner = session(model)

    def augment(feeds, random):
        return {"x": feeds["x"] + random.standard_normal(feeds["x"].shape).astype(np.float32)}

    def teach(feeds):
        seen.append(len(feeds["x"]))
        return {**feeds, WANTED: run(runner, {"x": feeds["x"]})[0]}

    given = Lesson(vectors(), squared, taught=[WANTED], teach=teach, augment=augment)
    graph = noisy(model)
    found = train_whole(graph, given, COURSE)
    assert found.state.loss < 0.3 * found.state.before
    assert seen.count(16) >= COURSE.steps


def test_one_sample_is_too_few():
    one = lesson(turned(), [{"x": np.ones((1, 6), np.float32)}])
    with pytest.raises(DataError, match="at least two samples"):
        train_whole(noisy(turned()), one, COURSE)


def test_chosen_parameters_are_judged_as_they_are_stored():
    """One matrix of two is trained, in steps of a quarter, and what is zero in it stays so."""
    graph = noisy(turned())
    start = state(graph)
    constant = constants(graph)["w2"]
    tie = Tie(np.arange(24).reshape(6, 4) % 4 != 0)
    seen = []

    def stored(values):
        seen.append(values)
        return {name: np.rint(each * 4) / 4 for name, each in values.items()}

    found = train_whole(
        graph,
        lesson(turned(), vectors()),
        COURSE,
        parameters=Parameters({"w2": constant}, {"w2": tie}, stored),
    )
    assert changed(graph, start) == {"w2"}
    assert np.array_equal(peek(constant)[~tie.free], start["w2"][~tie.free])
    assert len(seen) == len(found.state.history) + 1
    rounded = copy_of(graph)
    constants(rounded)["w2"].values = stored({"w2": peek(constant)})["w2"]
    again = train_whole(rounded, lesson(turned(), vectors()), replace(COURSE, steps=0))
    assert again.state.before == pytest.approx(found.state.loss, rel=1e-5)
