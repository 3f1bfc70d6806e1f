"""Shapes and values at probe sizes, and what counts as dynamic."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import pytest

from surgeon.graph.load import from_model
from surgeon.graph.shapes import captured, dynamic_dims, infer
from surgeon.graph.symbols import evaluate_symbol


def test_open_dimensions_get_sizes_of_their_own(graph_of) -> None:
    graph = graph_of("net (float[N, 3, H, W] x) => (float[N, 3, H, W] y) { y = Relu(x) }")
    shapes = infer(graph)
    sizes = list(shapes.probe.values())
    assert list(shapes.probe) == ["N", "H", "W"]
    assert len({*sizes, 3}) == 4
    assert shapes.dims["y"] == (shapes.probe["N"], 3, shapes.probe["H"], shapes.probe["W"])
    assert shapes.dynamic["y"] == (True, False, True, True)


def test_no_size_of_the_model_is_used(graph_of) -> None:
    weights = {f"w{size}": np.zeros((size, size), np.float32) for size in (3, 5, 7, 13)}
    chain = "a = MatMul(x, w3) b = MatMul(z, w5) c = MatMul(v, w7) d = MatMul(u, w13)"
    graph = graph_of(
        "net (float[N, 3] x, float[N, 5] z, float[N, 7] v, float[S, T, 13] u) => (float[N, 3] a, float[N, 5] b,"
        f" float[N, 7] c, float[S, T, 13] d) {{ {chain} }}",
        **weights,
    )
    assert not {3, 5, 7, 13} & set(infer(graph).probe.values())


def test_unnamed_dimensions_have_stable_keys(graph_of) -> None:
    graph = graph_of("net (float[?, 4] x, float[?, 4] z) => (float[N, 4] y) { y = Add(x, z) }")
    assert dynamic_dims(graph) == {"x:0": [("x", 0)], "z:0": [("z", 0)]}
    shapes = infer(graph)
    assert not shapes.failures  # both batches must be the same for the Add to work
    assert shapes.probe["x:0"] == shapes.probe["z:0"]


def test_sizes_can_be_forced(graph_of) -> None:
    graph = graph_of("net (float[N, T] x) => (float[N, T] y) { y = Relu(x) }")
    shapes = infer(graph, {"T": 64})
    assert shapes.dims["y"] == (shapes.probe["N"], 64)
    assert shapes.dynamic["y"] == (True, True)


def test_shape_arithmetic_is_followed(graph_of) -> None:
    graph = graph_of(
        "net (float[N, 12, 8] x) => (float[N, 3, 4, 8] y) {"
        " s = Shape(x)  n = Gather(s, zero)  c = Gather(s, one)  q = Div(c, four)"
        " n1 = Unsqueeze(n, zeros)  q1 = Unsqueeze(q, zeros)  t = Concat <axis = 0> (n1, q1, tail)  y = Reshape(x, t) }",
        zero=np.array(0),
        one=np.array(1),
        four=np.array(4),
        zeros=np.array([0]),
        tail=np.array([4, -1]),
    )
    shapes = infer(graph)
    batch = shapes.probe["N"]
    assert shapes.values["t"].data.tolist() == [batch, 3, 4, -1]
    assert shapes.values["t"].dynamic.tolist() == [True, False, False, False]
    assert shapes.values["q"].static
    assert shapes.dims["y"] == (batch, 3, 4, 8)
    assert shapes.dynamic["y"] == (True, False, False, False)


def test_axes_that_depend_on_data_are_dynamic(graph_of) -> None:
    graph = graph_of("net (float[4, 5] x) => (int64[2, K] y) { y = NonZero(x) }")
    shapes = infer(graph)
    assert shapes.dims["y"] is not None
    assert shapes.dims["y"][0] == 2
    assert shapes.dynamic["y"] == (False, True)
    assert "y" not in shapes.values


def test_an_unknown_operator_has_no_shape_and_what_follows_neither(parse) -> None:
    graph = from_model(
        parse(
            "net (float[N, 4] x) => (float[N, 4] y) { a = com.example.Thing (x)  y = Relu(a) }",
            imports=', "com.example" : 1',
        )
    )
    shapes = infer(graph)
    assert shapes.dims["a"] is None
    assert shapes.dims["y"] is None


def test_operators_of_the_runtime_keep_the_shape(parse) -> None:
    graph = from_model(
        parse(
            "net (float[N, 4] x) => (float[N, 4] y) { a = com.microsoft.FastGelu (x)"
            " y = SimplifiedLayerNormalization <axis = -1> (a, w) }",
            imports=', "com.microsoft" : 1',
            w=np.ones(4, np.float32),
        )
    )
    shapes = infer(graph)
    assert shapes.dims["y"] == (shapes.probe["N"], 4)


def test_images_that_cannot_be_odd(graph_of) -> None:
    conv = "pads = [1, 1, 1, 1], strides = [2, 2], kernel_shape = [3, 3]"
    graph = graph_of(
        f"net (float[N, 3, H, W] x) => (float[N, 3, H, W] y) {{ a = Conv <{conv}> (x, w)  b = Conv <{conv}> (a, w)"
        ' c = Resize <mode = "nearest"> (b, , scales)  y = Add(x, c) }',
        w=np.zeros((3, 3, 3, 3), np.float32),
        scales=np.array([1, 1, 4, 4], np.float32),
    )
    shapes = infer(graph)
    assert not shapes.failures
    assert shapes.dims["y"] == shapes.dims["x"]
    assert shapes.dynamic["b"] == (True, False, True, True)


def test_a_length_the_exporter_baked_in_is_found(graph_of) -> None:
    graph = graph_of(
        "net (float[N, T, 4] x) => (float[N, T, 4] y) { y = Add(x, position) }",
        position=np.zeros((1, 48, 4), np.float32),
    )
    shapes = infer(graph)
    assert not shapes.failures
    assert shapes.probe["T"] == 48
    assert shapes.dynamic["y"][0]


def test_reshapes_whose_counts_differ_are_refused(graph_of) -> None:
    graph = graph_of(
        "net (float[N, T, 4] x) => (float[N, U] y) { s = Shape(x)  n = Gather(s, zeros)"
        " t = Concat <axis = 0> (n, length)  y = Reshape(x, t) }",
        zeros=np.array([0]),
        length=np.array([64]),
    )
    assert infer(graph).probe["T"] == 16


def test_decoders_count_past_and_new_positions(graph_of) -> None:
    graph = graph_of(
        "net (float[batch, sequence_length, 4] x, float[batch, past_sequence_length, 4] past,"
        " float[batch, total_sequence_length, 4] mask) => (float[batch, total, 4] y) {"
        " all = Concat <axis = 1> (past, x)  y = Add(all, mask) }"
    )
    shapes = infer(graph)
    assert not shapes.failures
    assert (
        shapes.probe["total_sequence_length"]
        == shapes.probe["sequence_length"] + shapes.probe["past_sequence_length"]
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("a + 1", 4),
        ("2*a + b", 11),
        ("(a + b)//2", 4),
        ("a", 3),
        ("c + 1", None),
        ("a b", None),
        ("a.b", None),
    ],
)
def test_symbols_that_are_expressions(text: str, size: int | None) -> None:
    assert evaluate_symbol(text, {"a": 3, "b": 5}) == size


IF = (
    "net (float[N, 4] x) => (float[M, 4] y) {{ s = Shape(x)  c = Gather(s, {axis})  e = Equal(c, four)"
    " y = If (e) <then_branch = t () => (a) {{ a = Relu(x) }}, else_branch = f () => (b) {{ b = Gather(x, first) }}> }}"
)


def test_the_branch_taken_decides_the_shape(graph_of) -> None:
    constants = {"first": np.array([0]), "four": np.array(4), "zero": np.array(0), "one": np.array(1)}
    graph = graph_of(IF.format(axis="one"), **constants)
    shapes = infer(graph)
    assert shapes.dims["y"] == (shapes.probe["N"], 4)
    assert [tensor.name for tensor in captured(graph.nodes[-1])] == ["x"]


def test_scan_and_loop_have_shapes(parse) -> None:
    model = parse(
        "net (float[N, 4] x) => (float[4] y, float[N, 4] z) { y, z = Scan <num_scan_inputs = 1, body ="
        " step (float[4] state, float[4] row) => (float[4] next, float[4] out)"
        " { next = Add(state, row)  out = Mul(next, w) }> (start, x) }",
        start=np.zeros(4, np.float32),
        w=np.ones(4, np.float32),
    )
    graph = from_model(model)
    shapes = infer(graph)
    assert shapes.dims["y"] == (4,)
    assert shapes.dims["z"] == (shapes.probe["N"], 4)


def test_sequences_are_not_tensors(graph_of) -> None:
    graph = graph_of("net (float[4, 2] x) => (float[2, 2] y) { s = SplitToSequence(x, two)  y = SequenceAt(s, zero) }",
                     two=np.array(2), zero=np.array(0))  # fmt: skip
    assert infer(graph).dims["s"] is None


def test_huge_constants_of_shape_are_not_computed(graph_of) -> None:
    graph = graph_of(
        "net (float[1] x) => (float[A, B] y) { c = ConstantOfShape(s)  y = Add(c, x) }",
        s=np.array([2**30, 2**30]),
    )
    shapes = infer(graph)
    assert shapes.dims["c"] == (2**30, 2**30)
    assert "c" not in shapes.values


def test_large_weights_are_not_read(parse, tmp_path) -> None:
    model = parse("net (float[N, 4] x) => (float[N, 6] y) { y = MatMul(x, w) }")
    tensor = model.graph.initializer.add(name="w", data_type=1, dims=[4, 6], data_location=1)
    tensor.external_data.add(key="location", value="w.bin")
    (tmp_path / "w.bin").write_bytes(bytes(96))
    graph = from_model(model, tmp_path / "m.onnx")
    (tmp_path / "w.bin").unlink()
    assert infer(graph).dims["y"] == (3 if 3 in infer(graph).probe.values() else infer(graph).probe["N"], 6)


def test_deep_graphs_do_not_recurse() -> None:
    count = 4_000
    names = [f"t{index}" for index in range(count + 1)]
    nodes = [onnx.helper.make_node("Relu", [a], [b]) for a, b in pairwise(names)]
    ends = [onnx.helper.make_tensor_value_info(name, 1, ["N", 4]) for name in (names[0], names[-1])]
    graph = onnx.helper.make_graph(nodes[::-1], "deep", ends[:1], ends[1:])
    loaded = from_model(
        onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    )
    assert infer(loaded).dims[names[-1]] == infer(loaded).dims[names[0]]


@pytest.mark.parametrize("name", ["stories_llama", "silero_vad", "ppocrv3_det", "cifar10_vit"])
def test_real_models_are_inferred_completely(name: str, shared) -> None:
    from surgeon.graph.load import load

    shapes = infer(load(shared / "models" / f"{name}.onnx"))
    assert not shapes.failures
    assert all(dims is not None or name in shapes.aside for name, dims in shapes.dims.items())
