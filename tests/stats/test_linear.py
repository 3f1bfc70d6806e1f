"""Which operators are matrix products, and which rows of their matrices belong to which channel."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build, features, images
from stats.products import analysed, tensors, values

from surgeon.axes import atoms_of
from surgeon.graph.weights import peek
from surgeon.stats.convolution import Convolution, TransposedConvolution
from surgeon.stats.former import linear_view
from surgeon.stats.linear import contracted_coordinates, linear_views


def test_operators_in_bodies_have_no_view():
    body = """y = If (f) <then_branch = t () => (float[N,3] p) { p = MatMul (x, w) },
        else_branch = e () => (float[N,3] q) { q = MatMul (x, v) }>"""
    found = analysed(build("float[N,4] x, bool f", "float[N,3] y", body, {"w": (4, 3), "v": (4, 3)}))
    assert [op.node.op for op in found.ops] == ["MatMul", "MatMul", "If"]
    assert [linear_views(op) for op in found.ops] == [[]] * 3


def test_operators_of_other_domains_have_no_view():
    body = "y = com.example.MatMul (x, w)"
    found = analysed(build("float[N,4] x", "float[N,3] y", body, {"w": (4, 3)}, domains={"com.example": 1}))
    assert linear_views(found.ops[0]) == []


@pytest.mark.parametrize(("node", "kind"), [("Conv", Convolution), ("ConvTranspose", TransposedConvolution)])
def test_views_are_of_the_operator_they_are_given(node, kind):
    found = analysed(build("float[N,6,9] x", "float[N,6,d] y", f"y = {node} (x, w)", {"w": (6, 6, 3)}))
    (view,) = linear_views(found.ops[0])
    assert type(view) is kind
    assert view.op is found.ops[0]
    assert (view.reads, view.target_reads) == (("x",), ("y",))


ROWS = [
    ("MatMul", features("b = MatMul (a, w)", 5, {"w": (12, 5)}), np.arange(12)[None]),
    ("Conv", images("b = Conv (a, w)", 5, {"w": (5, 12, 2, 1)}), np.repeat(np.arange(12), 2)[None]),
    ("ConvTranspose", images("b = ConvTranspose (a, w)", 5, {"w": (12, 5, 1, 2)}), np.repeat(np.arange(12), 2)[None]),
    (
        "Conv",
        images("b = Conv <group=3> (a, w)", 6, {"w": (6, 4, 2, 1)}),
        np.tile(np.repeat(np.arange(4), 2), (3, 1)),
    ),
    (
        "ConvTranspose",
        images("b = ConvTranspose <group=3> (a, w)", 6, {"w": (12, 2, 3, 1)}),
        np.tile(np.repeat(np.arange(4), 3), (3, 1)),
    ),
    (
        "MatMul",
        features("t = Transpose <perm=[0,2,1]> (a) u = MatMul (w, t) b = Transpose <perm=[0,2,1]> (u)", 5, {"w": (5, 12)}),
        np.arange(12)[None],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "model", "expected"), ROWS)
def test_rows_that_belong_to_a_channel(kind, model, expected):
    found = analysed(model)
    middle = [op for op in found.ops if op.node.op == kind]
    op = middle[1] if kind in ("Conv", "MatMul") else middle[0]
    (view,) = linear_views(op)
    axis = found.axes["a"][1 if "Conv" in kind else 2]
    atoms = [atom for atom in atoms_of(axis) if contracted_coordinates(view, atom) is not None]
    rows = {atom.size: contracted_coordinates(view, atom) for atom in atoms}
    size = expected.max() + 1
    np.testing.assert_array_equal(rows[size], expected)
    if kind == "ConvTranspose" and len(expected) > 1:  # a whole group of channels is a group of the product
        assert (rows[3] == np.arange(3)[:, None]).all()


@pytest.mark.parametrize(
    ("x", "body", "weights"),
    [
        ((3, 6, 9), "y = Conv <strides=[2], group=2, pads=[1,2]> (x, w, b)", {"w": (8, 3, 3), "b": (8,)}),
        ((5, 4), "y = Gemm <transB=1> (x, w, b)", {"w": (3, 4), "b": (3,)}),
        ((2, 5, 4), "m = MatMul (x, w) y = Add (b, m)", {"w": (4, 3), "b": (3,)}),
    ],
)
def test_the_former_interface(x, body, weights):
    dims = ",".join(map(str, x))
    model = build(f"float[{dims}] x", "float[a,d" + ",e" * (len(x) - 2) + "] y", body, weights)
    found, data = analysed(model), values(*x)
    view = linear_view(found.ops[0])
    y = tensors(model, x=data)["y"]
    assert view.output == "y"
    assert view.bias == ("y", 0 if "Add" in body else 2)
    node, weight = view.op.node, peek(view.op.node.inputs[1])
    matrices, places = view.matrices(node, weight), np.arange(view.count(y.shape))
    np.testing.assert_array_equal(view.weights(matrices, weight.shape), weight)
    bias = next(peek(t) for op in found.ops for t in op.node.inputs if t.name == "b")
    product = view.rows(node, data, y.shape, places) @ matrices + bias.reshape(len(matrices), 1, -1)
    np.testing.assert_allclose(product, view.results(y, places, len(matrices)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("inputs", "node", "weights"),
    [
        ("float[4,3] x", "y = MatMul (w, x)", {"w": (5, 4)}),
        ("float[2,5,4] x", "y = MatMul (x, w)", {"w": (2, 4, 3)}),
        ("float[5,4] x", "y = Gemm <alpha=0.5> (x, w)", {"w": (4, 3)}),
        ("float[5,4] x", "y = Gemm <beta=0.5> (x, w, b)", {"w": (4, 3), "b": (3,)}),
        ("float[2,6,5] x", "y = ConvTranspose (x, w)", {"w": (6, 6, 3)}),
        ("double[5,4] x", "y = MatMul (x, w)", {"w": np.ones((4, 3))}),
        ("float[2,5,4] x", "y = RNN <hidden_size=3> (x, w, r)", {"w": (1, 3, 4), "r": (1, 3, 3)}),
    ],
)
def test_what_the_former_interface_does_not_see(inputs, node, weights):
    kind = "double" if "double" in inputs else "float"
    op = analysed(build(inputs, f"{kind} y", node, weights)).ops[0]
    assert linear_views(op) != []
    assert linear_view(op) is None
