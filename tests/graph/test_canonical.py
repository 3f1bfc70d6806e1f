"""The canonical form computes the same, with shape arithmetic folded and shared vectors split."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from surgeon.graph.canonical import canonicalize
from surgeon.graph.load import from_model, load
from surgeon.graph.order import every_node
from surgeon.graph.save import to_model
from surgeon.graph.shapes import infer
from surgeon.graph.weights import peek


def canonical(model) -> gs.Graph:
    graph = from_model(model)
    canonicalize(graph, infer(graph))
    return graph


SHUFFLE = (
    "net (float[N, 6, 4] x) => (float[N, 6, 4] y) {"
    " s = Shape(x)  n = Gather(s, i0)  c = Gather(s, i1)  h = Div(c, i2)"
    " n1 = Unsqueeze(n, axis)  h1 = Unsqueeze(h, axis)  t = Concat <axis = 0> (n1, two, h1, rest)"
    " a = Reshape(x, t)  b = Transpose <perm = [0, 2, 1, 3]> (a)"
    " start = Mul(h, i0)  c1 = Unsqueeze(c, axis)  back = Concat <axis = 0> (n1, c1, rest)  y = Reshape(b, back) }"
)
NUMBERS = {
    "i0": np.array(0),
    "i1": np.array(1),
    "i2": np.array(2),
    "axis": np.array([0]),
    "two": np.array([2]),
    "rest": np.array([4]),
}


def test_static_arithmetic_becomes_constants(parse, run) -> None:
    model = parse(SHUFFLE, **NUMBERS)
    graph = canonical(model)
    kept = [node.op for node in graph.nodes]
    assert "Div" not in kept
    assert kept.count("Unsqueeze") == 1  # the batch's; that of the channels is static
    constants = {t.name: peek(t).tolist() for t in graph.tensors().values() if isinstance(t, gs.Constant)}
    assert constants["h1"] == [3]
    assert constants["c1"] == [6]
    for batch in (1, 3):
        x = np.random.default_rng(0).standard_normal((batch, 6, 4)).astype(np.float32)
        np.testing.assert_array_equal(run(to_model(graph), x=x)[0], run(model, x=x)[0])


def test_graph_outputs_stay_computed(parse, run) -> None:
    model = parse("net (float[N, 4] x) => (int64 c) { s = Shape(x)  c = Gather(s, one) }", one=np.array(1))
    graph = canonical(model)
    assert graph.nodes[-1].op == "Gather"
    assert run(to_model(graph), x=np.zeros((2, 4), np.float32))[0] == 4


def test_dead_nodes_are_dropped(parse) -> None:
    model = parse(
        "net (float[N, 4] x, float[N, 4] unused) => (float[N, 4] y) { y = Relu(x)  d = Neg(x)  e = Exp(d) }"
    )
    graph = canonical(model)
    assert [node.op for node in graph.nodes] == ["Relu"]
    assert [tensor.name for tensor in graph.inputs] == ["x", "unused"]
    assert [node.op for node in graph.inputs[0].outputs] == ["Relu"]


def test_float_arithmetic_on_weights_is_left_alone(parse) -> None:
    model = parse(
        "net (float[N, 4] x) => (float[N, 4] y) { k = Sqrt(w)  s = Shape(x)  d = Gather(s, one)  f = Cast <to = 1> (d)"
        " r = Sqrt(f)  a = Mul(x, k)  y = Div(a, r) }",
        w=np.array(2, np.float32),
        one=np.array(1),
    )
    graph = canonical(model)
    assert [node.op for node in graph.nodes] == ["Sqrt", "Mul", "Div"]
    assert graph.nodes[0].inputs[0].name == "w"
    assert peek(graph.nodes[2].inputs[1]) == pytest.approx(2.0)


def test_shared_vectors_are_split_and_matrices_are_not(parse, run) -> None:
    model = parse(
        "net (float[N, 4] x) => (float[N, 4] y) { a = Gemm(x, w, b)  c = Gemm(a, w, b)  d = Add(c, b)  y = Mul(d, k) }",
        w=np.eye(4, dtype=np.float32),
        b=np.ones(4, np.float32),
        k=np.array(2, np.float32),
    )
    graph = canonical(model)
    names = [[tensor.name for tensor in node.inputs] for node in graph.nodes]
    assert names == [["x", "w", "b"], ["a", "w", "b__2"], ["c", "b__3"], ["d", "k"]]
    origins = [
        graph.nodes[0].inputs[2].origin,
        graph.nodes[1].inputs[2].origin,
        graph.nodes[2].inputs[1].origin,
    ]
    assert origins == ["b", "b", "b"]
    assert all(len(node.inputs[-1].outputs) == 1 for node in graph.nodes)
    assert len(graph.nodes[0].inputs[1].outputs) == 2
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(run(to_model(graph), x=x)[0], run(model, x=x)[0])


def test_one_node_using_a_vector_twice(parse) -> None:
    graph = canonical(
        parse(
            "net (float[N, 4, 2] x) => (float[N, 4, 2] y) { y = BatchNormalization(x, one, zero, zero, one) }",
            one=np.ones(4, np.float32),
            zero=np.zeros(4, np.float32),
        )
    )
    assert [tensor.name for tensor in graph.nodes[0].inputs] == ["x", "one", "zero", "zero__2", "one__2"]


def test_names_in_use_are_not_taken(parse) -> None:
    graph = canonical(
        parse(
            "net (float[4] b__2) => (float[4] y) { a = Add(b__2, b)  y = Add(a, b) }",
            b=np.ones(4, np.float32),
        )
    )
    assert graph.nodes[1].inputs[1].name == "b__3"


def test_shape_constants_stay_shared(parse) -> None:
    graph = canonical(
        parse(
            "net (float[N, 4] x) => (float[N, 2, 2] y) { a = Reshape(x, t)  b = Relu(a)  y = Reshape(b, t) }",
            t=np.array([0, 2, -1]),
        )
    )
    assert graph.nodes[0].inputs[1] is graph.nodes[2].inputs[1]


def test_what_bodies_use_gets_its_own_constant(parse, run) -> None:
    model = parse(
        "net (bool c, float[N, 4] x) => (float[N, 4] y) { s = Shape(x)  d = Gather <axis = 0> (s, one)  u = Add(x, b)"
        " y = If (c) <then_branch = t () => (float[N, 4] p) { f = Cast <to = 1> (d)  p0 = Mul(u, f)  p = Add(p0, b) },"
        " else_branch = e () => (float[N, 4] q) { q = Neg(u) }> }",
        one=np.array([1]),
        b=np.ones(4, np.float32),
    )
    graph = canonical(model)
    assert [node.op for node in graph.nodes] == ["Add", "If"]
    body = graph.nodes[1].attrs["then_branch"]
    assert [node.op for node in body.nodes] == ["Mul", "Add"]
    assert peek(body.nodes[0].inputs[1]).tolist() == [4]
    assert body.nodes[1].inputs[1].name == "b__2"
    assert graph.nodes[0].inputs[1].name == "b"
    for condition in (True, False):
        feeds = {"c": np.array(condition), "x": np.ones((3, 4), np.float32)}
        np.testing.assert_array_equal(run(to_model(graph), **feeds)[0], run(model, **feeds)[0])


@pytest.mark.parametrize("name", ["cifar10_vit", "stories_llama", "silero_vad", "ppocrv3_det"])
def test_real_models_compute_the_same(name: str, shared, run, tmp_path) -> None:
    from surgeon.graph.save import save

    path = shared / "models" / f"{name}.onnx"
    graph = load(path)
    shapes = infer(graph)
    before = len(graph.nodes)
    canonicalize(graph, shapes)
    assert len(graph.nodes) <= before
    save(graph, tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    for sizes in (shapes, infer(load(path), dict.fromkeys(list(shapes.probe)[:1], 1))):
        feeds = {}
        for tensor in graph.inputs:
            shape = sizes.dims[tensor.name]
            whole = np.dtype(tensor.dtype).kind == "i"
            values = rng.integers(1, 8, shape) if whole else rng.standard_normal(shape)
            feeds[tensor.name] = np.asarray(values).astype(tensor.dtype)
        for mine, theirs in zip(run(tmp_path / "m.onnx", **feeds), run(path, **feeds), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_constants_that_are_outputs_go_through_an_identity(parse, run) -> None:
    model = parse(
        "net (bool c, float[2] x) => (float[2] y, int64[2] z) { z = Constant <value_ints = [3, 4]> ()"
        " y = If (c) <then_branch = t () => (p) { p = Constant <value = float[2] {1.0, 2.0}> () },"
        " else_branch = e () => (q) { q = Add (x, x) }> }"
    )
    graph = canonical(model)
    assert [node.op for node in every_node(graph)] == ["Identity", "Identity", "Add", "If"]
    for condition in (True, False):
        feeds = {"c": np.array(condition), "x": np.ones(2, np.float32)}
        for mine, theirs in zip(run(to_model(graph), **feeds), run(model, **feeds), strict=True):
            np.testing.assert_array_equal(mine, theirs)
