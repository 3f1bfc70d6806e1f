"""The pass quantize: what becomes 8-bit, what stays float and why, that the numbers survive, that nothing wobbles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import numpy_helper as nh
from quantizable import context_for, fed_by_eight_bits, network, quantized, weight

import surgeon
from surgeon.errors import GateError, UsageError
from surgeon.graph.load import from_model, load
from surgeon.graph.save import save
from surgeon.graph.sessions import run, session
from surgeon.passes import Context
from surgeon.stats.data import graph_inputs, open_data
from surgeon.stats.metrics import evaluate
from surgeon.stats.ranges import METHODS, Range
from surgeon.stats.synthetic import synthetic
from surgeon_passes.quantize import Quantize


def language() -> onnx.ModelProto:
    """An embedding, a product with weights, a product of two activations, a GRU."""
    nodes = [
        oh.make_node("Gather", ["table", "ids"], ["e"], name="embedding"),
        oh.make_node("MatMul", ["e", "w"], ["q"], name="projection"),
        oh.make_node("Transpose", ["e"], ["t"], perm=[0, 2, 1]),
        oh.make_node("MatMul", ["q", "t"], ["a"], name="scores"),
        oh.make_node("MatMul", ["a", "e"], ["z"], name="mix"),
        oh.make_node("GRU", ["z", "gw", "gr"], ["y", ""], name="gru", hidden_size=16),
    ]
    weights = [weight("table", 50, 32), weight("w", 32, 32), weight("gw", 1, 48, 32), weight("gr", 1, 48, 16)]
    ids = oh.make_tensor_value_info("ids", 7, ["N", "length"])
    y = oh.make_tensor_value_info("y", 1, None)
    graph = oh.make_graph(nodes, "g", [ids], [y], weights)
    return oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])


def difference(before: onnx.ModelProto, after: onnx.ModelProto) -> float:
    feeds = synthetic(graph_inputs(from_model(before)), seed=9, batch=4)
    ours, theirs = run(session(before), feeds)[0], run(session(after), feeds)[0]
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(ours))


@pytest.mark.parametrize("calibration", ["auto", *METHODS])
@pytest.mark.parametrize("activation", ["uint8", "int8"])
def test_static(calibration: str, activation: str) -> None:
    model = network()
    context = context_for(model)
    result = quantized(model, context, calibration=calibration, activation=activation)
    assert fed_by_eight_bits(result, "Conv") == [True, True]
    assert fed_by_eight_bits(result, "Gemm") == [True]
    assert difference(model, result) < 0.1
    assert len(result.SerializeToString()) < len(model.SerializeToString()) / 2.5
    assert context.record["mode"] == "static"
    assert context.record["quantized"] == {"Conv": 2, "Gemm": 1}
    assert context.record["left_float"] == []
    assert context.record["samples"] == 64
    found: dict[str, dict[str, list[object]]] = context.record["calibration"]  # type: ignore[assignment]  # JSON
    assert found["without_range"] == {}
    assert set(found["methods"]) <= {*METHODS}
    assert sum(found["methods"].values()) == len(found["ranges"]) == 5  # type: ignore[arg-type]  # JSON
    constants = {entry.name: nh.to_array(entry) for entry in result.graph.initializer}
    rounding = next(node for node in result.graph.node if node.input[0] == "x")
    _, lowest, highest = found["ranges"]["x"]
    scale, zero = Range(lowest, highest).grid(symmetric=activation == "int8")  # type: ignore[arg-type]  # JSON
    assert constants[rounding.input[1]] == pytest.approx(scale, rel=1e-4)
    assert constants[rounding.input[2]] == zero


def test_what_has_infinite_values_stays_float_and_says_so() -> None:
    nodes = [
        oh.make_node("Log", ["x"], ["masked"], name="log"),
        oh.make_node("MatMul", ["masked", "v"], ["a"], name="bad"),
        oh.make_node("MatMul", ["x", "w"], ["b"], name="good"),
    ]
    ends = [oh.make_tensor_value_info(name, 1, ["N", 64]) for name in "xab"]
    model = oh.make_model(
        oh.make_graph(nodes, "g", ends[:1], ends[1:], [weight("w", 64, 64), weight("v", 64, 64)]),
        ir_version=8,
        opset_imports=[oh.make_opsetid("", 17)],
    )
    context = context_for(model)
    result = quantized(model, context, mode="static")
    assert sum(fed_by_eight_bits(result, "MatMul")) == 1
    reason = "no range for tensor masked: it has infinite values, which 8 bits do not"
    assert context.record["left_float"] == [{"node": "bad", "operator": "MatMul", "reason": reason}]
    del model.graph.node[2], model.graph.output[1]
    with pytest.raises(GateError, match="nothing can be quantized"):
        quantized(model, context_for(model), mode="static")


def test_the_interface_stays() -> None:
    model = network()
    for mode in ("static", "dynamic", "fp16"):
        result = quantized(model, context_for(model), mode=mode)
        assert list(result.graph.input) == list(model.graph.input)
        assert list(result.graph.output) == list(model.graph.output)
        assert {entry.domain for entry in result.opset_import} <= {"", "com.microsoft"}


def test_softmax_stays_float_and_the_residual_sum_does_not() -> None:
    result = quantized(network(), context_for(network()))
    producers = {output: node for node in result.graph.node for output in node.output}
    users = {name: node.op_type for node in result.graph.node for name in node.input}
    total = next(node for node in result.graph.node if node.op_type == "Add")
    softmax = next(node for node in result.graph.node if node.op_type == "Softmax")
    assert users[total.output[0]] == "QuantizeLinear"
    assert producers[softmax.input[0]].op_type == "Gemm"


def test_exclusions_by_node_and_tensor_of_the_pass_and_of_the_run() -> None:
    context = context_for(network(), exclude=("w2",))
    result = quantized(network(), context, exclude=("hea?",))
    assert fed_by_eight_bits(result, "Conv") == [True, False]
    assert fed_by_eight_bits(result, "Gemm") == [False]
    left = context.record["left_float"]
    assert left == [
        {"node": "second", "operator": "Conv", "reason": "excluded"},
        {"node": "head", "operator": "Gemm", "reason": "excluded"},
    ]


@pytest.mark.parametrize("mode", ["static", "dynamic", "weights", "fp16"])
def test_exclusions_may_mean_names_given_to_nodes_without_one_and_nothing_else(mode: str) -> None:
    context = context_for(network())
    result = quantized(network(), context, mode=mode, exclude=("Relu_1",))
    assert "Relu_1" in {node.name for node in result.graph.node}
    with pytest.raises(UsageError, match="'Rela_1' matches no node and no tensor"):
        quantized(network(), context_for(network()), mode=mode, exclude=("Rela_1",))


def test_fewer_samples_than_there_are() -> None:
    context = context_for(network())
    quantized(network(), context, samples=5)
    assert context.record["samples"] == 5


def test_language_models_static_and_dynamic() -> None:
    model = language()
    for mode, factor in (("static", 0.1), ("dynamic", 0.1)):
        context = context_for(model)
        result = quantized(model, context, mode=mode)
        assert context.record["quantized"] == {"Gather": 1, "MatMul": 1}
        assert [entry["node"] for entry in context.record["left_float"]] == ["gru"]  # type: ignore[attr-defined]
        assert difference(model, result) < factor
        table = max((entry for entry in result.graph.initializer), key=lambda entry: np.prod(entry.dims))
        assert table.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)


def test_auto_without_data_is_dynamic_where_that_helps_and_otherwise_made_up() -> None:
    context = context_for(network(), data=False)
    quantized(network(), context)
    assert context.record["mode"] == "static"
    assert any("synthetic" in text for text in context.warnings)
    linear = oh.make_model(
        oh.make_graph(
            [oh.make_node("MatMul", ["x", "w"], ["y"])],
            "g",
            [oh.make_tensor_value_info("x", 1, ["N", 64])],
            [oh.make_tensor_value_info("y", 1, ["N", 64])],
            [weight("w", 64, 64)],
        ),
        ir_version=8,
        opset_imports=[oh.make_opsetid("", 17)],
    )
    context = context_for(linear, data=False)
    result = quantized(linear, context)
    assert context.record["mode"] == "dynamic"
    assert not context.warnings
    assert difference(linear, result) < 0.05


def test_dynamic_says_that_convolutions_need_data() -> None:
    context = context_for(network(), data=False)
    quantized(network(), context, mode="dynamic")
    assert context.warnings == ["2 convolutions stay float: quantizing them takes --data"]


def test_gemms_that_share_a_transposed_weight() -> None:
    nodes = [
        oh.make_node("Gemm", ["x", "w"], ["h"], transB=1),
        oh.make_node("Gemm", ["h", "w"], ["y"], transB=1),
    ]
    ends = [oh.make_tensor_value_info(name, 1, ["N", 64]) for name in "xy"]
    model = oh.make_model(
        oh.make_graph(nodes, "g", ends[:1], ends[1:], [weight("w", 64, 64)]),
        ir_version=8,
        opset_imports=[oh.make_opsetid("", 17)],
    )
    for mode in ("static", "dynamic"):
        assert difference(model, quantized(model, context_for(model), mode=mode)) < 0.05


def test_grouped_transposed_convolutions_stay_float() -> None:
    nodes = [
        oh.make_node("Conv", ["x", "w1", "b1"], ["c"], pads=[1] * 4),
        oh.make_node("ConvTranspose", ["c", "w4", "b1"], ["y"], name="up", group=2),
    ]
    weights = [weight("w1", 32, 3, 3, 3), weight("b1", 32), weight("w4", 32, 16, 2, 2)]
    x = oh.make_tensor_value_info("x", 1, ["N", 3, 8, 8])
    y = oh.make_tensor_value_info("y", 1, ["N", 32, 9, 9])
    model = oh.make_model(
        oh.make_graph(nodes, "g", [x], [y], weights),
        ir_version=8,
        opset_imports=[oh.make_opsetid("", 17)],
    )
    context = context_for(model)
    assert difference(model, quantized(model, context, mode="static")) < 0.05
    assert [entry["node"] for entry in context.record["left_float"]] == ["up"]  # type: ignore[attr-defined]
    assert difference(model, quantized(model, context, mode="auto")) < 0.05
    assert [entry["node"] for entry in context.record["left_float"]] == ["up"]  # type: ignore[attr-defined]
    assert context.record["stored"] == {"ConvTranspose": 1}


def test_half_precision() -> None:
    model = network()
    context = context_for(model, data=False)
    result = quantized(model, context, mode="fp16", exclude=("head",))
    kinds = {entry.name: entry.data_type for entry in result.graph.initializer}
    assert kinds["w1"] == onnx.TensorProto.FLOAT16
    assert kinds["w3"] == onnx.TensorProto.FLOAT
    assert difference(model, result) < 0.01
    assert context.record["mode"] == "fp16"
    assert context.warnings == []


def test_what_half_precision_cannot_hold_is_said() -> None:
    nodes = [
        oh.make_node("MatMul", ["x", "w"], ["a"], name="product"),
        oh.make_node("Mul", ["a", "huge"], ["b"], name="scaled"),
        oh.make_node("Max", ["b", "least"], ["c"], name="bounded"),
        oh.make_node("Mul", ["c", "tiny"], ["y"], name="back"),
    ]
    ends = [oh.make_tensor_value_info(name, 1, ["N", 8]) for name in "xy"]
    weights = [weight("w", 8, 8)]
    weights += [
        nh.from_array(np.float32(v), n) for n, v in (("huge", 1e5), ("tiny", 1e-5), ("least", -np.inf))
    ]
    graph = oh.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])
    context = context_for(model, data=False)
    quantized(model, context, mode="fp16")
    (said,) = context.warnings
    assert said.startswith("huge holds numbers beyond float16, up to 100000")
    left: Any = context.record["left_float"]
    assert [(each["node"], each["operator"]) for each in left] == [("bounded", "Max")]
    assert "float32 alone" in left[0]["reason"]
    context = context_for(model, data=False)
    quantized(model, context, mode="fp16", exclude=("scaled",))
    assert context.warnings == []
    assert [each["reason"] for each in context.record["left_float"]][-1] == "excluded"  # type: ignore[attr-defined]


@pytest.mark.parametrize("mode", ["static", "dynamic", "fp16"])
def test_the_bytes_do_not_depend_on_threads_or_luck(mode: str, tmp_path: Path) -> None:
    written = []
    for threads in (1, 2, 1):
        context = context_for(network(), threads=threads)
        chosen = Quantize(mode=mode, guard=False)  # type: ignore[arg-type]
        save(chosen.run(from_model(network()), context), tmp_path / "q.onnx")
        written.append((tmp_path / "q.onnx").read_bytes())
    assert written[0] == written[1] == written[2]


def test_old_opsets_are_raised() -> None:
    result = quantized(network(opset=11), context_for(network(opset=11)))
    assert result.opset_import[0].version >= 13
    assert difference(network(opset=11), result) < 0.1


def test_a_batch_that_is_dynamic_only_by_declaration() -> None:
    model = network()
    model.graph.initializer.append(nh.from_array(np.array([1, 32]), "one"))
    model.graph.node[5].CopyFrom(oh.make_node("Reshape", ["p", "one"], ["f"]))
    context = context_for(model)
    quantized(model, context)
    assert context.record["samples"] == 64


def test_nothing_to_quantize() -> None:
    model = oh.make_model(
        oh.make_graph(
            [oh.make_node("Relu", ["x"], ["y"])],
            "g",
            [oh.make_tensor_value_info("x", 1, ["N", 4])],
            [oh.make_tensor_value_info("y", 1, ["N", 4])],
        ),
        ir_version=8,
        opset_imports=[oh.make_opsetid("", 17)],
    )
    for mode in ("static", "dynamic", "fp16"):
        with pytest.raises(GateError, match=r"nothing can be quantized|no float32 weights") as caught:
            quantized(model, context_for(model), mode=mode)
        assert mode == "fp16" or "without quantize" in str(caught.value.hint)
    with pytest.raises(GateError, match="excluded"):
        quantized(network(), context_for(network()), exclude=("*",))


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        Quantize(samples=0)
    with pytest.raises(UsageError, match="over 50"):
        Quantize(percentile=50)


@pytest.mark.parametrize("mode", ["dynamic", "weights", "fp16"])
@pytest.mark.parametrize(
    "given",
    [
        {"calibration": "entropy"},
        {"percentile": 99.0},
        {"activation": "int8"},
        {"rounding": "gptq"},
        {"narrow": True},
    ],
)
def test_options_of_static_mode_are_refused_in_others(mode: str, given: dict[str, Any]) -> None:
    (option,) = given
    with pytest.raises(UsageError, match=f"takes static mode, not {mode}") as caught:
        Quantize(mode=mode, **given)  # type: ignore[arg-type]  # modes vary
    assert caught.value.where == f"quantize.{option}"
    Quantize(**given)


@pytest.mark.parametrize("mode", ["weights", "fp16"])
@pytest.mark.parametrize("given", [{"equalize": True}, {"smooth": True}, {"per_channel": False}])
def test_options_of_eight_bit_arithmetic_are_refused_without_it(mode: str, given: dict[str, bool]) -> None:
    (option,) = given
    with pytest.raises(UsageError, match=f"takes 8-bit arithmetic, not mode={mode}") as caught:
        Quantize(mode=mode, **given)  # type: ignore[arg-type]  # modes vary
    assert caught.value.where == f"quantize.{option}"
    Quantize(mode="dynamic", **given)  # type: ignore[arg-type]  # options vary


def test_a_real_model_keeps_its_accuracy(shared: Path, tmp_path: Path) -> None:
    path = shared / "models" / "cifar10_resnet8.onnx"
    graph = load(path)
    inputs = graph_inputs(graph)
    context = Context(path, inputs=tuple(inputs))
    context.data = open_data(str(shared / "data" / "cifar10.py:calibration_raw"), inputs)
    save(Quantize(guard=False).run(graph, context), tmp_path / "q.onnx")
    test = open_data(str(shared / "data" / "cifar10.py:test_raw"), inputs, batch=250).take(2000)
    before, after = (evaluate(session(each), test, "top1") for each in (path, tmp_path / "q.onnx"))
    assert after >= before - 0.01
    assert path.stat().st_size > 3 * (tmp_path / "q.onnx").stat().st_size


def test_twice_is_refused_and_why_nothing_has_a_kernel_is_said() -> None:
    with pytest.raises(UsageError) as again:
        surgeon.run(network(), "quantize,quantize")
    assert again.value.hint == "once is enough"
    model = network()
    for entry in model.graph.initializer:
        entry.CopyFrom(nh.from_array(nh.to_array(entry).astype(np.float64), entry.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    with pytest.raises(GateError, match="nothing can be quantized") as nothing:
        quantized(model, context_for(model))
    assert "its weights are double" in str(nothing.value.hint)
