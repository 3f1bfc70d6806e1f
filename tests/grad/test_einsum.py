"""Derivatives of sums of products over named axes."""

from __future__ import annotations

import pytest
from grad.oracle import build, check

from surgeon.grad import gradient
from surgeon.graph.load import from_model


@pytest.mark.parametrize(
    ("equation", "shapes", "result"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)], "2,4"),
        ("ij,jk", [(2, 3), (3, 4)], "2,4"),
        ("kj, ji", [(2, 3), (3, 4)], "4,2"),
        ("bhqd,bhkd->bhqk", [(2, 2, 3, 4), (2, 2, 5, 4)], "2,2,3,5"),
        ("ij->ji", [(2, 3)], "3,2"),
        ("ij->i", [(2, 3)], "2"),
        ("ijk->k", [(2, 3, 4)], "4"),
        ("ij->", [(2, 3)], ""),
        ("i,j->ij", [(2,), (3,)], "2,3"),
        ("ij,k->i", [(2, 3), (4,)], "2"),
        ("...ij,jk->...ik", [(2, 2, 3, 4), (4, 5)], "2,2,3,5"),
        ("...ij,...jk->...ik", [(2, 3, 4), (2, 4, 5)], "2,3,5"),
        ("...i,...i", [(3, 4), (3, 4)], "3"),
        ("b...c,c->b...", [(2, 3, 5, 4), (4,)], "2,3,5"),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 2)], "2,2"),
        ("AbC,bC->Ab", [(2, 3, 4), (3, 4)], "2,3"),
    ],
)
def test_einsum(equation, shapes, result):
    names = "abc"[: len(shapes)]
    inputs = ", ".join(f"T[{','.join(map(str, s))}] {name}" for name, s in zip(names, shapes, strict=True))
    body = f'y = Einsum <equation="{equation}"> ({", ".join(names)})'
    check(inputs, f"T[{result}] y", body, dict(zip(names, shapes, strict=True)), reference=result != "")


def test_einsum_repeats_axes_of_size_one():
    body = 'y = Einsum <equation="bij,bjk->bik"> (a, b)'
    check("T[1,2,3] a, T[4,3,5] b", "T[4,2,5] y", body, {"a": (1, 2, 3), "b": (4, 3, 5)})
    body = 'y = Einsum <equation="bi,bi->b"> (a, b)'
    check("T[2,1] a, T[2,3] b", "T[2] y", body, {"a": (2, 1), "b": (2, 3)})


def test_einsum_with_dynamic_sizes():
    body = 'y = Einsum <equation="nlc,cd->nld"> (x, w)\nz = Einsum <equation="nlc->c"> (x)'
    check("T[N,L,3] x", "T[N,L,4] y, T[3] z", body, {"x": (2, 5, 3)}, {"w": (3, 4)})


def test_a_diagonal_is_told():
    body = 'd = Einsum <equation="ii->i"> (x)\ny = ReduceSum (d)'
    graph = from_model(build("float[3,3] x", "float[1,1] y", body))
    assert "diagonal" in gradient(graph, "y", ["x"]).stopped["x"]
