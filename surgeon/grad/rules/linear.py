"""Products of matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from surgeon.grad.registry import derivative

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surgeon.grad.step import Step
    from surgeon.grad.tape import Value

    Gradients: TypeAlias = Sequence[Value | None]


@derivative("MatMul", parameters=(0, 1))
def matmul(op: Step, a: Value, b: Value) -> Gradients:
    """Gradients are dA = dY Bᵀ and dB = Aᵀ dY; axes in front are broadcast, and vectors are matrices with an axis of size 1."""
    left, right = len(op.dims(0)), len(op.dims(1))
    dy = op.dy()
    if right == 1:
        dy, b = dy.unsqueeze(len(op.out_dims())), b.unsqueeze(1)
    if left == 1:
        row = len(op.out_dims()) - (right != 1)
        dy, a = dy.unsqueeze(row), a.unsqueeze(0)
    da = dy @ _turned(b, max(right, 2))
    if right == 2 and left > 2:  # one product instead of one a matrix that would have to be summed
        rows = [-1, op.size(0, left - 1)]
        db = a.reshape(rows).transpose(1, 0) @ dy.reshape([-1, op.out_size(-1)])
        return _fitted(op, da, 0), db
    return _fitted(op, da, 0), _fitted(op, _turned(a, max(left, 2)) @ dy, 1)


def _turned(value: Value, rank: int) -> Value:
    return value.transpose(*range(rank - 2), rank - 1, rank - 2)


def _fitted(op: Step, gradient: Value, index: int) -> Value:
    """Summed over axes in front that were broadcast, in the shape of input ``index``."""
    own, other = op.dims(index), op.dims(1 - index)
    front, whole = own[:-2], max(len(own), len(other), 2) - 2
    extra = whole - len(front)
    sizes = (1,) * (whole - len(other[:-2])) + other[:-2]
    repeated = [extra + k for k, size in enumerate(front) if size == 1 and sizes[extra + k] != 1]
    if len(own) == 1:
        gradient = gradient.sum(range(whole))
        return gradient.reshape([op.size(index, 0)])
    if repeated:
        gradient = gradient.sum(repeated, keepdims=True)
    return gradient.sum(range(extra)) if extra else gradient


@derivative("Gemm", parameters=(0, 1, 2))
def gemm(op: Step, a: Value, b: Value, c: Value | None = None) -> Gradients:
    """Y = α A' B' + β C, where A' and B' may be transposed."""
    alpha, beta = op.attribute("alpha"), op.attribute("beta")
    dy = op.dy() if alpha == 1 else op.dy() * float(alpha)
    turned_a, turned_b = bool(op.attribute("transA")), bool(op.attribute("transB"))

    def product(left: Value, right: Value, *, left_turned: bool, right_turned: bool) -> Value:
        nothing = [] if op.opset >= 11 else [op.tape.constant(np.zeros(1, left.dtype))]  # C was required
        return op.tape.op("Gemm", left, right, *nothing, transA=int(left_turned), transB=int(right_turned))

    if turned_a:
        da = product(b, dy, left_turned=turned_b, right_turned=True)
    else:
        da = product(dy, b, left_turned=False, right_turned=not turned_b)
    if turned_b:
        db = product(dy, a, left_turned=True, right_turned=turned_a)
    else:
        db = product(a, dy, left_turned=not turned_a, right_turned=False)
    if c is None:
        return da, db
    return da, db, op.unbroadcast(op.dy() if beta == 1 else op.dy() * float(beta), 2)
