"""What loading keeps, what it turns into something simpler, and what it leaves unread."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx_graphsurgeon.ir.tensor import LazyValues

from surgeon.graph.load import from_model, load
from surgeon.graph.save import to_model
from surgeon.graph.source import source_of
from surgeon.graph.weights import peek


def test_constant_nodes_become_constants(parse) -> None:
    graph = from_model(
        parse(
            "net (float[4] x) => (float[4] y) { a = Constant <value = float[4] {1, 2, 3, 4}> ()"
            " b = Constant <value_float = 2.0> ()  i = Constant <value_ints = [4]> ()"
            " s = Add(x, a)  m = Mul(s, b)  y = Reshape(m, i) }"
        )
    )
    assert [node.op for node in graph.nodes] == ["Add", "Mul", "Reshape"]
    constants = {t.name: t for t in graph.tensors().values() if isinstance(t, gs.Constant)}
    assert peek(constants["a"]).tolist() == [1, 2, 3, 4]
    assert peek(constants["b"]).shape == ()
    assert peek(constants["b"]).dtype == np.float32
    assert peek(constants["i"]).tolist() == [4]
    assert peek(constants["i"]).dtype == np.int64


def test_a_constant_node_that_is_an_output_stays(parse, run) -> None:
    model = parse(
        "net (float[1] x) => (float[1] y, float[2] c) { y = Relu(x)  c = Constant <value = float[2] {1, 2}> () }"
    )
    saved = to_model(from_model(model))
    assert run(saved, x=np.ones(1, np.float32))[1].tolist() == [1, 2]


def test_initializers_stop_being_inputs(parse) -> None:
    model = parse(
        "net (float[N, 2] x, float[2] b) => (float[N, 2] y) { y = Add(x, b) }", b=np.ones(2, np.float32)
    )
    graph = from_model(model)
    assert [tensor.name for tensor in graph.inputs] == ["x"]
    assert isinstance(graph.nodes[0].inputs[1], gs.Constant)


def test_an_output_read_before_it_is_made_keeps_its_type(parse) -> None:
    model = parse("net (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) { y = Relu(x)  z = Neg(y) }")
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    outputs = from_model(model).outputs
    assert [(each.name, each.dtype, each.shape) for each in outputs] == [
        ("y", np.float32, ["N", 4]),
        ("z", np.float32, ["N", 4]),
    ]


def test_nodes_are_put_in_order(parse, run) -> None:
    model = parse("net (float[2] x) => (float[2] y) { a = Neg(x)  b = Exp(a)  y = Abs(b) }")
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert [node.op for node in from_model(model).nodes] == ["Neg", "Exp", "Abs"]


def test_local_functions_are_inlined(run) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "my" : 1]>'
        " net (float[2] x) => (float[2] y) { h = my.twice(x)  y = Add(h, w) }"
        ' <domain: "my", opset_import: ["" : 17]> twice (a) => (b) { b = Add(a, a) }'
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), "w"))
    graph = from_model(model)
    assert [node.op for node in graph.nodes] == ["Add", "Add"]
    assert len(model.functions) == 1  # the caller's message is left alone
    assert run(to_model(graph), x=np.full(2, 3, np.float32))[0].tolist() == [7, 7]


def test_unusual_attributes_survive(parse) -> None:
    model = parse(
        "net (float[N] x) => (float[N] y) { y = com.example.Thing (x) }", imports=', "com.example" : 1'
    )
    node = model.graph.node[0]
    kinds = {
        "bytes": b"\xff\xfe",
        "text": "a",
        "texts": ["a", "b"],
        "numbers": [1, 2],
        "floats": [0.5, 2.0],
        "whole": 1.0,
    }
    node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in kinds.items())
    node.attribute.append(onnx.helper.make_attribute("type", onnx.helper.make_tensor_type_proto(1, [2])))
    node.attribute.append(
        onnx.helper.make_attribute("tensor", onnx.numpy_helper.from_array(np.ones(3, np.int8)))
    )
    before = {attribute.name: attribute.SerializeToString() for attribute in node.attribute}
    after = {
        attribute.name: attribute.SerializeToString()
        for attribute in to_model(from_model(model)).graph.node[0].attribute
    }
    assert after == before


def test_an_empty_list_keeps_its_type(parse) -> None:
    model = parse(
        "net (float[1, 1] x) => (float y) { y = ReduceSum <axes = [0, 1], keepdims = 0> (x) }", opset=11
    )
    graph = from_model(model)
    graph.nodes[0].attrs["axes"] = []
    axes = next(
        attribute for attribute in to_model(graph).graph.node[0].attribute if attribute.name == "axes"
    )
    assert axes.type == onnx.AttributeProto.INTS


def test_weights_are_not_read(parse) -> None:
    graph = from_model(
        parse("net (float[N, 4] x) => (float[N, 6] y) { y = MatMul(x, w) }", w=np.ones((4, 6), np.float32))
    )
    weight = graph.nodes[0].inputs[1]
    assert isinstance(vars(weight)["_values"], LazyValues)
    array = peek(weight)
    assert isinstance(vars(weight)["_values"], LazyValues)
    assert peek(weight) is array  # the same array while somebody holds it
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 2


@pytest.mark.parametrize(
    "kind", ["FLOAT16", "BFLOAT16", "INT4", "UINT4", "FLOAT8E4M3FN", "BOOL", "INT8", "STRING"]
)
def test_every_type_of_weight_survives(kind: str, parse, tmp_path: Path) -> None:
    number = onnx.TensorProto.DataType.Value(kind)
    values = [b"a", b"b", b"c"] if kind == "STRING" else [1, 0, 1]
    model = parse(
        f"net (int64[1] i) => ({kind.lower()}[1] y) {{ y = com.example.Pick (w, i) }}",
        imports=', "com.example" : 1',
    )
    model.graph.output[0].type.tensor_type.elem_type = number
    model.graph.initializer.append(onnx.helper.make_tensor("w", number, [3], values))
    expected = onnx.numpy_helper.to_array(model.graph.initializer[0])
    from surgeon.graph.save import save

    graph = from_model(model)
    assert np.array_equal(peek(graph.nodes[0].inputs[0]), expected)
    save(graph, tmp_path / "m.onnx")
    assert np.array_equal(
        onnx.numpy_helper.to_array(onnx.load(tmp_path / "m.onnx").graph.initializer[0]), expected
    )


def test_the_source_is_remembered(parse, tmp_path: Path) -> None:
    model = parse("net (float[batch, 4] x) => (float[batch, 4] y) { y = Relu(x) }")
    model.producer_name = "somebody"
    model.metadata_props.add(key="labels", value="a,b")
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    graph = load(path)
    source = source_of(graph)
    assert source is not None
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    saved = to_model(graph)
    assert saved.producer_name == "somebody"
    assert [(entry.key, entry.value) for entry in saved.metadata_props] == [("labels", "a,b")]
    assert saved.graph.input[0] == model.graph.input[0]
    assert saved.graph.output[0] == model.graph.output[0]


def test_a_table_behind_many_residual_sums_is_no_weight(parse) -> None:
    """What is looked up depends on an input; finding that out visits every node once."""
    lines = [f"r{k} = Relu (a{k})\na{k + 1} = Add (a{k}, r{k})" for k in range(60)]
    body = "\n".join(
        ["a0 = Neg (x)", *lines, "k = ArgMax <axis = 1> (a60)", "g = Gather (t, k)", "y = Neg (g)"]
    )
    model = parse(f"g (float[N, 4] x) => (float[N, 1] y) <float[4] t = {{1, 2, 3, 4}}> {{ {body} }}")
    graph = from_model(model)
    assert [node.op for node in graph.nodes].count("Gather") == 1
