"""Odd graphs in every mode: they quantize or are left float with a reason, and always run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import numpy_helper as nh
from quantizable import context_for

from surgeon.errors import GateError
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.passes import Context
from surgeon.stats.data import graph_inputs
from surgeon.stats.synthetic import synthetic, synthetic_dataset
from surgeon_passes.quantize import Quantize
from surgeon_passes.quantizing.choose import choose
from surgeon_passes.quantizing.maker import Maker
from surgeon_passes.quantizing.prepare import prepared

MODES = [
    {"mode": "static"},
    {"mode": "dynamic"},
    {"mode": "auto"},
    {"mode": "weights"},
    {"mode": "weights", "bits": 4},
    {"mode": "fp16"},
]


def array(name: str, *shape: int) -> onnx.TensorProto:
    random = np.random.default_rng(len(name) + sum(shape))
    return nh.from_array((random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype("f"), name)


def info(name: str, *shape: object, kind: int = 1) -> onnx.ValueInfoProto:
    return oh.make_tensor_value_info(name, kind, list(shape))


def model_of(nodes, inputs, rank: int, weights) -> onnx.ModelProto:
    y = info("y", *[f"d{k}" for k in range(rank)])
    graph = oh.make_graph(nodes, "g", inputs, [y], weights)
    return oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])


def shared_weights() -> onnx.ModelProto:
    nodes = [
        oh.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        oh.make_node("Relu", ["a"], ["b"]),
        oh.make_node("Gemm", ["b", "w", "c"], ["d"], name="second", transB=1),
        oh.make_node("Gemm", ["d", "w", "c"], ["y"], name="third"),
    ]
    return model_of(nodes, [info("x", "N", 144)], 2, [array("w", 144, 144), array("c", 144)])


def constants_in_sums() -> onnx.ModelProto:
    nodes = [
        oh.make_node("Conv", ["x", "w"], ["a"], name="conv", pads=[1] * 4),
        oh.make_node("Add", ["a", "table"], ["b"], name="sum"),
        oh.make_node("Conv", ["b", "v"], ["y"], name="last"),
    ]
    weights = [array("w", 32, 3, 3, 3), array("table", 1, 32, 8, 8), array("v", 16, 32, 3, 3)]
    return model_of(nodes, [info("x", "N", 3, 8, 8)], 4, weights)


def joins() -> onnx.ModelProto:
    """Parts a hundred times as large as others, next to each other."""
    nodes = [
        oh.make_node("Conv", ["x", "w"], ["a"], name="small", pads=[1] * 4),
        oh.make_node("Conv", ["x", "v"], ["b"], name="large", pads=[1] * 4),
        oh.make_node("Concat", ["a", "b"], ["c"], axis=1),
        oh.make_node("Conv", ["c", "u"], ["y"], name="both"),
    ]
    large = nh.from_array(100 * nh.to_array(array("v", 16, 16, 3, 3)), "v")
    return model_of(
        nodes, [info("x", "N", 16, 8, 8)], 4, [array("w", 16, 16, 3, 3), large, array("u", 8, 32, 3, 3)]
    )


def heads() -> onnx.ModelProto:
    """Boxes and scores of a detector, put together at the end."""
    nodes = [
        oh.make_node("Conv", ["x", "w"], ["f"], name="body", pads=[1] * 4),
        oh.make_node("Relu", ["f"], ["r"]),
        oh.make_node("Conv", ["r", "b"], ["boxes"], name="boxes"),
        oh.make_node("Conv", ["r", "s"], ["logits"], name="scores"),
        oh.make_node("Sigmoid", ["logits"], ["scores"]),
        oh.make_node("Concat", ["boxes", "scores"], ["c"], axis=1),
        oh.make_node("Transpose", ["c"], ["y"], perm=[0, 2, 3, 1]),
    ]
    weights = [array("w", 32, 16, 3, 3), array("b", 4, 32, 1, 1), array("s", 20, 32, 1, 1)]
    return model_of(nodes, [info("x", "N", 16, 16, 16)], 4, weights)


def embeddings() -> onnx.ModelProto:
    nodes = [
        oh.make_node("Gather", ["table", "ids"], ["e"], name="embedding"),
        oh.make_node("MatMul", ["e", "w"], ["y"], name="head"),
    ]
    return model_of(
        nodes, [info("ids", "N", "length", kind=7)], 3, [array("table", 60, 64), array("w", 64, 96)]
    )


def branches() -> onnx.ModelProto:
    def body(name: str, weight: str) -> onnx.GraphProto:
        return oh.make_graph(
            [oh.make_node("MatMul", ["h", weight], [name], name=f"in_{name}")],
            name,
            [],
            [info(name, "N", 64)],
            [array(weight, 64, 64)] if weight != "w" else [],
        )

    nodes = [
        oh.make_node("MatMul", ["x", "w"], ["h"], name="before"),
        oh.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        oh.make_node("Greater", ["m", "zero"], ["c"]),
        oh.make_node("If", ["c"], ["y"], name="if", then_branch=body("a", "w"), else_branch=body("b", "v")),
    ]
    zero = nh.from_array(np.float32(0.5), "zero")
    return model_of(nodes, [info("x", "N", 64)], 2, [array("w", 64, 64), zero])


def loops() -> onnx.ModelProto:
    body = oh.make_graph(
        [
            oh.make_node("Identity", ["going"], ["go"]),
            oh.make_node("MatMul", ["state", "w"], ["p"], name="step"),
            oh.make_node("Tanh", ["p"], ["next"]),
        ],
        "body",
        [info("i", kind=7), info("going", kind=9), info("state", "N", 64)],
        [info("go", kind=9), info("next", "N", 64)],
        [array("w", 64, 64)],
    )
    nodes = [
        oh.make_node("MatMul", ["x", "v"], ["h"], name="before"),
        oh.make_node("Loop", ["count", "yes", "h"], ["y"], name="loop", body=body),
    ]
    weights = [array("v", 64, 64), nh.from_array(np.array(3), "count"), nh.from_array(np.array(True), "yes")]
    return model_of(nodes, [info("x", "N", 64)], 2, weights)


def captured() -> onnx.ModelProto:
    """Bodies that read what activations outside make, with names that short ones could take."""

    def body(operator: str, clip: bool) -> onnx.GraphProto:
        name = f"q{int(clip)}"
        nodes = [
            oh.make_node(operator, ["clipped" if clip else "kept"], [name], name=f"k{int(clip)}"),
            oh.make_node("Identity", [name], [f"{name}_out"]),
        ]
        return oh.make_graph(nodes, name, [], [info(f"{name}_out", "N", 16, 8, 8)])

    nodes = [
        oh.make_node("Conv", ["x", "w"], ["a"], name="first", pads=[1] * 4),
        oh.make_node("Relu", ["a"], ["kept"]),
        oh.make_node("Conv", ["kept", "v"], ["b"], name="second", pads=[1] * 4),
        oh.make_node("Clip", ["b", "zero", "one"], ["clipped"]),
        oh.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        oh.make_node("Greater", ["m", "one"], ["c"]),
        oh.make_node("If", ["c"], ["i"], then_branch=body("Neg", True), else_branch=body("Neg", False)),
        oh.make_node("Conv", ["i", "u"], ["y"], name="third"),
    ]
    weights = [array("w", 16, 3, 3, 3), array("v", 16, 16, 3, 3), array("u", 16, 16, 3, 3)]
    limits = [nh.from_array(np.float32(value), name) for value, name in ((0, "zero"), (1, "one"))]
    return model_of(nodes, [info("x", "N", 3, 8, 8)], 4, [*weights, *limits])


def recurrent() -> onnx.ModelProto:
    nodes = [
        oh.make_node("LSTM", ["x", "w", "r", "b"], ["h", "", ""], name="lstm", hidden_size=128),
        oh.make_node("Squeeze", ["h", "one"], ["s"]),
        oh.make_node("GRU", ["s", "v", "u"], ["g", ""], name="gru", hidden_size=32),
        oh.make_node("Squeeze", ["g", "one"], ["t"]),
        oh.make_node("MatMul", ["t", "o"], ["y"], name="head"),
    ]
    weights = [
        array("w", 1, 512, 24),
        array("r", 1, 512, 128),
        array("b", 1, 1024),
        array("v", 1, 96, 128),
        array("u", 1, 96, 32),
        array("o", 32, 64),
        nh.from_array(np.array([1]), "one"),
    ]
    return model_of(nodes, [info("x", "length", "N", 24)], 3, weights)


def batches_of_weights() -> onnx.ModelProto:
    nodes = [
        oh.make_node("MatMul", ["x", "w"], ["a"], name="three"),
        oh.make_node("MatMul", ["v", "a"], ["y"], name="left"),
    ]
    return model_of(nodes, [info("x", 4, 36, 48)], 3, [array("w", 4, 48, 32), array("v", 40, 36)])


GRAPHS = [
    shared_weights,
    constants_in_sums,
    joins,
    heads,
    embeddings,
    branches,
    loops,
    captured,
    recurrent,
    batches_of_weights,
]


@pytest.mark.parametrize("options", MODES, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("make", GRAPHS)
def test_odd_graphs_run_in_every_mode(make, options) -> None:
    model = make()
    inputs = graph_inputs(from_model(model))
    context = Context(Path("m.onnx"), inputs=tuple(inputs))
    context.data = synthetic_dataset(inputs, seed=1, samples=32)
    feeds = synthetic(inputs, seed=1, batch=4)
    want = run(session(model), feeds)[0]
    if make in (constants_in_sums, joins, heads, captured) and options["mode"] == "dynamic":
        with pytest.raises(GateError, match="quantize with data"):
            Quantize(mode="dynamic", guard=False).run(from_model(model), context)
        return
    if make is batches_of_weights and options["mode"] in ("static", "dynamic"):
        with pytest.raises(GateError, match="its weights have 3 axes"):
            Quantize(mode=options["mode"], guard=False).run(from_model(model), context)
        return
    result = to_model(Quantize(guard=False, **options).run(from_model(model), context))  # type: ignore[arg-type]  # vary
    ours = run(session(result), feeds)[0]
    assert ours.shape == want.shape
    # 4 bits leave 8 % of a weight, 8 bits under 1 % of weights and activations; a few operators in a row
    bound = 0.25 if options.get("bits") == 4 else 0.002 if options["mode"] == "fp16" else 0.05
    assert np.linalg.norm(ours - want) < bound * np.linalg.norm(want)
    if options["mode"] == "fp16":
        return
    done = sum(context.record["quantized"].values()) + sum(context.record["stored"].values())  # type: ignore[attr-defined]
    assert done
    assert all(entry["reason"] for entry in context.record["left_float"])  # type: ignore[attr-defined]
    left = {entry["operator"] for entry in context.record["left_float"]} - {"Add"}  # type: ignore[attr-defined]
    if options["mode"] == "auto":  # what computes in float has 8-bit weights
        assert left <= set(context.record["stored"])  # type: ignore[call-overload]
    if options["mode"] == "weights":
        assert left == set()


def test_what_goes_out_is_not_rounded_again() -> None:
    model = heads()
    context = context_for(model)
    result = to_model(Quantize(guard=False).run(from_model(model), context))
    assert context.record["quantized"] == {"Conv": 3}
    rounded = {node.input[0] for node in result.graph.node if node.op_type == "QuantizeLinear"}
    assert rounded >= {"boxes", "logits"}
    assert rounded.isdisjoint({"scores", "c", "y"})


def test_features_that_more_is_made_of_are_rounded_where_they_are_put_together() -> None:
    nodes, weights, features = [], [], "x"
    for k in range(3):
        nodes += [
            oh.make_node("Conv", [features, f"w{k}"], [f"c{k}"], name=f"conv{k}", pads=[1] * 4),
            oh.make_node("Relu", [f"c{k}"], [f"r{k}"], name=f"relu{k}"),
        ]
        weights.append(array(f"w{k}", 8, 8 * k or 3, 3, 3))
        if k:
            together = "y" if k == 2 else f"t{k}"
            nodes.append(oh.make_node("Concat", [features, f"r{k}"], [together], name=f"join{k}", axis=1))
        features = together if k else "r0"
    model = model_of(nodes, [info("x", "N", 3, 8, 8)], 4, weights)
    chosen = set(choose(model, lambda _: False, static=True).nodes)
    assert chosen == {"conv0", "conv1", "conv2", "relu0", "relu1", "join1"}


def test_auto_gives_an_lstm_its_dynamic_kernel() -> None:
    model = recurrent()
    context = context_for(model)
    result = to_model(Quantize(guard=False).run(from_model(model), context))
    assert [node.op_type for node in result.graph.node].count("DynamicQuantizeLSTM") == 1
    assert context.record["quantized"] == {"LSTM": 1, "MatMul": 1}
    assert context.record["stored"] == {"GRU": 1}
    assert [entry["operator"] for entry in context.record["left_float"]] == ["GRU"]  # type: ignore[attr-defined]


def test_an_lstm_beside_static_arithmetic_changes_no_later_model(tmp_path: Path) -> None:
    """As many models are made of one calibration as accuracy control asks for."""
    model = recurrent()
    context = context_for(model)
    ready = prepared(model, lambda _: False, tmp_path)
    maker = Maker(
        ready, Quantize(), lambda _: False, context.calibration, tmp_path, dataless=False, threads=1
    )
    choice = maker.choose()
    first = maker.draft(choice)
    maker.finished(maker.draft(choice), choice, {})
    assert maker.draft(choice) == first


def test_a_model_that_only_decides(tmp_path: Path) -> None:
    """Its outputs are integers, and lists whose length depends on values: no error of outputs can be told."""
    nodes = [
        oh.make_node("Conv", ["x", "w"], ["a"], name="conv", pads=[1] * 4),
        oh.make_node("Relu", ["a"], ["b"]),
        oh.make_node("Conv", ["b", "v"], ["c"], name="last"),
        oh.make_node("ArgMax", ["c"], ["y"], axis=1),
        oh.make_node("NonZero", ["b"], ["places"]),
        oh.make_node("Cast", ["places"], ["found"], to=1),
    ]
    outputs = [info("y", *"abcd", kind=7), info("found", "e", "f")]
    graph = oh.make_graph(
        nodes, "g", [info("x", "N", 3, 8, 8)], outputs, [array("w", 32, 3, 3, 3), array("v", 16, 32, 3, 3)]
    )
    model = oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])
    inputs = graph_inputs(from_model(model))
    context = Context(tmp_path / "m.onnx", inputs=tuple(inputs))
    context.data = synthetic_dataset(inputs, seed=1, samples=32)
    result = to_model(Quantize(guard=False, equalize=None, smooth=None).run(from_model(model), context))
    assert context.record["quantized"] == {"Conv": 2}
    assert not context.record["equalize"]["kept"]  # type: ignore[index]
    feeds = synthetic(inputs, seed=3, batch=4)
    ours, theirs = (run(session(each), feeds)[0] for each in (model, result))
    assert np.mean(ours == theirs) > 0.9


@pytest.mark.parametrize(("make", "inner"), [(branches, {"in_a", "in_b"}), (loops, {"step"})])
@pytest.mark.parametrize("static", [True, False])
def test_products_in_bodies_are_said_to_stay_float(make, inner: set[str], static: bool) -> None:
    choice = choose(make(), lambda _: False, static=static)
    assert set(choice.weighted) == {"before"}
    assert choice.left == dict.fromkeys(inner, ("MatMul", "inside a control-flow body"))


@pytest.mark.parametrize("mode", ["static", "weights"])
def test_weights_of_another_type_are_said_to_be_such(mode: str) -> None:
    table = nh.from_array(nh.to_array(array("twice", 64, 64)).astype(np.float64), "twice")
    nodes = [
        oh.make_node("Cast", ["x"], ["h"], to=onnx.TensorProto.DOUBLE),
        oh.make_node("MatMul", ["h", "twice"], ["p"], name="other"),
        oh.make_node("Cast", ["p"], ["f"], to=onnx.TensorProto.FLOAT),
        oh.make_node("MatMul", ["f", "w"], ["y"], name="usual"),
    ]
    model = model_of(nodes, [info("x", "N", 64)], 2, [table, array("w", 64, 64)])
    context = context_for(model)
    Quantize(mode=mode, guard=False).run(from_model(model), context)  # type: ignore[arg-type]  # one of its modes
    left = context.record["left_float"]
    assert left == [{"node": "other", "operator": "MatMul", "reason": "its weights are double"}]
