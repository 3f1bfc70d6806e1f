"""Made-up data: pictures, the range of values that suits a network, and inputs nothing can be made up for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from surgeon.engine import analyse
from surgeon.errors import UnsupportedModelError
from surgeon.graph.load import from_model
from surgeon.stats.leaves import coloured_noise, dead_leaves
from surgeon.stats.matched import BATCHES, EVERY, matched_dataset
from surgeon.stats.moments import best_of, known_moments
from surgeon_passes.clean import Clean


def network(shift: float = 0.0, scale: float = 1.0, *, norm: bool = True) -> onnx.ModelProto:
    """A convolution whose inputs have this mean and deviation, normalised by what that makes of its outputs."""
    random = np.random.default_rng(0)
    weight = np.abs(random.standard_normal((8, 3, 3, 3))).astype(np.float32)
    mean = weight.sum(axis=(1, 2, 3)) * shift
    spread = scale * np.abs(weight.sum(axis=(1, 2, 3)))  # neighbours in pictures are nearly equal
    arrays = {
        "w": weight,
        "g": np.ones(8, np.float32),
        "b": random.normal(0, 0.3, 8).astype(np.float32),
        "m": mean.astype(np.float32),
        "v": (spread**2).astype(np.float32),
        "head": random.standard_normal((4, 8, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Conv", ["r", "head"], ["y"]),
    ]
    if not norm:
        nodes[1] = helper.make_node("Identity", ["c"], ["n"])
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 24, 24])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("family", [dead_leaves, coloured_noise])
def test_pictures_are_standardised_seeded_and_smooth(family):
    pictures, same = (family(8, (3, 20, 28), np.random.default_rng(1)) for _ in range(2))
    assert pictures.shape == (8, 3, 20, 28)
    assert pictures.dtype == np.float32
    assert abs(pictures.mean()) < 1e-3
    assert abs(pictures.std() - 1) < 1e-3
    np.testing.assert_array_equal(pictures, same)
    steps = np.diff(pictures, axis=3)
    assert (steps**2).mean() < 0.5 * 2 * pictures.var()  # white noise would have all of it


@pytest.mark.parametrize(
    ("shift", "scale", "range_"),
    [
        (0.0, 1.0, "standardised"),
        (115.0, 69.0, "0..255"),
        (0.0, 69.0, "0..255, centred"),
        (0.45, 0.27, "0..1"),
    ],
)
@pytest.mark.parametrize("folded", [False, True])
def test_the_range_is_that_of_the_batch_normalization_also_where_it_was_folded(
    shift, scale, range_, folded, tmp_path
):
    from surgeon.passes import Context

    graph = from_model(network(shift, scale))
    if folded:
        graph = Clean().run(graph, Context(tmp_path / "m.onnx"))
        assert not [node for node in graph.nodes if node.op == "BatchNormalization"]
    found = matched_dataset(analyse(graph).analysis, 0, samples=48)
    assert found.facts["judged_by"] == "batch normalization"
    assert found.facts["inputs"] == {"x": f"dead leaves, {range_}"}


def test_moments_of_folded_and_unfolded_normalization_are_the_same(tmp_path):
    from surgeon.passes import Context

    graph = from_model(network())
    before = known_moments(graph)["n"]
    after = known_moments(Clean().run(graph, Context(tmp_path / "m.onnx")))["n"]
    np.testing.assert_allclose(before, after)


def test_without_normalization_only_a_clear_difference_counts():
    assert best_of([0.6, 0.55, 0.9], known=False) == 0
    assert best_of([0.6, 0.3, 0.9], known=False) == 1
    assert best_of([0.6, 0.55, 0.9], known=True) == 1
    found = matched_dataset(analyse(from_model(network(norm=False))).analysis, 0, samples=24)
    assert found.facts["judged_by"] == "offsets of channels"


def test_every_sixth_batch_is_of_another_family_and_reading_twice_gives_the_same():
    data = matched_dataset(analyse(from_model(network())).analysis, 3, samples=48).data
    first, again = ([feeds["x"] for feeds, _ in data] for _ in range(2))
    assert len(first) == BATCHES
    assert {len(each) for each in first} == {4}
    np.testing.assert_array_equal(first, again)
    flat = [float((np.diff(each, axis=3) == 0).mean()) for each in first]
    assert len({round(share, 9) for share in flat}) > 1
    assert EVERY < BATCHES


def test_inputs_that_cannot_be_made_up_or_give_no_numbers_are_refused():
    text = helper.make_tensor_value_info("x", TensorProto.STRING, ["N"])
    out = helper.make_tensor_value_info("y", TensorProto.STRING, ["N"])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [text], [out])
    words = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(UnsupportedModelError, match=r"made-up|make up"):
        matched_dataset(analyse(from_model(words)).analysis, 0)
    broken = network(norm=False)
    broken.graph.node[1].CopyFrom(helper.make_node("Div", ["c", "zero"], ["n"]))
    broken.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "zero"))
    with pytest.raises(UnsupportedModelError, match="not finite"):
        matched_dataset(analyse(from_model(broken)).analysis, 0, samples=12)
