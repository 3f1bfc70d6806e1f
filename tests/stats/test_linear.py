"""Which operators are matrix products, and which rows of their matrices belong to which channel."""

from __future__ import annotations

import numpy as np
import pytest
from ops.oracle import build, features, images
from stats.products import analysed

from surgeon.axes import atoms_of
from surgeon.stats.convolution import Convolution, TransposedConvolution
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
