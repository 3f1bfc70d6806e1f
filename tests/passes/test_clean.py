"""The pass ``clean`` changes no output, keeps every interface name, and removes what it should."""

from __future__ import annotations

import time

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from clean_models import cleaned, constant, draw, model, norm, norm_parameters, ops, run
from onnx import TensorProto, helper

from surgeon.graph.load import load
from surgeon.graph.save import to_model
from surgeon.passes import Context
from surgeon_passes.clean import Clean


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("with_bias", [False, True])
def test_batchnorm_folds_into_convolution(tmp_path, group, with_bias):
    weights = {"w": draw(8, 4 // group, 3, 3), **norm_parameters(8)} | ({"b": draw(8)} if with_bias else {})
    nodes = [
        helper.make_node("Conv", ["x", "w"] + ["b"] * with_bias, ["c"], group=group, pads=[1, 1, 1, 1]),
        norm("c", "y"),
    ]
    before = model(nodes, weights, {"x": ["n", 4, 6, 6]}, {"y": ["n", 8, 6, 6]})
    after, record = cleaned(before, tmp_path)
    assert ops(after) == ["Conv"]
    assert record["batchnorm_folded"] == 1
    assert len(after.graph.node[0].input) == 3
    assert len(after.graph.initializer) == 2


@pytest.mark.parametrize("group", [1, 2])
def test_batchnorm_folds_into_transposed_convolution(tmp_path, group):
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w"], ["c"], group=group, strides=[2, 2]),
        norm("c", "y"),
    ]
    weights = {"w": draw(4, 6 // group, 2, 2), **norm_parameters(6)}
    after, _ = cleaned(model(nodes, weights, {"x": ["n", 4, 5, 5]}, {"y": ["n", 6, 10, 10]}), tmp_path)
    assert ops(after) == ["ConvTranspose"]


@pytest.mark.parametrize("attributes", [{}, {"transB": 1}, {"alpha": 0.5, "beta": 2.0}, {"beta": 0.0}])
@pytest.mark.parametrize("bias_shape", [None, (), (1,), (6,), (1, 6)])
def test_batchnorm_folds_into_gemm(tmp_path, attributes, bias_shape):
    weights = {"w": draw(*((6, 4) if "transB" in attributes else (4, 6))), **norm_parameters(6)}
    if bias_shape is not None:
        weights["b"] = draw(*bias_shape) if bias_shape else np.float32(0.7)
    nodes = [
        helper.make_node("Gemm", ["x", "w"] + ["b"] * (bias_shape is not None), ["c"], **attributes),
        norm("c", "y"),
    ]
    after, _ = cleaned(model(nodes, weights, {"x": ["n", 4]}, {"y": ["n", 6]}), tmp_path)
    assert ops(after) == ["Gemm"]


@pytest.mark.parametrize("swapped", [False, True])
def test_batchnorm_folds_into_matmul_and_add(tmp_path, swapped):
    operands = ["b", "m"] if swapped else ["m", "b"]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", operands, ["c"]),
        norm("c", "y"),
    ]
    weights = {"w": draw(4, 6), "b": draw(6), **norm_parameters(6)}
    after, _ = cleaned(model(nodes, weights, {"x": ["n", 4]}, {"y": ["n", 6]}), tmp_path)
    assert ops(after) == ["MatMul", "Add"]


def test_batchnorm_after_matmul_becomes_a_bias(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["c"]), norm("c", "y")]
    weights = {"w": draw(4, 6), **norm_parameters(6)}
    after, record = cleaned(model(nodes, weights, {"x": ["n", 4]}, {"y": ["n", 6]}), tmp_path)
    assert ops(after) == ["MatMul", "Add"]
    assert record["batchnorm_folded"] == 1


def test_batchnorm_over_the_middle_axis_of_a_matmul_stays(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["c"]), norm("c", "y")]
    weights = {"w": draw(4, 6), **norm_parameters(6)}
    after, record = cleaned(model(nodes, weights, {"x": ["n", 6, 4]}, {"y": ["n", 6, 6]}), tmp_path)
    assert ops(after) == ["MatMul", "BatchNormalization"]
    assert record["batchnorm_folded"] == 0


def test_chain_of_batchnorms_folds_completely(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        norm("c", "d", "n"),
        norm("d", "y", "m", epsilon=0.1),
    ]
    weights = {"w": draw(5, 3, 1, 1), **norm_parameters(5), **norm_parameters(5, "m")}
    after, record = cleaned(model(nodes, weights, {"x": ["n", 3, 4, 4]}, {"y": ["n", 5, 4, 4]}), tmp_path)
    assert ops(after) == ["Conv"]
    assert record["batchnorm_folded"] == 2


