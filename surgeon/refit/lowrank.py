"""Weights of a product as the product of two factors with a few channels between them, near in what they compute.

Inputs of a product are numbered; an arrangement puts them into rows and columns. With all of them in one column the first
factor sees every input and the second only mixes channels. With the taps of a convolution in the columns, all or those
along some axes, the second factor has these taps. In either case the weights, turned into a matrix of rows against
columns times outputs, have the rank of what is between.

For inputs with second moments G the error of weights W' is ``tr (W - W')ᵀ G (W - W')``. With one column the best W' is a
truncated singular value decomposition of ``G^½ W`` (Eckart and Young, 1936), as in the response reconstruction of Zhang et
al., "Accelerating Very Deep Convolutional Networks" (2015). With more there is no closed form: the first factor comes from
the decomposition with the moments of the rows alone, and the second is the best one for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]
    Integers = NDArray[np.int64]

STEPS = 8  # conjugate gradients for the first factor, where there is no closed form
ROUNDS = 3
TINY = 1e-12
ROUNDING = 1e-9  # of the trace: keeps a sum of squares positive definite


@dataclass(frozen=True)
class Curve:
    """What is left out at every rank.

    Attributes:
        errors: ``[ranks + 1]``, the squared error from rank 0 on.
        total: What the outputs vary.
    """

    errors: Matrix
    total: float


def curve(weights: Matrix, moments: Matrix, order: Integers, most: int) -> Curve:
    """The error of the best factors that are found, rank by rank.

    Args:
        weights: ``[inputs, outputs]``.
        moments: Of the inputs, positive definite, around their mean where a bias makes up for it.
        order: ``[rows, columns]``, the number of each input.
        most: The largest rank that is asked for.
    """
    total = float(np.einsum("io,ij,jo->", weights, moments, weights, optimize=True))
    first = first_factor(weights, moments, order, most)
    if not first.shape[1]:
        return Curve(np.array([total]), total)
    gram, right = _seen_through(first, weights, moments, order)
    explained = np.square(np.linalg.solve(root_of(gram), right)).sum(axis=1)
    each = explained.reshape(first.shape[1], -1).sum(axis=1)
    left = np.maximum(total - np.concatenate([[0.0], np.cumsum(each)]), 0.0)
    return Curve(left, total)


def nearest(weights: Matrix, moments: Matrix, order: Integers, rank: int) -> Matrix:
    """Weights of a rank near to given ones, of the same shape; arguments as for `curve`."""
    first = first_factor(weights, moments, order, rank)
    if not first.shape[1]:
        return np.zeros_like(weights)
    second = _second_factor(first, weights, moments, order)
    if order.shape[1] > 1:
        for _ in range(ROUNDS):
            first = _improved(first, second, weights, moments, order)
            second = _second_factor(first, weights, moments, order)
    return _joined(first, second, order, weights.shape[1])


def factors(weights: Matrix, order: Integers, rank: int) -> tuple[Matrix, Matrix]:
    """Two factors of weights that have a rank already: ``[rows, rank]`` and ``[rank, columns, outputs]``.

    Channels in between have the same length on either side.
    """
    matrix = weights[order.ravel()].reshape(len(order), -1)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    scale = np.sqrt(values[:rank])
    return left[:, :rank] * scale, (scale[:, None] * right[:rank]).reshape(rank, order.shape[1], -1)


def centred(moments: Matrix) -> Matrix:
    """Moments of inputs whose last is the constant of a bias, once the bias is at its best."""
    last = moments[-1, -1]
    return np.asarray(moments[:-1, :-1] - np.outer(moments[:-1, -1], moments[-1, :-1]) / max(last, TINY))


def definite(moments: Matrix) -> Matrix:
    """The same, safely positive definite."""
    return np.asarray(moments + max(ROUNDING * np.trace(moments), TINY) * np.eye(len(moments)))


def root_of(moments: Matrix) -> Matrix:
    """The Cholesky factor; of sums of squares that rounding has made indefinite with as much on the diagonal as it takes."""
    if not np.isfinite(moments).all():
        raise ValueError("moments are not finite")
    share = ROUNDING
    while True:
        try:
            return np.asarray(np.linalg.cholesky(moments))
        except np.linalg.LinAlgError:
            moments = moments + max(share * np.trace(np.abs(moments)), TINY) * np.eye(len(moments))
            share *= 10


@dataclass(frozen=True)
class LowRank:
    """Weights that are the product of two factors, as a constraint; see `surgeon.refit.constrained`.

    Attributes:
        order: ``[rows, columns]``, the number of each input.
        rank: Channels between the factors.
    """

    order: Integers
    rank: int

    @property
    def together(self) -> bool:
        """Each group may be taken alone."""
        return False

    def __call__(self, ideal: Matrix, hessian: Matrix) -> Matrix:
        """The nearest ones found; the bias follows from the weights."""
        result = ideal.copy()
        for k, (weights, moments) in enumerate(zip(ideal, hessian, strict=True)):
            result[k, :-1] = nearest(weights[:-1], definite(centred(moments)), self.order, self.rank)
            shift = moments[-1, :-1] @ (weights[:-1] - result[k, :-1])
            result[k, -1] = weights[-1] + shift / max(moments[-1, -1], TINY)
        return result


def first_factor(weights: Matrix, moments: Matrix, order: Integers, most: int) -> Matrix:
    """``[rows, rank]``: of a number of columns the leading ones are the first factor of a smaller rank.

    The rank is ``most``, or less where the weights have no more.
    """
    matrix = weights[order.ravel()].reshape(len(order), -1)
    root = root_of(_of_rows(moments, order))
    left, values, _ = np.linalg.svd(root.T @ matrix, full_matrices=False)
    rank = min(most, int((values > values[:1].sum() * 1e-7).sum()))
    return np.asarray(np.linalg.solve(root.T, left[:, :rank]))


def _of_rows(moments: Matrix, order: Integers) -> Matrix:
    """Moments of the rows, all columns added up."""
    return np.asarray(sum(moments[np.ix_(column, column)] for column in order.T))


def _seen_through(first: Matrix, weights: Matrix, moments: Matrix, order: Integers) -> tuple[Matrix, Matrix]:
    """Moments of what the second factor reads, channels slowest, and of these with the outputs."""
    rows, columns = order.shape
    flat = order.ravel()
    many = first.shape[1] * columns
    split = moments[flat].reshape(rows, columns, -1)
    half = np.tensordot(first.T, split, 1).reshape(many, -1)  # [channel and column, inputs]
    both = np.tensordot(first.T, half.T[flat].reshape(rows, columns, -1), 1).reshape(many, many)
    return definite((both + both.T) / 2), half @ weights


def _second_factor(first: Matrix, weights: Matrix, moments: Matrix, order: Integers) -> Matrix:
    """``[rank, columns, outputs]``, the best one for a first factor."""
    gram, right = _seen_through(first, weights, moments, order)
    return np.asarray(np.linalg.solve(gram, right)).reshape(first.shape[1], order.shape[1], -1)


def _joined(first: Matrix, second: Matrix, order: Integers, outputs: int) -> Matrix:
    result = np.empty((order.size, outputs))
    result[order.ravel()] = np.tensordot(first, second, 1).reshape(order.size, outputs)
    return result


def _improved(first: Matrix, second: Matrix, weights: Matrix, moments: Matrix, order: Integers) -> Matrix:
    """A better first factor for a second one, by preconditioned conjugate gradients."""
    columns = second.shape[1]
    inner = np.einsum("rso,qso->rq", second, second)
    inner += TINY * max(np.trace(inner), TINY) * np.eye(len(inner))

    def pulled(change: Matrix) -> Matrix:
        """What a change of the outputs' weights is to the first factor."""
        moved = (moments @ change)[order.ravel()].reshape(len(order), columns, -1)
        return np.asarray(np.einsum("iso,rso->ir", moved, second, optimize=True))

    rows = _of_rows(moments, order) / columns

    def preconditioned(gradient: Matrix) -> Matrix:
        return np.asarray(np.linalg.solve(rows, np.linalg.solve(inner, gradient.T).T))

    outputs = weights.shape[1]
    residual = pulled(weights - _joined(first, second, order, outputs))
    towards = preconditioned(residual)
    direction, energy = towards, float((residual * towards).sum())
    for _ in range(STEPS):
        if not energy > 0:
            break
        seen = pulled(_joined(direction, second, order, outputs))
        curvature = float((direction * seen).sum())
        if not curvature > 0:
            break
        first = first + energy / curvature * direction
        residual = residual - energy / curvature * seen
        towards = preconditioned(residual)
        before, energy = energy, float((residual * towards).sum())
        direction = towards + energy / before * direction
    return first


def gram_of(x: NDArray[Any], *, around_mean: bool = False) -> Matrix:
    """``[inputs, inputs]`` of rows ``[places, inputs]``, per place; the mean is taken off first, which keeps digits."""
    moved = x - x.mean(axis=0, keepdims=True) if around_mean and len(x) else x
    return np.asarray((moved.T @ moved).astype(np.float64) / max(len(x), 1))
