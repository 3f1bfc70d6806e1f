"""Weights rounded onto their grids with second-order error feedback.

What one weight loses by being rounded, those that are not rounded yet make up for as far as their inputs go together:
Frantar et al., arXiv 2210.17323, in the form with the Cholesky factor of the inverse of ``G = Σ x xᵀ``. Then weights are
visited again, one at a time, and each takes the integer that is best with all others as they are, which never makes the
error larger.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from surgeon.refit.definite import inverses

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from surgeon.stats.grid import Grid
    from surgeon.stats.linear import Linear

    Matrix = NDArray[np.float64]

BLOCK = 128  # rows whose errors are fed on to the rest at once


@dataclass(frozen=True)
class Rounded:
    """The constraint that weights are on their grids; see `surgeon.refit.constrained.Constraint`.

    Attributes:
        scale: ``[groups, inputs, outputs]``.
        zero: The zero points, of the same shape.
        least: The smallest integer.
        most: The largest integer.
        ordered: Whether the inputs with the largest mean square come first, whose errors then have most to be made
            up by.
        sweeps: How often all weights are visited again.
    """

    scale: Matrix
    zero: Matrix
    least: int
    most: int
    ordered: bool = True
    sweeps: int = 2

    @staticmethod
    def of(view: Linear, node: Any, grid: Grid, *, ordered: bool = True, sweeps: int = 2) -> Rounded:
        """The grid of a product's weight.

        Args:
            view: The product.
            node: The node whose weight it is.
            grid: Of the weight.
            ordered: See above.
            sweeps: See above.
        """
        scale, zero = (view.matrices(node, np.asarray(each, np.float64)) for each in (grid.scale, grid.zero))
        return Rounded(
            np.where(scale == 0, 1.0, scale), zero, grid.least, grid.most, ordered=ordered, sweeps=sweeps
        )

    @property
    def together(self) -> bool:
        """Each group may be taken alone."""
        return False

    def nearest(self, weights: Matrix, rows: Any = slice(None)) -> Matrix:
        """The numbers of the grid nearest to some rows of the weights, ``[groups, rows, outputs]``."""
        scale, zero = self.scale[:, rows], self.zero[:, rows]
        steps = np.clip(np.rint(weights / scale) + zero, self.least, self.most)
        return np.asarray((steps - zero) * scale)

    def arranged(self, order: NDArray[np.int64]) -> Rounded:
        """The grid of rows in another order, ``[groups, rows]``."""
        rows = order[:, :, None]
        scale, zero = (np.take_along_axis(each, rows, axis=1) for each in (self.scale, self.zero))
        return replace(self, scale=scale, zero=zero)

    def __call__(self, ideal: Matrix, hessian: Matrix) -> Matrix:
        """The rounded weights whose distance from ``ideal``, as ``hessian`` measures it, is small.

        It is never larger than that of the nearest ones.

        Args:
            ideal: ``[groups, inputs + 1, outputs]``, the bias last, which is not rounded.
            hessian: ``[groups, inputs + 1, inputs + 1]``, positive definite.
        """
        return near(self, ideal, hessian, ordered=self.ordered, sweeps=self.sweeps)


class Allowed(Protocol):
    """Numbers that weights may be, place by place."""

    def nearest(self, weights: Matrix, rows: Any = slice(None)) -> Matrix:
        """The allowed numbers nearest to some rows of the weights, ``[groups, rows, outputs]``."""

    def arranged(self, order: NDArray[np.int64]) -> Allowed:
        """The same for rows in another order, ``[groups, rows]``."""


def near(allowed: Allowed, ideal: Matrix, hessian: Matrix, *, ordered: bool, sweeps: int) -> Matrix:
    """Allowed weights near to ``ideal``: never farther than the nearest ones, as ``hessian`` measures it.

    Args:
        allowed: What weights may be; the bias, which is the last row, may be anything.
        ideal: ``[groups, inputs + 1, outputs]``.
        hessian: ``[groups, inputs + 1, inputs + 1]``, positive definite.
        ordered: Whether the inputs with the largest mean square come first.
        sweeps: How often all weights are visited again.
    """
    plain = np.concatenate([allowed.nearest(ideal[:, :-1]), ideal[:, -1:]], axis=1)
    found = fed_back(allowed, ideal, hessian, ordered=ordered)
    better = distance(found, ideal, hessian) < distance(plain, ideal, hessian)
    found = np.where(better[:, None], found, plain)
    for _ in range(sweeps):
        found = visited(allowed, found, ideal, hessian)
    return found


def fed_back(allowed: Allowed, ideal: Matrix, hessian: Matrix, *, ordered: bool = True) -> Matrix:
    """Allowed weights, one row after the other, each row's errors fed on to those that come.

    Args:
        allowed: What weights may be; the bias, which is the last row, may be anything.
        ideal: ``[groups, inputs + 1, outputs]``.
        hessian: ``[groups, inputs + 1, inputs + 1]``, positive definite.
        ordered: Whether the inputs with the largest mean square come first, whose errors then have most to be made up by.
    """
    groups, rows, _ = ideal.shape
    order = np.broadcast_to(np.arange(rows), (groups, rows)).copy()
    if ordered:
        largest = -np.diagonal(hessian, axis1=1, axis2=2)[:, :-1]
        order[:, :-1] = np.argsort(largest, axis=1, kind="stable")
    turned = np.take_along_axis(hessian, order[:, :, None], axis=1)
    turned = np.take_along_axis(turned, order[:, None, :], axis=2)
    upper = np.linalg.cholesky(inverses(turned)).swapaxes(1, 2)
    left = np.take_along_axis(ideal, order[:, :, None], axis=1)
    arranged = allowed.arranged(order[:, :-1])
    for start in range(0, rows - 1, BLOCK):
        end = min(start + BLOCK, rows - 1)
        errors = np.zeros((groups, end - start, ideal.shape[2]))
        for k in range(start, end):
            chosen = arranged.nearest(left[:, k : k + 1], slice(k, k + 1))
            error = (left[:, k : k + 1] - chosen) / upper[:, k, k][:, None, None]
            left[:, k + 1 : end] -= upper[:, k, k + 1 : end, None] * error
            left[:, k : k + 1] = chosen
            errors[:, k - start] = error[:, 0]
        left[:, end:] -= upper[:, start:end, end:].swapaxes(1, 2) @ errors
    result = np.empty_like(left)
    np.put_along_axis(result, order[:, :, None], left, axis=1)
    return result


def visited(allowed: Allowed, start: Matrix, ideal: Matrix, hessian: Matrix) -> Matrix:
    """One round of coordinate descent, the bias included: each weight takes the best with all others as they are."""
    found, rows = start.copy(), ideal.shape[1]
    slope = hessian @ (found - ideal)
    for begin in range(0, rows, BLOCK):
        end = min(begin + BLOCK, rows)
        before = found[:, begin:end].copy()
        inside = slope[:, begin:end].copy()
        for k in range(begin, end):
            curvature = hessian[:, k, k][:, None, None]
            best = found[:, k : k + 1] - inside[:, k - begin : k - begin + 1] / curvature
            if k < rows - 1:
                best = allowed.nearest(best, slice(k, k + 1))
            change = best - found[:, k : k + 1]
            found[:, k : k + 1] = best
            inside += hessian[:, begin:end, k, None] * change
        slope += hessian[:, :, begin:end] @ (found[:, begin:end] - before)
    return found


def distance(weights: Matrix, ideal: Matrix, hessian: Matrix) -> Matrix:
    """``(w - v)ᵀ H (w - v)`` for each column: ``[groups, outputs]``."""
    difference = weights - ideal
    return np.asarray(np.einsum("gij,gij->gj", difference, hessian @ difference))
