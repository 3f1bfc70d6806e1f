"""Products are computed in integers whatever follows a Relu or Clip behind them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as oh
import onnxruntime as ort
import pytest
from onnx import numpy_helper as nh
from quantizable import context_for, quantized

from surgeon.graph.sessions import run, session
from surgeon.stats.kernels import optimized
from surgeon_passes.quantizing.clipped import keep_integer
from surgeon_passes.quantizing.kernels import count

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

SIZE = 64


def _body(op: str) -> onnx.GraphProto:
    output = oh.make_tensor_value_info(f"inner_{op}", 1, ["N", SIZE])
    return oh.make_graph([oh.make_node(op, ["b"], [f"inner_{op}"])], op, [], [output])


BEFORE = {
    "Relu": [oh.make_node("Relu", ["a"], ["b"], name="clip")],
    "Clip": [oh.make_node("Clip", ["a", "low", "high"], ["b"], name="clip")],
    "Clip above": [oh.make_node("Clip", ["a", "", "high"], ["b"], name="clip")],
    "Clip of nothing": [oh.make_node("Clip", ["a"], ["b"], name="clip")],
    "Clip as good as below": [oh.make_node("Clip", ["a", "low", "far"], ["b"], name="clip")],
    "Clip below": [oh.make_node("Clip", ["a", "low"], ["b"], name="clip")],
}
BEHIND = {
    "a body": [
        oh.make_node("ReduceSum", ["x"], ["t"], keepdims=0),
        oh.make_node("Cast", ["t"], ["yes"], to=onnx.TensorProto.BOOL),
        oh.make_node("If", ["yes"], ["s"], then_branch=_body("Exp"), else_branch=_body("Sin")),
        oh.make_node("MatMul", ["s", "v"], ["y"], name="second"),
    ],
    "floats": [
        oh.make_node("Softmax", ["b"], ["s"]),
        oh.make_node("MatMul", ["s", "v"], ["y"], name="second"),
    ],
    "a product": [oh.make_node("MatMul", ["b", "v"], ["y"], name="second")],
    "both": [
        oh.make_node("MatMul", ["b", "v"], ["d"], name="second"),
        oh.make_node("Exp", ["b"], ["e"]),
        oh.make_node("Sub", ["d", "e"], ["y"]),
    ],
    "two in floats": [
        oh.make_node("Exp", ["b"], ["e"]),
        oh.make_node("Sin", ["b"], ["s"]),
        oh.make_node("Sub", ["s", "e"], ["d"]),
        oh.make_node("MatMul", ["d", "v"], ["y"], name="second"),
    ],
}


def network(product: str, clip: str, behind: str) -> onnx.ModelProto:
    random = np.random.default_rng(0)
    inputs = ["x", "w", "c"] if product == "Gemm" else ["x", "w"]
    nodes = [oh.make_node(product, inputs, ["a"], name="first"), *BEFORE[clip], *BEHIND[behind]]
    weights = {
        **{name: (random.standard_normal((SIZE, SIZE)) / 8).astype("f") for name in ("w", "v")},
        "c": np.full(SIZE, 0.1, "f"),
        "low": np.array(-0.25, "f"),
        "high": np.array(0.75, "f"),
        "far": np.array(np.finfo("f").max),
    }
    read = {name for node in nodes for name in node.input}
    constants = [nh.from_array(array, name) for name, array in weights.items() if name in read]
    x, y = (oh.make_tensor_value_info(name, 1, ["N", SIZE]) for name in "xy")
    graph = oh.make_graph(nodes, "g", [x], [y], constants)
    return oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])


@pytest.mark.parametrize(
    ("activation", "behind"),
    [*(("uint8", behind) for behind in BEHIND), ("int8", "floats"), ("int8", "a product")],
)
@pytest.mark.parametrize("clip", list(BEFORE))
@pytest.mark.parametrize("product", ["Gemm", "MatMul"])
def test_both_products_have_integer_kernels(product: str, clip: str, behind: str, activation: str) -> None:
    model = network(product, clip, behind)
    result = quantized(model, context_for(model), guard=False, activation=activation)
    facts = count(result)
    assert sum(facts["kernels"].values()) == 2
    assert not facts["float_kernels"]
    feeds = {"x": np.random.default_rng(5).standard_normal((16, SIZE)).astype("f")}
    want, got = (run(session(each), feeds)[0] for each in (model, result))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    meant = ort.InferenceSession(result.SerializeToString(), options).run(None, feeds)[0]
    assert np.square(got - meant).sum() < 1e-4 * np.square(meant).sum()
    assert np.square(got - want).sum() < 5e-3 * np.square(want).sum()


@pytest.mark.parametrize("clip", list(BEFORE))
@pytest.mark.parametrize("product", ["Gemm", "MatMul"])
def test_what_onnxruntime_drops_stays_as_it_is(product: str, clip: str) -> None:
    model = network(product, clip, "a product")
    result = quantized(model, context_for(model), guard=False, activation="uint8")
    assert not {"Max", "Min"} & {node.op_type for node in result.graph.node}
    assert not {"Relu", "Clip", "Max", "Min"} & {node.op_type for node in optimized(result).graph.node}


def test_of_a_model_without_roundings_nothing_changes() -> None:
    model = network("Gemm", "Clip", "floats")
    before = model.SerializeToString()
    keep_integer(model)
    assert model.SerializeToString() == before


def test_roundings_that_are_there_already_may_have_scales_of_any_shape() -> None:
    """A Gemm of an older quantizer, with a vector of one scale, and one that is still in floats."""
    nodes = [
        oh.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        oh.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        oh.make_node("DequantizeLinear", ["wq", "s", "zw"], ["wd"]),
        oh.make_node("Gemm", ["xd", "wd"], ["a"], name="first"),
        oh.make_node("Relu", ["a"], ["b"]),
        oh.make_node("QuantizeLinear", ["b", "s1", "z1"], ["bq"]),
        oh.make_node("DequantizeLinear", ["bq", "s1", "z1"], ["bd"]),
        oh.make_node("Exp", ["bd"], ["e"]),
        oh.make_node("Gemm", ["e", "v"], ["y"], name="second"),
    ]
    random = np.random.default_rng(0)
    weights = {
        "s": np.array(0.05, "f"),
        "z": np.array(128, np.uint8),
        "zw": np.array(0, np.int8),
        "wq": random.integers(-127, 127, (SIZE, SIZE)).astype(np.int8),
        "s1": np.array([0.1], "f"),
        "z1": np.array([0], np.uint8),
        "v": (random.standard_normal((SIZE, SIZE)) / 8).astype("f"),
    }
    x, y = (oh.make_tensor_value_info(name, 1, ["N", SIZE]) for name in "xy")
    graph = oh.make_graph(
        nodes, "g", [x], [y], [nh.from_array(array, name) for name, array in weights.items()]
    )
    model = oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])
    assert count(quantized(model, context_for(model), guard=False))["kernels"] == {"QGemm": 2}
