"""What moves values between 8-bit operators moves them as integers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import numpy_helper as nh
from quantizable import context_for, quantized, weight

from surgeon.graph.sessions import run, session
from surgeon.stats.kernels import optimized
from surgeon_passes.quantizing.activations import Activations
from surgeon_passes.quantizing.choose import choose


def shuffle() -> onnx.ModelProto:
    """Two branches joined, their channels shuffled and split again, as in a ShuffleNet."""
    nodes = [
        oh.make_node("Conv", ["x", "w1"], ["a"], pads=[1] * 4),
        oh.make_node("Conv", ["x", "w2"], ["b"], pads=[1] * 4),
        oh.make_node("Concat", ["a", "b"], ["c"], name="join", axis=1),
        oh.make_node("Reshape", ["c", "five"], ["d"]),
        oh.make_node("Transpose", ["d"], ["e"], perm=[0, 2, 1, 3, 4]),
        oh.make_node("Reshape", ["e", "four"], ["f"]),
        oh.make_node("Split", ["f"], ["g", "h"], name="split", axis=1),
        oh.make_node("Conv", ["g", "w1"], ["i"], pads=[1] * 4),
        oh.make_node("Concat", ["h", "i"], ["j"], axis=1),
        oh.make_node("Conv", ["j", "w3"], ["y"]),
    ]
    weights = [weight("w1", 8, 8, 3, 3), weight("w2", 8, 8, 3, 3), weight("w3", 8, 16, 1, 1)]
    weights += [
        nh.from_array(np.array([-1, 2, 8, 6, 6]), "five"),
        nh.from_array(np.array([-1, 16, 6, 6]), "four"),
    ]
    ends = [oh.make_tensor_value_info(name, 1, ["N", 8, 6, 6]) for name in "xy"]
    graph = oh.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    return oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])


def test_what_joins_and_splits_integers_moves_them() -> None:
    context = context_for(shuffle())
    quantized(shuffle(), context)
    assert context.record["leftover"] == {"DequantizeLinear": 1, "QuantizeLinear": 1}
    assert context.record["kernels"] == {"QLinearConcat": 2, "QLinearConv": 4}


def test_values_that_only_float_operators_read_are_not_joined_in_eight_bits() -> None:
    nodes = [
        oh.make_node("Conv", ["x", "w"], ["a"]),
        oh.make_node("Concat", ["a", "a"], ["b"], name="join", axis=1),
        oh.make_node("Softplus", ["b"], ["c"]),
        oh.make_node("Exp", ["c"], ["y"]),
    ]
    ends = [oh.make_tensor_value_info(name, 1, None) for name in "xy"]
    ends[0] = oh.make_tensor_value_info("x", 1, ["N", 8, 6, 6])
    graph = oh.make_graph(nodes, "g", ends[:1], ends[1:], [weight("w", 8, 8, 1, 1)])
    model = oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])
    for node in model.graph.node:
        node.name = node.name or node.op_type
    assert choose(model, lambda name: False, static=True).nodes == ["Conv"]


@pytest.mark.parametrize(("mode", "chosen"), [("nearest", True), ("linear", False)])
def test_a_resize_moves_integers_unless_it_interpolates(mode: str, chosen: bool) -> None:
    nodes = [
        oh.make_node("Conv", ["x", "w"], ["a"], name="one"),
        oh.make_node("Resize", ["a", "", "scales"], ["b"], name="resize", mode=mode),
        oh.make_node("Conv", ["b", "w"], ["y"], name="two"),
    ]
    ends = [oh.make_tensor_value_info(name, 1, None) for name in "xy"]
    scales = nh.from_array(np.array([1, 1, 2, 2], "f"), "scales")
    graph = oh.make_graph(nodes, "g", ends[:1], ends[1:], [weight("w", 8, 8, 1, 1), scales])
    model = oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])
    assert ("resize" in choose(model, lambda name: False, static=True).nodes) == chosen


MOVES = {
    "depth to space": (oh.make_node("DepthToSpace", ["a"], ["b"], blocksize=2), [2, 12, 12]),
    "expand": (oh.make_node("Expand", ["a", "ones"], ["b"]), [8, 6, 6]),
    "gather": (oh.make_node("Gather", ["a", "odd"], ["b"], axis=1), [4, 6, 6]),
    "slice": (oh.make_node("Slice", ["a", "one", "three", "one"], ["b"]), [2, 6, 6]),
    "tile": (oh.make_node("Tile", ["a", "twice"], ["b"]), [16, 6, 6]),
}


@pytest.mark.parametrize("between", ["nothing", "LeakyRelu"])
@pytest.mark.parametrize("name", MOVES)
def test_values_are_moved_as_integers(name: str, between: str) -> None:
    move, (channels, *_) = MOVES[name]
    numbers = {
        "ones": [1, 1, 1, 1],
        "odd": [1, 3, 5, 7],
        "one": [1],
        "three": [3],
        "twice": [1, 2, 1, 1],
    }
    nodes = [
        oh.make_node("Conv", ["x", "w1"], ["a"], name="first"),
        move,
        *([oh.make_node("LeakyRelu", ["b"], ["c"], alpha=0.3)] if between != "nothing" else []),
        oh.make_node("Conv", ["b" if between == "nothing" else "c", "w2"], ["y"], name="second"),
    ]
    weights = [weight("w1", 8, 8, 1, 1), weight("w2", 8, channels, 1, 1)]
    weights += [nh.from_array(np.array(values), key) for key, values in numbers.items()]
    ends = [
        oh.make_tensor_value_info("x", 1, ["N", 8, 6, 6]),
        oh.make_tensor_value_info("y", 1, None),
    ]
    graph = oh.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])
    context = context_for(model)
    result = quantized(model, context, guard=False)
    assert context.record["leftover"] == {"DequantizeLinear": 1, "QuantizeLinear": 1}
    assert move.op_type in [node.op_type for node in optimized(result).graph.node] or name == "expand"
    feeds = {"x": np.random.default_rng(0).standard_normal((4, 8, 6, 6)).astype(np.float32)}
    before, after = (run(session(each), feeds)[0] for each in (model, result))
    assert np.abs(before - after).max() < 0.05 * np.abs(before).max()


def test_what_is_selected_from_constants_or_in_floats_has_a_range_of_its_own() -> None:
    nodes = [
        oh.make_node("Exp", ["x"], ["a"]),
        oh.make_node("Slice", ["a", "one", "three", "one"], ["b"], name="slice"),
        oh.make_node("Gather", ["table", "one"], ["t"], name="gather"),
        oh.make_node("Add", ["b", "t"], ["c"]),
        oh.make_node("Conv", ["c", "w"], ["y"], name="conv"),
    ]
    numbers = [nh.from_array(np.array([value]), name) for name, value in (("one", 1), ("three", 3))]
    weights = [weight("w", 8, 2, 1, 1), weight("table", 4, 6), *numbers]
    ends = [oh.make_tensor_value_info("x", 1, ["N", 8, 6, 6]), oh.make_tensor_value_info("y", 1, None)]
    graph = oh.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])
    choice = choose(model, lambda name: False, static=True)
    assert choice.nodes == ["conv"]
    assert Activations.of(model, choice).leader("b") == "b"
