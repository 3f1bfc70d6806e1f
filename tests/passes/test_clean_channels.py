"""The pass ``clean`` removes channels that nothing reads or that never change, where that is exact."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from clean_models import cleaned, constant, draw, model, norm, norm_parameters, ops
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from random_graphs import network


def two_layers(first, bias, second, activation="Relu", pads=(0, 0, 0, 0), **attributes):
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"]),
        helper.make_node(activation, ["a"], ["r"], **attributes),
        helper.make_node("Conv", ["r", "w2"], ["y"], pads=pads),
    ]
    size = 6 - second.shape[2] + 1 + pads[0] + pads[2]
    inputs, outputs = {"x": ["n", first.shape[1], 6, 6]}, {"y": ["n", second.shape[0], size, size]}
    return model(nodes, {"w1": first, "b1": bias, "w2": second}, inputs, outputs)


def test_constant_channels_move_into_the_next_bias(tmp_path):
    first, bias, second = draw(5, 3, 1, 1), draw(5), draw(4, 5, 3, 3)
    first[[1, 3]] = 0
    bias[1], bias[3] = 0.7, -0.3
    after, record = cleaned(
        two_layers(first, bias, second, "LeakyRelu", alpha=0.1), tmp_path, channel_multiple=1
    )
    assert record["channels_removed"] == 2
    assert record["certificate"]["status"] == "exact"
    assert sorted(each.dims[0] for each in after.graph.initializer) == [3, 3, 4, 4]


def test_constant_channels_stay_where_padding_would_show(tmp_path):
    first, bias, second = draw(5, 3, 1, 1), np.abs(draw(5)), draw(4, 5, 3, 3)
    first[[1, 3]] = 0
    bias[3] = -1  # zero behind the Relu, as the padding is
    _, record = cleaned(two_layers(first, bias, second, pads=(1, 1, 1, 1)), tmp_path, channel_multiple=1)
    assert record["channels_removed"] == 1


def test_channels_that_nothing_reads_go(tmp_path):
    second = draw(4, 5, 3, 3)
    second[:, [0, 4]] = 0
    _, record = cleaned(two_layers(draw(5, 3, 1, 1), draw(5), second), tmp_path, channel_multiple=1)
    assert record["channels_removed"] == 2


def test_one_channel_of_a_group_stays(tmp_path):
    first, bias = np.zeros((5, 3, 1, 1), np.float32), draw(5)
    after, record = cleaned(two_layers(first, bias, draw(4, 5, 3, 3)), tmp_path, channel_multiple=1)
    assert record["channels_removed"] == 4
    assert ops(after) == ["Conv", "Relu", "Conv"]


def test_a_residual_channel_goes_only_if_no_branch_reads_it(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["s"]),
        helper.make_node("Conv", ["s", "w1", "b1"], ["a"]),
        helper.make_node("Add", ["s", "a"], ["t"]),
        helper.make_node("Relu", ["t"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["y"]),
    ]
    weights = {
        "w0": draw(6, 3, 1, 1),
        "b0": draw(6),
        "w1": draw(6, 6, 1, 1),
        "b1": draw(6),
        "w2": draw(2, 6, 1, 1),
    }
    weights["w0"][[0, 5]] = 0
    weights["w1"][[0, 3]] = 0  # channel 3 is constant in one branch only, channel 0 in both
    after, record = cleaned(
        model(nodes, weights, {"x": ["n", 3, 4, 4]}, {"y": ["n", 2, 4, 4]}), tmp_path, channel_multiple=1
    )
    assert record["channels_removed"] == 1
    assert constant(after, "w1").shape == (5, 5, 1, 1)


def test_constant_channels_through_depthwise_pooling_and_gemm(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"]),
        norm("a", "b"),
        helper.make_node("Sigmoid", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "w1", "b1"], ["d"], group=8),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["y"], transB=1),
    ]
    weights = {
        "w0": draw(8, 3, 1, 1),
        "w1": draw(8, 1, 3, 3),
        "b1": draw(8),
        "w2": draw(5, 8),
        "b2": draw(5),
        **norm_parameters(8),
    }
    weights["n_scale"][[2, 6, 7]] = 0  # what training with weight decay leaves behind
    after, record = cleaned(
        model(nodes, weights, {"x": ["n", 3, 6, 6]}, {"y": ["n", 5]}), tmp_path, channel_multiple=1
    )
    assert record["channels_removed"] == 3
    assert constant(after, "w2").shape == (5, 5)


def test_dead_channels_can_be_kept(tmp_path):
    second = draw(4, 5, 3, 3)
    second[:, 0] = 0
    before = two_layers(draw(5, 3, 1, 1), draw(5), second)
    after, _ = cleaned(before, tmp_path, remove_dead_channels=False)
    assert constant(after, "w2").shape == (4, 5, 3, 3)


def test_what_is_left_is_a_multiple(tmp_path):
    second = draw(4, 40, 1, 1)
    second[:, 10:35] = 0
    after, record = cleaned(two_layers(draw(40, 3, 1, 1), draw(40), second), tmp_path)
    assert record["channels_removed"] == 24  # 15 are needed, 16 stay
    assert constant(after, "w2").shape == (4, 16, 1, 1)


def with_zeros(proto, flags):
    """Zeroes random slices of every weight, as sparse training does."""
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        if values.dtype.kind == "f" and values.ndim >= 2:
            for axis in range(2):
                dead = flags.random(values.shape[axis]) < 0.3
                values[(slice(None),) * axis + (dead,)] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return proto


def removed_from_random(seed, folder):
    proto = with_zeros(network(Random(seed)), np.random.default_rng(seed))
    _, record = cleaned(proto, folder, tolerance=1e-4, channel_multiple=1)
    return record["channels_removed"]


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32 - 1))
def test_random_networks_compute_the_same(tmp_path_factory, seed):
    removed_from_random(seed, tmp_path_factory.mktemp("clean"))


@pytest.mark.slow
def test_hundreds_of_random_networks_compute_the_same(tmp_path):
    removed = [removed_from_random(seed, tmp_path) for seed in range(400)]
    assert sum(count > 0 for count in removed) > 200


def test_a_square_layer_is_judged_by_what_it_reads(tmp_path):
    """The gate couples both sides of the second layer; a row of zeros in it does not make its column dead."""
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"]),
        helper.make_node("Conv", ["a", "w1"], ["b"]),
        helper.make_node("Sigmoid", ["b"], ["c"]),
        helper.make_node("Mul", ["a", "c"], ["d"]),
        helper.make_node("Conv", ["d", "w2"], ["y"]),
    ]
    weights = {"w0": draw(6, 3, 1, 1), "w1": draw(6, 6, 1, 1), "w2": draw(2, 6, 1, 1)}
    weights["w1"][[1, 4]] = 0
    weights["w1"][:, 4] = 0
    weights["w2"][:, [1, 4]] = 0
    before = model(nodes, weights, {"x": ["n", 3, 4, 4]}, {"y": ["n", 2, 4, 4]})
    _, record = cleaned(before, tmp_path, channel_multiple=1)
    assert record["channels_removed"] == 1
