"""What is left of the original's tensors has the shape of the smaller model's, and where nothing before was cut its values."""

from __future__ import annotations

import numpy as np
import pytest
from grad import structures
from refit import networks

from surgeon.engine import analyse
from surgeon.graph.copy import copy_of
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session, with_outputs
from surgeon.reference import Reference, narrowed


def half(model, seed):
    random = np.random.default_rng(seed)
    return {
        group.id: random.permutation(group.size) < max(group.size // 2, 1)
        for group in model.groups
        if group.size > 1
    }


def tensors(graph, feeds):
    names = [tensor.name for node in graph.nodes for tensor in node.outputs if tensor.name]
    runner = session(with_outputs(to_model(graph), names))
    values = run(runner, feeds)
    return dict(zip((output.name for output in runner.get_outputs()), values, strict=True))


def cut_twice(make):
    """The smaller graph, the reference after each of two cuts, and feeds."""
    source = make()
    first = analyse(from_model(source))
    smaller, plan = first.cut(half(first, 0))
    one = narrowed(None, first, plan)
    second = analyse(smaller)
    smallest, plan = second.cut(half(second, 1))
    return first, smaller, one, smallest, narrowed(one, second, plan), structures.feeds(source)


@pytest.mark.parametrize(
    "make", [networks.mixed, structures.residual, structures.transformer, structures.dense]
)
def test_shapes_are_those_of_the_cut_models(make):
    first, smaller, one, smallest, two, feeds = cut_twice(make)
    original = tensors(first.analysis.graph, feeds)
    for graph, reference in ((smaller, one), (smallest, two)):
        found = tensors(graph, feeds)
        shared = found.keys() & original.keys()
        assert len(shared) > len(original) / 2
        shrunk = 0
        for name in shared:
            left = reference.left(name, original[name])
            assert left.shape == found[name].shape, name
            shrunk += left.shape != original[name].shape
        assert shrunk


def test_channels_left_are_the_original_ones_after_one_cut_and_after_two():
    first, smaller, one, smallest, two, feeds = cut_twice(networks.mixed)
    original = tensors(first.analysis.graph, feeds)
    for graph, reference in ((smaller, one), (smallest, two)):
        found = tensors(graph, feeds)
        for name in (
            "a",
            "r",
            "d",
            "e",
        ):  # the input is whole, and the second convolution goes channel by channel
            left = reference.left(name, original[name])
            assert left.shape[1] < original[name].shape[1]
            np.testing.assert_allclose(left, found[name], rtol=1e-5, atol=1e-6)


def test_the_original_stays_the_original():
    first, _, one, _, two, _ = cut_twice(networks.mixed)
    assert one.graph is first.analysis.graph
    assert two.graph is first.analysis.graph
    assert one.kept["a"][1].sum() > two.kept["a"][1].sum()
    assert not (two.kept["a"][1] & ~one.kept["a"][1]).any()


def test_a_reference_that_nothing_was_cut_of_gives_way_to_the_canonical_graph():
    found = analyse(from_model(networks.mixed()))
    smaller, plan = found.cut(half(found, 0))
    assert smaller is not found.analysis.graph
    reference = narrowed(Reference(copy_of(found.original)), found, plan)
    assert reference.graph is found.analysis.graph


def test_what_was_not_cut_is_left_as_it_is():
    array = np.ones((2, 3))
    reference = Reference(from_model(networks.mixed()), {"a": {1: np.array([True, False, True])}})
    assert reference.left("other", array) is array
    np.testing.assert_array_equal(reference.left("a", np.arange(6).reshape(2, 3)), [[0, 2], [3, 5]])


def test_several_axes_at_once():
    flags = {0: np.array([True, False]), 2: np.array([False, True, True])}
    array = np.arange(12).reshape(2, 2, 3)
    np.testing.assert_array_equal(Reference(None, {"a": flags}).left("a", array), array[:1, :, 1:])
