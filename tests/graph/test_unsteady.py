"""What two sizes agree on by chance does not become a constant, and what holds at all sizes does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import surgeon
from surgeon.graph.canonical import canonicalize
from surgeon.graph.inference import Program
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.shapes import infer
from surgeon.graph.unsteady import LEAST, assignments

LENGTHS = (1, 2, 3, 4, 5, 13, 64, 1100)
# What is made of the length n between two convolutions: primes are all odd, and larger than small numbers.
UNSTEADY = {
    "padded to even": "m = Mod (n, two)  z = Concat <axis = 0> (none, m)  p = Pad (r, z)",
    "padded to a multiple": "m = Div (n, two)  k = Mul (m, two)  d = Sub (n, k)  z = Concat <axis = 0> (none, d)  p = Pad (r, z)",
    "a sign": "d = Sub (n, four)  m = Sign (d)  f = Cast <to = 1> (m)  p = Mul (r, f)",
    "a truth": "d = Sub (n, four)  m = Cast <to = 9> (d)  f = Cast <to = 1> (m)  p = Mul (r, f)",
    "a limit": "m = Min (n, four)  f = Cast <to = 1> (m)  p = Mul (r, f)",
    "the length of a part": "a = Slice (x, zero, four, last)  t = Shape (a)  k = Gather <axis = 0> (t, last)"
    "  f = Cast <to = 1> (k)  p = Mul (r, f)",
    "a part reshaped": "a = Slice (r, zero, four, last)  t = Shape (a)  p = Reshape (a, t)",
    "a part with heads": "a = Slice (r, zero, four, last)  v = Reshape (a, heads)  p = Reshape (v, back)",
    "a range that is empty at first": "e = Squeeze (n, zero)  g = Range (thousand, e, step)  m = ReduceSum <keepdims = 0> (g)"
    "  f = Cast <to = 1> (m)  p = Add (r, f)",
    "a count": "b = Less (n, four)  g = NonZero (b)  t = Shape (g)  k = Gather <axis = 0> (t, one)  f = Cast <to = 1> (k)"
    "  p = Add (r, f)",
    "data": "h = ReduceSum <axes = [0, 1], keepdims = 0> (x)  g = NonZero (h)  t = Shape (g)  k = Gather <axis = 0> (t, one)"
    "  m = Mod (k, two)  f = Cast <to = 1> (m)  p = Add (r, f)",
}
# These are the same at all sizes, and how many operators of shape arithmetic are left says so.
STEADY = {
    "a difference": "d = Sub (n, n)  m = Add (d, four)  f = Cast <to = 1> (m)  p = Mul (r, f)",
    "a ratio": "d = Mul (n, four)  m = Div (d, n)  f = Cast <to = 1> (m)  p = Mul (r, f)",
    "channels": "k = Gather <axis = 0> (s, one)  m = Mod (k, two)  f = Cast <to = 1> (m)  p = Mul (r, f)",
    "the first": "a = Slice (x, zero, one, last)  t = Shape (a)  k = Gather <axis = 0> (t, last)  f = Cast <to = 1> (k)"
    "  p = Mul (r, f)",
}


def _model(parse, body, inputs="float[B,4,N] x") -> onnx.ModelProto:
    random = np.random.default_rng(0)
    numbers = {"zero": 0, "one": 1, "two": 2, "four": 4, "last": 2}
    return parse(
        f"net ({inputs}) => (float[B,6,M] y) {{ s = Shape (x)  n = Gather <axis = 0> (s, last)"
        " c = Conv <pads = [1, 1]> (x, w1)  r = Relu (c) " + body + " y = Conv <pads = [1, 1]> (p, w2) }",
        opset=12 if "axes =" in body else 17,
        none=np.zeros(5, np.int64),
        heads=np.array([0, 2, 8, -1]),
        back=np.array([0, 16, -1]),
        thousand=np.array(1000),
        step=np.array(1),
        w1=random.standard_normal((16, 4, 3)).astype(np.float32),
        w2=random.standard_normal((6, 16, 3)).astype(np.float32),
        **{name: np.array([value]) for name, value in numbers.items()},
    )


def _canonical(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = from_model(model)
    canonicalize(graph, infer(graph))
    return to_model(graph)


def _feeds(length: int, batch: int = 2) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((batch, 4, length)).astype(np.float32)}


def _used(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the constants nothing reads, which onnxruntime warns of."""
    read = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in read]:
        model.graph.initializer.remove(tensor)
    return model


@pytest.mark.parametrize("body", [*UNSTEADY.values(), *STEADY.values()], ids=[*UNSTEADY, *STEADY])
def test_the_canonical_form_computes_the_same_at_all_sizes(parse, run, body) -> None:
    model = _used(_model(parse, body))
    canonical = _canonical(model)
    for length in LENGTHS:
        np.testing.assert_array_equal(run(canonical, **_feeds(length))[0], run(model, **_feeds(length))[0])


