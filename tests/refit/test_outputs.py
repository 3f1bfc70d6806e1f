"""What a graph puts out in the end decides how much of what blocks learned is kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx_graphsurgeon.ir.tensor import LazyValues
from ops.oracle import build
from refit.test_block import COURSE, changed, constants, state

import surgeon.refit.outputs
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import session
from surgeon.graph.weights import peek
from surgeon.reference import Reference
from surgeon.refit.block import reconstruct
from surgeon.refit.outputs import Outcome, Outputs
from surgeon.refit.turns import find_trainable

BATCHES = [{"x": np.random.default_rng(seed).standard_normal((8, 3)).astype(np.float32)} for seed in range(4)]
WEIGHT = np.array([[1, 0.1], [0.2, -1], [0.5, 0.5]])


def model(factor, batch="N", more=""):
    """A product and its largest place."""
    body = f"""
    y = MatMul (x, w)
    k = ArgMax <axis = 1> (y)
    {more and "s = SequenceConstruct (y)"}
    """
    values = np.array(WEIGHT, np.float32)
    interface = f"float[{batch},2] y, int64[{batch},1] k{more}"
    return build(f"float[{batch},3] x", interface, body, {"w": values * np.float32(factor)})


X = np.concatenate([batch["x"] for batch in BATCHES])[[1, 5, 9, 17, 23, 30]]
JUDGE = [{"x": X[:4]}, {"x": X[4:]}]


def outputs(ours, theirs, feeds=JUDGE):
    graph = from_model(ours)
    return graph, Outputs(graph, Reference(from_model(theirs)), feeds)


def test_errors_are_those_of_the_held_out_samples():
    factor = np.array([3, 0.5])
    _, found = outputs(model(factor), model(1))
    wanted, made = X @ WEIGHT, X @ (WEIGHT * factor)
    floats = np.square(made - wanted).mean() / wanted.var()
    integers = (made.argmax(1) != wanted.argmax(1)).mean()
    assert integers > 0
    assert found.error() == pytest.approx((floats + integers) / 2, rel=1e-5)
    assert outputs(model(1), model(1))[1].error() == 0


@pytest.mark.parametrize("size", [1, 8])
def test_sequences_are_not_compared(size):
    sequence = ", seq(float[N,2]) s"
    feeds = [{"x": batch["x"][:size]} for batch in BATCHES]
    _, found = outputs(model(0.5, more=sequence), model(1, more=sequence), feeds)
    wanted = np.concatenate([batch["x"] for batch in feeds]) @ WEIGHT
    assert found.error() == pytest.approx(np.square(wanted / 2).mean() / wanted.var() / 2, rel=1e-5)


def test_what_numpy_does_not_know_is_not_compared():
    body = "a = MatMul (x, w)\ny = Cast <to = 16> (a)"
    narrow = build("float[N,3] x", "bfloat16[N,2] y", body, {"w": WEIGHT.astype(np.float32)})
    _, found = outputs(narrow, narrow)
    assert np.isnan(found.error())
    both = build("float[N,3] x", "bfloat16[N,2] y, float[N,2] a", body, {"w": WEIGHT.astype(np.float32)})
    _, found = outputs(both, both)
    assert found.error() == 0


def test_more_or_fewer_values_are_all_wrong():
    """Of places of values above a limit there are as many as there are such values."""
    one, two = (
        build("float[N,3] x", "int64[2,K] k", "m = Greater (x, z)\nk = NonZero (m)", {"z": np.float32(limit)})
        for limit in (0.5, -0.5)
    )
    assert outputs(one, two)[1].error() == 1
    assert outputs(one, one)[1].error() == 0


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("y = Cast <to = 2> (a)", "uint8"),
        ("b = Cast <to = 7> (a)\nc = Cast <to = 2> (b)\ny = Transpose (c)", "uint8"),
        ("y = QuantizeLinear (a, one, none)", "uint8"),
        ("b = Round (a)\ny = Cast <to = 7> (b)", "int64"),
        ("y = QuantizeLinear (a, one, wide)", "uint16"),
        ("b = Cast <to = 6> (a)\nc = Clip (b, least, most)\ny = Cast <to = 2> (c)", "uint8"),
        (
            "b = Cast <to = 6> (a)\nc = Add (b, most)\nd = Concat <axis = 0> (b, c)\ny = Slice (d, zero, two)",
            "int32",
        ),
        ("q, s, z = DynamicQuantizeLinear (a)\ny = Identity (q)", "uint8"),
        ("q = QuantizeLinear (a, one, none)\ny = MatMulInteger (q, some)", "int32"),
        ("q = QuantizeLinear (a, one, none)\ns = Shape (a)\ny = Reshape (q, s)", "uint8"),
        ("q = QuantizeLinear (a, one, none)\nl = Greater (a, hundred)\ny = Where (l, q, none)", "uint8"),
    ],
)
def test_rounded_quantities_are_compared_as_numbers(body, kind):
    """An image that is brighter by one everywhere is not all wrong."""
    more = {
        "none": np.uint8(0),
        "wide": np.uint16(0),
        "hundred": np.float32(90),
        "one": np.float32(1),
        "least": np.int32(0),
        "most": np.int32(255),
        "zero": np.array([0]),
        "two": np.array([2]),
        "some": np.ones((2, 2), np.uint8),
    }
    one, two = (
        build(
            "float[N,3] x",
            f"{kind}[K,M] y",
            f"p = MatMul (x, w)\nm = Mul (p, ten)\na = Add (m, shift)\n{body}",
            more | {"w": WEIGHT.astype(np.float32), "ten": np.float32(10), "shift": np.float32(shift)},
        )
        for shift in (101, 100)
    )
    assert outputs(one, two)[1].labels == {"y": False}
    assert 0 < outputs(one, two)[1].error() < 0.1


@pytest.mark.parametrize(
    "body",
    [
        "y = Cast <to = 1> (k)",
        "y = Cast <to = 2> (k)",
        "y = Greater (a, zero)",
        "b = Relu (a)\ny = Cast <to = 9> (b)",
        "b = Cast <to = 1> (k)\ny = Cast <to = 2> (b)",
        "b = Add (k, k)\nc = Sub (b, k)\ny = Cast <to = 1> (c)",
    ],
)
def test_labels_are_compared_as_such_whatever_their_type(body):
    kind = next(
        (k for to, k in ((1, "float"), (2, "uint8")) if body.endswith(f"<to = {to}> ({body[-2:-1]})")), "bool"
    )
    factor = np.array([3, -0.5])
    one, two = (
        build(
            "float[N,3] x",
            f"{kind}[N,K] y",
            f"a = MatMul (x, w)\nk = ArgMax <axis = 1> (a)\n{body}",
            {
                "w": (WEIGHT * by).astype(np.float32),
                "zero": np.float32(0),
            },
        )
        for by in (factor, 1)
    )
    made, wanted = (
        (X @ (WEIGHT * by) > 0) if kind == "bool" else (X @ (WEIGHT * by)).argmax(1) for by in (factor, 1)
    )
    assert 0 < outputs(one, two)[1].error() == pytest.approx((made != wanted).mean())


@pytest.mark.parametrize("found", ["ArgMax <axis = 1> (q)", "NonZero (q)", "Shape (q)"])
@pytest.mark.parametrize("swapped", [False, True])
def test_places_among_rounded_quantities_are_labels(found, swapped):
    """If they are so in either graph."""
    body = f"a = MatMul (x, w)\nq = QuantizeLinear (a, one, none)\nm = {found}\ny = Cast <to = 1> (m)"
    values = {"w": WEIGHT.astype(np.float32), "one": np.float32(1), "none": np.uint8(128)}
    place = build("float[N,3] x", "float[K,M] y", body, values)
    other = build("float[N,3] x", "float[N,2] y", "y = MatMul (x, w)", {"w": WEIGHT.astype(np.float32)})
    assert outputs(*((other, place) if swapped else (place, other)))[1].labels == {"y": True}


def test_long_sums_of_places_are_followed():
    """Each of which reads the last one twice."""
    sums = "\n".join(f"a{i + 1} = Add (a{i}, a{i})" for i in range(2000))
    body = f"m = MatMul (x, w)\na0 = ArgMax <axis = 1> (m)\n{sums}\ny = Cast <to = 1> (a2000)"
    one = build("float[N,3] x", "float[N,1] y", body, {"w": WEIGHT.astype(np.float32)})
    assert outputs(one, one)[1].labels == {"y": True}


def test_what_was_sparse_is_sparse_again():
    values = np.where(np.abs(WEIGHT) > 0.3, WEIGHT, 0).astype(np.float32)
    dense = build("float[N,3] x", "float[N,2] y", "y = MatMul (x, w)", {"w": values})
    sparse = onnx.ModelProto()
    sparse.CopyFrom(dense)
    del sparse.graph.initializer[:]
    places = np.flatnonzero(values)
    sparse.graph.sparse_initializer.append(
        onnx.helper.make_sparse_tensor(
            onnx.numpy_helper.from_array(values.reshape(-1)[places], "w"),
            onnx.numpy_helper.from_array(places.astype(np.int64)),
            list(values.shape),
        )
    )
    graph, found = outputs(sparse, dense)
    weight = constants(graph)["w"]
    stored = weight._values
    weight.values = np.asarray(peek(weight) + 1)
    assert found.settle([(weight, stored)]).share == 0
    assert len(to_model(graph).graph.sparse_initializer) == 1


def test_what_is_given_back_is_stored_as_it_was(monkeypatch):
    losses = iter([3, 2, 3, 3])
    monkeypatch.setattr(Outputs, "error", lambda self: next(losses))
    graph = from_model(model(0.5))
    stored = constants(graph)["w"]._values
    assert isinstance(stored, LazyValues)
    found = reconstruct(graph, Reference(from_model(model(1))), BATCHES, COURSE)
    assert found.outcome == Outcome(2, 2, 0)
    assert constants(graph)["w"]._values is stored


def test_the_original_runs_once_and_nothing_where_nothing_is_learned(monkeypatch):
    """One session at a time, so that large models fit."""
    opened = []

    def counted(model, **options):
        opened.append(model)
        return session(model, **options)

    monkeypatch.setattr(surgeon.refit.outputs, "session", counted)
    graph, found = outputs(model(0.8), model(1))
    weight = constants(graph)["w"]
    start = weight._values
    weight.values = np.asarray(peek(weight) * 9)
    assert found.settle([(weight, start)]).share == 0
    assert len(opened) == 1 + 4
    opened.clear()
    reconstruct(graph, Reference(from_model(model(1))), BATCHES, replace(COURSE, steps=0))
    assert opened == []


@pytest.mark.parametrize("what", [np.nan, np.inf])
def test_what_is_no_number_is_given_back(what):
    graph, found = outputs(model(0.5), model(1))
    weight = constants(graph)["w"]
    start, before = peek(weight), found.error()
    weight.values = start * what
    assert found.settle([(weight, start)]) == Outcome(before, before, 0)
    assert np.array_equal(peek(weight), start)


def test_infinite_places_hide_nothing_of_the_others():
    body = "a = MatMul (x, w)\nm = Greater (x, zero)\ny = Where (m, minus, a)"
    square = {"zero": np.float32(0), "minus": np.float32(-np.inf)}
    right, off = (
        build("float[N,3] x", "float[N,3] y", body, square | {"w": np.eye(3, dtype=np.float32) * factor})
        for factor in (np.float32(1), np.float32(0.5))
    )
    _, found = outputs(off, right)
    seen = X[X <= 0]
    energy = np.square(seen - seen.mean()).sum()
    assert found.error() == pytest.approx(np.square(seen / 2).sum() / energy, rel=1e-5)
    assert outputs(right, right)[1].error() == 0


def test_outputs_that_depend_on_no_input_are_not_compared():
    """An initializer, and what is made of one, whose rows are no samples: what else there is goes by samples all the same."""
    interface = "float[N,2] y, float[5] made, float[5] c"
    body = "y = MatMul (x, w)\nmade = Neg (c)"
    constant = {"c": np.arange(5, dtype=np.float32)}
    one, two = (
        build("float[N,3] x", interface, body, {"w": (WEIGHT * factor).astype(np.float32)} | constant)
        for factor in (0.5, 1)
    )
    for each in (one, two):
        assert [tensor.name for tensor in each.graph.output] == ["y", "made", "c"]
    _, found = outputs(one, two, feeds=[{"x": X[:2]}])
    wanted = X[:2] @ WEIGHT
    assert found.error() == pytest.approx(np.square(wanted / 2).mean() / wanted.var(), rel=1e-5)
    graph = from_model(one)
    learned = reconstruct(graph, Reference(from_model(two)), BATCHES, COURSE)
    assert learned.kept
    assert learned.outcome.after < learned.outcome.before


def test_one_sample_has_no_variance_and_does_not_decide_all():
    body = "y = MatMul (x, w)\np = MatMul (x, v)"
    one, two = (
        build(
            "float[N,3] x",
            "float[N,2] y, float[N,1] p",
            body,
            {"w": (WEIGHT * factor).astype(np.float32), "v": np.full((3, 1), near, np.float32)},
        )
        for factor, near in ((0.5, 1.001), (1, 1))
    )
    _, found = outputs(one, two, feeds=[{"x": BATCHES[0]["x"][3:4]}])
    assert 0.01 < found.error() < 10


def test_of_what_is_rounded_part_of_the_way_may_be_none():
    body = "r = Round (w)\ny = MatMul (x, r)"
    graph, found = outputs(
        *(
            build("float[N,3] x", "float[N,2] y", body, {"w": np.rint(WEIGHT * f).astype(np.float32)})
            for f in (4, 8)
        )
    )
    weight = constants(graph)["w"]
    start, before = peek(weight), found.error()
    weight.values = start - np.float32(1.6) * np.sign(start)  # a quarter of it is rounded back
    assert found.error() > before
    assert found.settle([(weight, start)]).share == 0
    assert np.array_equal(peek(weight), start)


@pytest.mark.parametrize(
    ("end", "share", "left"),
    [(1.1, 1, 1.1), (0.8, 1, 0.8), (1.4, 0.5, 1.1), (1.9, 0.25, 1.075), (3, 0, 0.8), (0.7, 0, 0.8)],
)
def test_weights_go_as_far_as_the_outputs_are_no_worse(end, share, left):
    graph, found = outputs(model(0.8), model(1))
    weight = constants(graph)["w"]
    start, before = peek(weight), found.error()
    weight.values = (start * (end / 0.8)).astype(np.float32)
    outcome = found.settle([(weight, start)])
    assert outcome.share == share
    assert peek(weight).dtype == np.float32
    np.testing.assert_allclose(peek(weight), start * (left / 0.8), rtol=1e-6)
    assert outcome.before == before
    assert outcome.after == found.error() <= before


def test_a_block_that_is_better_for_nothing_is_given_back():
    """The block comes nearer in what the next does not look at, and leaves what that does."""
    body = """
    a = MatMul (x, w)
    b = Relu (a)
    c = MatMul (b, u)
    d = Relu (c)
    e = MatMul (d, v)
    y = MatMul (e, i)
    """
    right = {
        "w": np.full((6, 1), 0.5, np.float32),
        "u": np.ones((1, 6), np.float32),
        "v": np.diag([1e-3] * 3 + [1.0] * 3).astype(np.float32),
        "i": np.eye(6, dtype=np.float32),
    }
    off = right | {"u": np.array([[0.5] * 3 + [1.0] * 3], np.float32)}
    graph = from_model(build("float[N,6] x", "float[N,6] y", body, off))
    reference = Reference(from_model(build("float[N,6] x", "float[N,6] y", body, right)))
    assert len(find_trainable(graph)) == 2
    random = np.random.default_rng(0)
    feeds = [{"x": random.standard_normal((16, 6)).astype(np.float32)} for _ in range(8)]
    before = state(graph)
    found = reconstruct(graph, reference, feeds, COURSE, excluded=lambda name: name in ("u", "v", "i"))
    first, after = next(iter(found.errors.values()))
    assert after < 0.9 * first
    assert changed(graph, before) == set()
    assert found.kept == []
    assert found.outcome == Outcome(found.outcome.before, found.outcome.before, 0)


def test_nothing_learned_has_no_outcome():
    graph = from_model(model(1))
    found = reconstruct(graph, Reference(from_model(model(1))), BATCHES, replace(COURSE, steps=0))
    assert found.outcome is None
