"""What the original teaches: its outputs, compared as what they are, and what it has inside where both have it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from grad import structures
from ops.oracle import build
from refit.test_block import halved, noisy

from surgeon.errors import UnsupportedModelError
from surgeon.grad.objective import Objective
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session, with_outputs
from surgeon.reference import Reference
from surgeon.refit.distill import TARGET, Teacher
from surgeon.refit.turns import find_trainable

CLASSIFIER = "a = MatMul (x, w1)\nb = Relu (a)\nc = MatMul (b, w2)\ny = Softmax (c)\nz = MatMul (b, w3)"


def classifier():
    weights = {"w1": (6, 8), "w2": (8, 4), "w3": (8, 3)}
    return build("float[N,6] x", "float[N,4] y, float[N,3] z", CLASSIFIER, weights)


def batches(count=4, samples=10):
    random = np.random.default_rng(0)
    return [{"x": x} for x in random.standard_normal((count, samples, 6)).astype(np.float32)]


def loss_of(teacher, graph, feeds, **options):
    import onnx_graphsurgeon as gs

    work = from_model(to_model(graph))
    work.inputs = [*work.inputs, *(gs.Variable(name, np.float32, None) for name in teacher.taught)]
    settings = {"temperature": 1.0, "weight": 0.0, **options}
    objective = Objective(work, lambda tape: teacher.loss(tape, **settings), [], rows=True)
    taught = teacher.teach(feeds)
    return objective.value({}, [(len(next(iter(feeds.values()))), taught)])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_probabilities_by_divergence_and_others_by_relative_error(temperature):
    graph, reference = noisy(classifier())
    feeds = batches()
    teacher = Teacher(reference, graph)
    teacher.look_at(feeds)
    ours, theirs = run(session(to_model(graph)), feeds[0]), run(session(classifier()), feeds[0])

    def soft(chances):
        scaled = chances.astype(np.float64) ** (1 / temperature)
        return scaled / scaled.sum(1, keepdims=True)

    p, q = soft(theirs[0]), soft(ours[0])
    divergence = temperature**2 * (p * np.log(p / q)).sum(1).mean()
    everything = np.concatenate([run(session(classifier()), each)[1] for each in feeds])
    error = np.square(ours[1] - theirs[1]).mean() / everything.var()
    found = loss_of(teacher, graph, feeds[0], temperature=temperature)
    assert found == pytest.approx((divergence + error) / 2, rel=1e-3)


def test_the_original_has_nothing_to_learn_from_itself():
    graph, reference = noisy(classifier(), 0)
    teacher = Teacher(reference, graph, ["b"])
    teacher.look_at(batches())
    assert loss_of(teacher, graph, batches()[0], weight=1.0) == pytest.approx(0, abs=1e-6)


def test_hints_are_what_is_left_of_the_original():
    model = structures.residual()
    graph, reference = halved(model)
    hints = [name for block in find_trainable(graph)[:-1] for name in block.makes]
    teacher = Teacher(reference, graph, hints)
    feeds = structures.feeds(model, 6)
    teacher.look_at([feeds])
    assert teacher.hints == hints
    taught = teacher.teach(feeds)
    whole = dict(zip(["y", *hints], run(session(with_outputs(model, hints)), feeds), strict=True))
    for name in hints:
        expected = reference.left(name, whole[name])
        np.testing.assert_allclose(taught[TARGET + name], expected, rtol=1e-4, atol=1e-5)
    without = loss_of(teacher, graph, feeds)
    assert loss_of(teacher, graph, feeds, weight=2.0) > without > 0


def test_hints_that_the_original_lacks_or_has_in_another_shape_are_left_out():
    graph, _ = noisy(classifier())
    other = from_model(classifier())
    for node in other.nodes:
        for tensor in node.outputs:
            if tensor.name == "a":
                tensor.name = "renamed"
    narrow = Reference(other, {"b": {1: np.arange(8) < 5}})
    teacher = Teacher(narrow, graph, ["a", "b", "c", "c"])
    assert teacher.hints == ["b", "c"]
    teacher.look_at(batches())
    assert teacher.hints == ["c"]
    assert teacher.taught == [TARGET + name for name in ("y", "z", "c")]


def test_integer_outputs_are_not_compared_and_some_output_has_to_be():
    body = f"{CLASSIFIER}\ni = ArgMax <axis=1> (c)"
    weights = {"w1": (6, 8), "w2": (8, 4), "w3": (8, 3)}
    both = build("float[N,6] x", "float[N,4] y, int64[N,1] i", body, weights)
    graph, reference = noisy(both)
    assert Teacher(reference, graph).outputs == ["y"]
    alone = onnx.ModelProto()
    alone.CopyFrom(both)
    del alone.graph.output[0]
    graph, reference = noisy(alone)
    with pytest.raises(UnsupportedModelError, match="nothing to compare"):
        Teacher(reference, graph)