def test_batchnorm_stays_where_the_convolution_is_used_twice(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        norm("c", "d"),
        helper.make_node("Add", ["c", "d"], ["y"]),
    ]
    weights = {"w": draw(5, 3, 1, 1), **norm_parameters(5)}
    after, _ = cleaned(model(nodes, weights, {"x": ["n", 3, 4, 4]}, {"y": ["n", 5, 4, 4]}), tmp_path)
    assert ops(after) == ["Conv", "BatchNormalization", "Add"]


def test_batchnorm_stays_where_the_convolution_is_a_graph_output(tmp_path):
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), norm("c", "y")]
    weights = {"w": draw(5, 3, 1, 1), **norm_parameters(5)}
    shape = ["n", 5, 4, 4]
    after, _ = cleaned(model(nodes, weights, {"x": ["n", 3, 4, 4]}, {"y": shape, "c": shape}), tmp_path)
    assert ops(after) == ["Conv", "BatchNormalization"]


def test_weights_shared_with_another_layer_are_not_changed_for_it(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"]),
        norm("c", "d"),
        helper.make_node("Conv", ["x", "w", "b"], ["e"]),
        helper.make_node("Add", ["d", "e"], ["y"]),
    ]
    weights = {"w": draw(5, 3, 1, 1), "b": draw(5), **norm_parameters(5)}
    after, _ = cleaned(model(nodes, weights, {"x": ["n", 3, 4, 4]}, {"y": ["n", 5, 4, 4]}), tmp_path)
    assert ops(after) == ["Conv", "Conv", "Add"]
    assert np.array_equal(constant(after, "w"), weights["w"])


@pytest.mark.parametrize(("norms", "left"), [("nn", 2), ("nm", 4)])
def test_layers_that_share_all_they_read_share_it_folded(tmp_path, norms, left):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        norm("c", "d", norms[0]),
        helper.make_node("Conv", ["z", "w"], ["e"]),
        norm("e", "f", norms[1]),
        helper.make_node("Sub", ["d", "f"], ["y"]),
    ]
    nodes[3].name = "second"
    weights = {"w": draw(5, 3, 1, 1), **norm_parameters(5), **norm_parameters(5, "m")}
    shape = ["n", 3, 4, 4]
    after, _ = cleaned(model(nodes, weights, {"x": shape, "z": shape}, {"y": ["n", 5, 4, 4]}), tmp_path)
    assert ops(after) == ["Conv", "Conv", "Sub"]
    assert len(after.graph.initializer) == left


def test_arrays_of_the_original_are_never_written_into(tmp_path):
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["c"]), norm("c", "y")]
    weights = {"w": draw(5, 3, 1, 1), "b": draw(5), **norm_parameters(5)}
    path = tmp_path / "model.onnx"
    onnx.save(model(nodes, weights, {"x": ["n", 3, 4, 4]}, {"y": ["n", 5, 4, 4]}), path)
    graph = load(path)
    kernel = next(node for node in graph.nodes if node.op == "Conv").inputs[1]
    held = kernel.values
    Clean().run(graph.copy(), Context(source_path=path))
    assert np.array_equal(held, weights["w"])
    assert np.array_equal(kernel.values, weights["w"])


def test_training_batchnorm_stays(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node(
            "BatchNormalization",
            ["c", "n_scale", "n_shift", "n_mean", "n_var"],
            ["y", "mean", "var"],
            training_mode=1,
        ),
    ]
    weights = {"w": draw(5, 3, 1, 1), **norm_parameters(5)}
    path = tmp_path / "model.onnx"
    onnx.save(model(nodes, weights, {"x": ["n", 3, 4, 4]}, {"y": ["n", 5, 4, 4]}), path)
    context = Context(source_path=path)
    assert [n.op for n in Clean().run(load(path), context).nodes] == ["Conv", "BatchNormalization"]


