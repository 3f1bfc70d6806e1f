"""Derivatives of matrix products."""

from __future__ import annotations

import pytest
from grad.oracle import check


@pytest.mark.parametrize(
    ("a", "b", "y"),
    [
        ((4, 3), (3, 5), "4,5"),
        ((2, 4, 3), (3, 5), "2,4,5"),
        ((2, 2, 4, 3), (3, 5), "2,2,4,5"),
        ((2, 4, 3), (2, 3, 5), "2,4,5"),
        ((1, 4, 3), (2, 3, 5), "2,4,5"),
        ((4, 3), (2, 3, 5), "2,4,5"),
        ((2, 1, 4, 3), (6, 3, 5), "2,6,4,5"),
        ((3,), (3, 5), "5"),
        ((4, 3), (3,), "4"),
        ((3,), (3,), ""),
        ((3,), (2, 3, 5), "2,5"),
        ((2, 4, 3), (3,), "2,4"),
        ((6, 1, 4, 3), (2, 3, 5), "6,2,4,5"),
    ],
)
def test_matmul(a, b, y):
    left, right = (",".join(map(str, shape)) for shape in (a, b))
    check(f"T[{left}] a, T[{right}] b", f"T[{y}] y", "y = MatMul (a, b)", {"a": a, "b": b})


def test_matmul_with_dynamic_sizes():
    check("T[N,L,3] a", "T[N,L,5] y", "y = MatMul (a, w)", {"a": (2, 4, 3)}, {"w": (3, 5)})
    check("T[N,L,3] a, T[N,3,K] b", "T[N,L,K] y", "y = MatMul (a, b)", {"a": (2, 4, 3), "b": (2, 3, 6)})


@pytest.mark.parametrize("turned_a", [0, 1])
@pytest.mark.parametrize("turned_b", [0, 1])
@pytest.mark.parametrize("bias", [(), (5,), (4, 1), (1, 5), (4, 5)])
def test_gemm(turned_a, turned_b, bias):
    a, b = ((3, 4) if turned_a else (4, 3)), ((5, 3) if turned_b else (3, 5))
    body = f"y = Gemm <alpha=0.5, beta=2.0, transA={turned_a}, transB={turned_b}> (a, b, c)"
    check(f"T[{a[0]},{a[1]}] a", "T[4,5] y", body, {"a": a}, {"b": b, "c": bias})


@pytest.mark.parametrize("opset", [7, 9, 11])
def test_gemm_of_older_opsets(opset):
    body = "y = Gemm <alpha=0.5, transB=1> (a, b, c)"
    check("T[4,3] a", "T[4,5] y", body, {"a": (4, 3)}, {"b": (5, 3), "c": (5,)}, opset=opset)


def test_gemm_without_bias():
    check("T[N,3] a", "T[N,5] y", "y = Gemm (a, b)", {"a": (4, 3)}, {"b": (3, 5)})


@pytest.mark.parametrize("opset", [8, 9, 11, 13])
def test_gemm_of_old(opset):
    body = "y = Gemm <transB=1> (a, b, c)"
    check("T[N,3] a", "T[N,5] y", body, {"a": (4, 3)}, {"b": (5, 3), "c": (5,)}, opset=opset)
