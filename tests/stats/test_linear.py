"""Weighted operators as matrix products: rows times matrices is what onnxruntime computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from ops.oracle import build

from surgeon.analysis import Analysis, solve
from surgeon.graph.load import from_model
from surgeon.graph.weights import peek
from surgeon.stats.linear import Convolution, Product, linear_view


def analysed(model: onnx.ModelProto) -> Analysis:
    return solve(from_model(model))


def run(model: onnx.ModelProto, **feeds):
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, feeds
    )


def check(model: onnx.ModelProto, output: str | None = None, tensor: str = "w", **feeds) -> None:
    """The view of the operator that reads ``tensor`` computes its result, at all places and at some."""
    op = next(op for op in analysed(model).ops if any(t.name == tensor for t in op.node.inputs))
    view = linear_view(op)
    assert view is not None
    assert view.output == (output or op.node.outputs[0].name)
    if view.output not in [each.name for each in model.graph.output]:
        model.graph.output.add(name=view.output)
    names = [each.name for each in model.graph.output]
    y = run(model, **feeds)[names.index(view.output)]
    values = peek(op.node.inputs[1])
    matrices = view.matrices(op.node, values)
    np.testing.assert_array_equal(view.weights(matrices, values.shape), values)
    bias = next((peek(t) for t in op.node.inputs[2:]), np.zeros(1, np.float32))
    if view.output != op.node.outputs[0].name:
        bias = next(peek(t) for t in op.node.outputs[0].outputs[0].inputs if hasattr(t, "values"))
    groups, _, outputs = matrices.shape
    bias = np.broadcast_to(bias.reshape(-1), (groups * outputs,)).reshape(groups, 1, outputs)
    count = view.count(y.shape)
    some = np.sort(np.random.default_rng(0).choice(count, max(count // 3, 1), replace=False))
    x = feeds[op.node.inputs[0].name]
    for places in (np.arange(count), some):
        rows, results = view.rows(op.node, x, y.shape, places), view.results(y, places, groups)
        assert rows.shape == (groups, len(places), matrices.shape[1])
        assert results.shape == (groups, len(places), outputs)
        np.testing.assert_allclose(rows @ matrices + bias, results, rtol=1e-4, atol=1e-4)


def values(*shape: int):
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


CONVOLUTIONS = [
    ("", (7, 6, 3, 3), (11, 9)),
    ("strides=[2,3]", (7, 6, 3, 2), (11, 9)),
    ("dilations=[2,1]", (7, 6, 3, 3), (11, 9)),
    ("pads=[1,0,2,3]", (7, 6, 3, 3), (11, 9)),
    ("pads=[2,1,0,3], strides=[2,2], dilations=[2,3]", (7, 6, 3, 2), (11, 9)),
    ("pads=[1,1,1,1], strides=[3,3]", (7, 6, 2, 2), (11, 9)),
    *[
        (f'auto_pad="{mode}"{more}', (7, 6, *kernel), (11, 10))
        for mode in ("SAME_UPPER", "SAME_LOWER", "VALID")
        for more in ("", ", strides=[2,3]", ", strides=[3,2], dilations=[1,1]")
        for kernel in ((3, 3), (4, 2), (1, 5))
    ],
    ('auto_pad="SAME_UPPER", strides=[2,2]', (7, 6, 1, 1), (11, 10)),
    ("group=3", (9, 2, 3, 3), (8, 8)),
    ("group=6, pads=[1,1,1,1]", (6, 1, 3, 3), (8, 8)),
    ("group=6, strides=[2,2]", (12, 1, 3, 3), (8, 8)),
    ("strides=[2], dilations=[2], pads=[3,1]", (7, 6, 3), (15,)),
    ('auto_pad="SAME_LOWER", strides=[2], group=2', (8, 3, 4), (15,)),
    ("pads=[1,0,1,0,2,1], strides=[1,2,1]", (7, 6, 2, 3, 3), (5, 6, 7)),
    ('auto_pad="SAME_UPPER", strides=[2,1,2], group=2', (4, 3, 2, 3, 2), (5, 6, 7)),
]


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("attributes", "weight", "spatial"), CONVOLUTIONS)
def test_convolutions(attributes, weight, spatial, with_bias):
    x = ",".join(str(each) for each in (6, *spatial))
    y = ",".join([str(weight[0]), *(f"d{k}" for k in range(len(spatial)))])
    node = f"y = Conv <{attributes}> (x, w, b)" if attributes else "y = Conv (x, w, b)"
    weights = {"w": weight, "b": (weight[0],)}
    if not with_bias:
        node = node.replace(", b)", ")")
        del weights["b"]
    check(build(f"float[N,{x}] x", f"float[N,{y}] y", node, weights), x=values(3, 6, *spatial))


@pytest.mark.parametrize(
    ("attributes", "x", "w", "b"),
    [
        ("", (5, 4), (4, 3), (3,)),
        ("transB=1", (5, 4), (3, 4), (3,)),
        ("transA=1", (4, 5), (4, 3), (1, 3)),
        ("transA=1, transB=1", (4, 5), (3, 4), (1,)),
        ("transB=1", (5, 4), (3, 4), None),
    ],
)
def test_gemm(attributes, x, w, b):
    node = f"y = Gemm <{attributes}> (x, w{', b' if b else ''})".replace("<>", "")
    weights = {"w": w, **({"b": b} if b else {})}
    check(build(f"float[{x[0]},{x[1]}] x", "float[5,3] y", node, weights), x=values(*x))


@pytest.mark.parametrize("shape", [(5, 4), (2, 5, 4), (2, 3, 5, 4)])
@pytest.mark.parametrize("order", ["m, b", "b, m"])
def test_products_and_the_bias_behind_them(shape, order):
    dims = ",".join(str(each) for each in shape)
    out = ",".join(str(each) for each in (*shape[:-1], 3))
    weights = {"w": (4, 3), "b": (3,)}
    body = f"m = MatMul (x, w) y = Add ({order})"
    model = build(f"float[{dims}] x", f"float[{out}] y", body, weights)
    check(model, "y", x=values(*shape))
    view = linear_view(analysed(model).ops[0])
    assert view.bias == ("y", order.split(", ").index("b"))
    check(build(f"float[{dims}] x", f"float[{out}] y", "y = MatMul (x, w)", {"w": (4, 3)}), x=values(*shape))


def test_an_addition_that_is_no_bias_is_not_taken_for_one():
    model = build(
        "float[5,4] x, float[3] v", "float[5,3] y", "m = MatMul (x, w) y = Add (m, v)", {"w": (4, 3)}
    )
    view = linear_view(analysed(model).ops[0])
    assert isinstance(view, Product)
    assert (view.output, view.bias) == ("m", None)
    twice = "m = MatMul (x, w) y = Add (m, b) z = Relu (m)"
    model = build("float[5,4] x", "float[5,3] y, float[5,3] z", twice, {"w": (4, 3), "b": (3,)})
    assert linear_view(analysed(model).ops[0]).bias is None


@pytest.mark.parametrize(
    ("inputs", "node", "weights"),
    [
        ("float[5,4] x, float[4,3] v", "y = MatMul (x, v)", {}),
        ("float[4,3] x", "y = MatMul (w, x)", {"w": (5, 4)}),
        ("float[2,5,4] x", "y = MatMul (x, w)", {"w": (2, 4, 3)}),
        ("float[5,4] x", "y = Gemm <alpha=0.5> (x, w)", {"w": (4, 3)}),
        ("float[5,4] x", "y = Gemm <beta=0.5> (x, w, b)", {"w": (4, 3), "b": (3,)}),
        ("float[5,4] x", "y = Gemm (x, w, b)", {"w": (4, 3), "b": (5, 1)}),
        ("float[5,4] x", "y = Gemm (x, w, b)", {"w": (4, 3), "b": (5, 3)}),
        ("float[5,4] x, float[5,3] v", "y = Gemm (x, w, v)", {"w": (4, 3)}),
        ("float[2,6,5] x, float[7] v", "y = Conv (x, w, v)", {"w": (7, 6, 3)}),
        ("float[5,4] x", "y = Add (x, w)", {"w": (4,)}),
        ("double[5,4] x", "y = MatMul (x, w)", {"w": np.ones((4, 3))}),
    ],
)
def test_what_is_not_a_product_with_a_matrix_and_a_vector(inputs, node, weights):
    kind = "double" if "double" in inputs else "float"
    graph = analysed(build(inputs, f"{kind} y", node, weights))
    assert linear_view(graph.ops[0]) is None


def test_operators_in_bodies_have_no_view():
    body = """y = If (f) <then_branch = t () => (float[N,3] p) { p = MatMul (x, w) },
        else_branch = e () => (float[N,3] q) { q = MatMul (x, v) }>"""
    found = analysed(build("float[N,4] x, bool f", "float[N,3] y", body, {"w": (4, 3), "v": (4, 3)}))
    assert [op.node.op for op in found.ops] == ["MatMul", "MatMul", "If"]
    assert [linear_view(op) for op in found.ops] == [None] * 3


def test_views_are_of_the_operator_they_are_given():
    found = analysed(build("float[N,6,9] x", "float[N,7,7] y", "y = Conv (x, w)", {"w": (7, 6, 3)}))
    view = linear_view(found.ops[0])
    assert isinstance(view, Convolution)
    assert view.op is found.ops[0]
    assert view.bias == ("y", 2)