def test_half_precision_keeps_its_type(tmp_path):
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), norm("c", "y")]
    weights = {"w": draw(5, 3, 1, 1, kind=np.float16), **norm_parameters(5, kind=np.float16)}
    proto = model(nodes, weights, {"x": ["n", 3, 4, 4]}, {"y": ["n", 5, 4, 4]})
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    after = to_model(Clean().run(load(path), Context(source_path=path)))
    assert ops(after) == ["Conv"]
    assert {each.data_type for each in after.graph.initializer} == {TensorProto.FLOAT16}
    feeds = {"x": draw(2, 3, 4, 4, kind=np.float16)}
    assert np.allclose(run(proto, feeds)[0], run(after, feeds)[0], atol=0.05, rtol=0.02)


def test_folding_can_be_switched_off(tmp_path):
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), norm("c", "y")]
    weights = {"w": draw(5, 3, 1, 1), **norm_parameters(5)}
    before = model(nodes, weights, {"x": ["n", 3, 4, 4]}, {"y": ["n", 5, 4, 4]})
    after, _ = cleaned(before, tmp_path, fold_batchnorm=False)
    assert ops(after) == ["Conv", "BatchNormalization"]


def test_identity_before_an_output_hands_its_name_to_the_producer(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Identity", ["a"], ["y"]),
        helper.make_node("Neg", ["a"], ["z"]),
    ]
    after, record = cleaned(model(nodes, {}, {"x": ["n", 4]}, {"y": ["n", 4], "z": ["n", 4]}), tmp_path)
    assert ops(after) == ["Relu", "Neg"]
    assert (
        record
        == {"noops_removed": 1, "batchnorm_folded": 0, "constants_merged": 0, "nodes_removed": 1} | record
    )


def test_identities_that_only_rename_the_interface_stay(tmp_path):
    nodes = [
        helper.make_node("Identity", ["x"], ["y"]),
        helper.make_node("Relu", ["x"], ["z"]),
        helper.make_node("Identity", ["z"], ["t"]),
    ]
    shape = ["n", 4]
    after, _ = cleaned(model(nodes, {}, {"x": shape}, {"y": shape, "z": shape, "t": shape}), tmp_path)
    assert ops(after) == ["Identity", "Relu", "Identity"]


def test_chain_of_noops_disappears(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Identity", ["a"], ["b"]),
        helper.make_node("Dropout", ["b"], ["c"]),
        helper.make_node("Transpose", ["c"], ["d"], perm=[0, 1, 2]),
        helper.make_node("Reshape", ["d", "same"], ["e"]),
        helper.make_node("Concat", ["e"], ["f"], axis=1),
        helper.make_node("Cast", ["f"], ["g"], to=TensorProto.FLOAT),
        helper.make_node("Pad", ["g", "none"], ["h"]),
        helper.make_node("Identity", ["h"], ["y"]),
    ]
    constants = {"same": np.array([0, -1, 5], np.int64), "none": np.zeros(6, np.int64)}
    after, record = cleaned(model(nodes, constants, {"x": ["n", 4, 5]}, {"y": ["n", 4, 5]}), tmp_path)
    assert ops(after) == ["Relu"]
    assert after.graph.node[0].output[0] == "y"
    assert record["noops_removed"] == 8