@pytest.mark.parametrize("body", STEADY.values(), ids=list(STEADY))
def test_what_holds_at_all_sizes_becomes_a_constant(parse, body) -> None:
    assert [node.op_type for node in _canonical(_model(parse, body)).graph.node] == [
        "Conv",
        "Relu",
        "Mul",
        "Conv",
    ]


@pytest.mark.parametrize("body", UNSTEADY.values(), ids=list(UNSTEADY))
def test_such_models_are_cut(parse, run, tmp_path, body) -> None:
    model = _used(_model(parse, body))
    onnx.save(model, tmp_path / "model.onnx")
    cut = to_model(surgeon.run(tmp_path / "model.onnx", passes=["prune{macs=0.6}"]).graph)
    assert next(each for each in cut.graph.initializer if each.name.startswith("w1")).dims[0] < 16
    for length in LENGTHS:
        assert run(cut, **_feeds(length))[0].shape == run(model, **_feeds(length))[0].shape


@pytest.mark.parametrize("window", [7, 11])
def test_models_that_only_take_multiples_of_a_number(parse, run, window) -> None:
    body = "k = Div (n, wide)  t = Concat <axis = 0> (keep, rows, k, wide)  v = Reshape (r, t)  p = Reshape (v, back)"
    model = _used(_model(parse, body))
    for name, value in {"wide": window, "keep": 0, "rows": 16}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([value]), name))
    canonical = _canonical(model)
    for length in (window, 2 * window, 10 * window):
        np.testing.assert_array_equal(run(canonical, **_feeds(length))[0], run(model, **_feeds(length))[0])


def test_relations_between_sizes_hold_where_they_are_tried(parse) -> None:
    body = (
        "a = Shape (u)  b = Gather <axis = 0> (a, last)  d = Sub (n, b)  q = Shape (v)  e = Gather <axis = 0> (q, last)"
        " g = Sub (d, e)  m = Add (g, four)  f = Cast <to = 1> (m)  p = Mul (r, f)"
    )
    model = _model(parse, body, "float[B,4,total] x, float[B,4,past] u, float[B,4,seq] v")
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "past + seq"
    assert [node.op_type for node in _canonical(model).graph.node] == ["Conv", "Relu", "Mul", "Conv"]


def test_of_large_graphs_fewer_sizes_are_tried() -> None:
    many = {f"past_{index}": 13 for index in range(200)}
    assert len(list(assignments(many, 10_000))) == LEAST
    assert len(list(assignments(many, 100))) < 1000
    assert {"N": 20_000} in [sizes for sizes, _ in assignments({"N": 13}, 10_000)]


def test_nodes_in_bodies_count_among_those_of_large_graphs(parse, monkeypatch) -> None:
    """A decoder with and without a cache is one If with two large branches."""
    chain = " ".join(f"p{k + 1} = Relu (p{k})" for k in range(3000))
    model = parse(
        "net (float[B,4,N] x, bool c) => (float[B,4,M] y) { p0 = Slice (x, zero, four, last)"
        f" y = If (c) <then_branch = t () => (p3000) {{ {chain} }}, else_branch = e () => (q) {{ q = Abs (p0) }}> }}",
        **{name: np.array([value]) for name, value in {"zero": 0, "four": 4, "last": 2}.items()},
    )
    runs = []
    run = Program.run
    monkeypatch.setattr(Program, "run", lambda *given: runs.append(given[1]) or run(*given))
    infer(from_model(model))
    assert LEAST < len(runs) < LEAST + 10


def test_a_squeeze_of_a_single_sample_does_not_make_channels_dynamic(parse, tmp_path) -> None:
    random = np.random.default_rng(0)
    model = parse(
        "net (float[B,3,H,W] x) => (float[B,5] y) { c = Conv <pads = [1, 1, 1, 1]> (x, w)  r = Relu (c)"
        " a = Slice (r, start, end, axes)  g = GlobalAveragePool (a)  s = Squeeze (g)  m = MatMul (s, v)  y = Relu (m) }",
        start=np.array([0, 0]),
        end=np.array([8, 8]),
        axes=np.array([2, 3]),
        w=random.standard_normal((16, 3, 3, 3)).astype(np.float32),
        v=random.standard_normal((16, 5)).astype(np.float32),
    )
    assert infer(from_model(model)).dynamic["s"] == (True, False)
    onnx.save(model, tmp_path / "model.onnx")
    cut = to_model(surgeon.run(tmp_path / "model.onnx", passes=["prune{macs=0.6}"]).graph)
    assert next(each for each in cut.graph.initializer if each.name.startswith("v")).dims[0] < 16