@pytest.mark.parametrize("target", [[-1, 5, 4], [0, 20], [-1, 4, 5, 1], [3, 4, 5]])
def test_reshapes_that_change_or_fix_the_shape_stay(tmp_path, target):
    nodes = [helper.make_node("Reshape", ["x", "to"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    outputs = {"y": [size if size > 0 else "n" for size in target]}
    before = model(nodes, {"to": np.array(target, np.int64)}, {"x": ["n", 4, 5]}, outputs)
    after, _ = cleaned(before, tmp_path)
    assert ops(after) == ["Reshape", "Relu"]


def test_dropout_that_trains_or_whose_mask_is_used_stays(tmp_path):
    nodes = [
        helper.make_node("Dropout", ["x", "rate", "on"], ["a"]),
        helper.make_node("Dropout", ["a", "rate"], ["y", "mask"]),
    ]
    constants = {"rate": np.float32(0.0), "on": np.array(True)}
    before = model(nodes, constants, {"x": ["n", 4]}, {"y": ["n", 4]})
    before.graph.output.append(helper.make_tensor_value_info("mask", TensorProto.BOOL, ["n", 4]))
    path = tmp_path / "model.onnx"
    onnx.save(before, path)
    after = Clean().run(load(path), Context(source_path=path))
    assert [node.op for node in after.nodes] == ["Dropout", "Dropout"]


def test_dead_branches_and_their_weights_go(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
    ]
    before = model(nodes, {"w": draw(4, 4)}, {"x": ["n", 4]}, {"y": ["n", 4]})
    after, record = cleaned(before, tmp_path)
    assert ops(after) == ["Relu"]
    assert not after.graph.initializer
    assert record["nodes_removed"] == 2


def test_unused_graph_inputs_stay(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Relu", ["unused"], ["a"])]
    after, _ = cleaned(model(nodes, {}, {"x": ["n", 4], "unused": ["n", 2]}, {"y": ["n", 4]}), tmp_path)
    assert ops(after) == ["Relu"]


def test_equal_shape_constants_merge_and_equal_weights_do_not(tmp_path):
    nodes = [
        helper.make_node("Reshape", ["x", "s1"], ["a"]),
        helper.make_node("Mul", ["a", "w1"], ["b"]),
        helper.make_node("Mul", ["b", "w2"], ["c"]),
        helper.make_node("Reshape", ["c", "s2"], ["y"]),
    ]
    constants = {
        "s1": np.array([-1, 2, 2], np.int64),
        "s2": np.array([-1, 2, 2], np.int64),
        "w1": np.ones(2, np.float32),
        "w2": np.ones(2, np.float32),
    }
    before = model(nodes, constants, {"x": ["n", 4]}, {"y": ["n", 2, 2]})
    after, record = cleaned(before, tmp_path, remove_noops=False)
    assert record["constants_merged"] == 1
    assert len(after.graph.initializer) == 3


def test_tensors_used_inside_a_body_keep_their_names(tmp_path):
    branches = [
        helper.make_graph(
            [helper.make_node(op, ["b"], [f"{op}_out"])],
            op,
            [],
            [helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, None)],
        )
        for op in ("Relu", "Neg")
    ]
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["a"]),
        helper.make_node("Identity", ["a"], ["b"]),
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Cast", ["m"], ["flag"], to=TensorProto.BOOL),
        helper.make_node("If", ["flag"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    after, _ = cleaned(model(nodes, {}, {"x": ["n", 4]}, {"y": ["n", 4]}), tmp_path)
    assert "Identity" in ops(after)


def test_custom_operators_named_like_standard_ones_stay(tmp_path):
    graph = gs.Graph(opset=17)
    x, y = gs.Variable("x", np.float32, [2]), gs.Variable("y", np.float32, [2])
    graph.inputs, graph.outputs = [x], [y]
    middle = gs.Variable("m", np.float32, [2])
    graph.nodes = [
        gs.Node("Identity", "foreign", inputs=[x], outputs=[middle], domain="acme"),
        gs.Node("Relu", "relu", inputs=[middle], outputs=[y]),
    ]
    after = Clean().run(graph, Context(source_path=tmp_path))
    assert [node.op for node in after.nodes] == ["Identity", "Relu"]


def test_demo_has_no_batchnorm_left_and_predicts_the_same(tmp_path, demo):
    proto = onnx.load(demo)
    after, record = cleaned(proto, tmp_path)
    assert "BatchNormalization" in ops(proto)
    assert "BatchNormalization" not in ops(after)
    assert record["batchnorm_folded"] == ops(proto).count("BatchNormalization")


def test_running_twice_changes_nothing_more(tmp_path, demo):
    once = Clean().run(load(demo), Context(source_path=demo))
    first = to_model(once).SerializeToString(deterministic=True)
    context = Context(source_path=demo)
    assert to_model(Clean().run(once, context)).SerializeToString(deterministic=True) == first
    assert not any(context.record.values())


def test_large_graphs_take_linear_time(tmp_path):
    """Every node reads one shared constant, every second node is an Identity."""

    def chain(length):
        shared = gs.Constant("one", np.ones(2, np.float32))
        tensors = [gs.Variable(f"t{k}", np.float32, [2]) for k in range(length + 1)]
        graph = gs.Graph(opset=17, inputs=[tensors[0]], outputs=[tensors[-1]])
        graph.nodes = [
            gs.Node("Identity", inputs=[tensors[k]], outputs=[tensors[k + 1]])
            if k % 2
            else gs.Node("Add", inputs=[tensors[k], shared], outputs=[tensors[k + 1]])
            for k in range(length)
        ]
        return graph

    def seconds(length):
        graph, start = chain(length), time.perf_counter()
        Clean().run(graph, Context(source_path=tmp_path))
        assert len(graph.nodes) == length // 2
        return time.perf_counter() - start

    seconds(200)
    short, long = (min(seconds(length) for _ in range(2)) for length in (1000, 8000))
    assert long < 24 * short  # quadratic would be 64
