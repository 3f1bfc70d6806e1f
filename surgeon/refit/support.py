"""The best weights among those that are zero in given places.

Each output has places of its own, so that normal equations would have to be solved once for each. Conjugate gradients
solve them for all outputs at once, with nothing but products with the whole matrix, and are exact after as many steps as
there are weights; far fewer are enough.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]
    Flags = NDArray[np.bool_]

STEPS = 200
ENOUGH = 1e-6  # of the first residual


def on_support(
    ideal: Matrix, hessian: Matrix, support: Flags, start: Matrix, steps: int = STEPS, enough: float = ENOUGH
) -> Matrix:
    """The weights nearest to ``ideal``, as ``hessian`` measures it, that are zero outside of ``support``.

    Args:
        ideal: ``[groups, rows, outputs]``.
        hessian: ``[groups, rows, rows]``, positive definite.
        support: Where weights may differ from zero, of the shape of ``ideal``.
        start: Where the search starts, of the same shape.
        steps: The most steps.
        enough: The share of the first residual, as the preconditioner measures it, that may be left.
    """
    return solved_on(hessian @ ideal, hessian, support, start, steps, enough)


def solved_on(
    right: Matrix, hessian: Matrix, support: Flags, start: Matrix, steps: int = STEPS, enough: float = ENOUGH
) -> Matrix:
    """The weights that are zero outside of ``support``, and inside solve ``hessian @ weights = right``.

    Hestenes and Stiefel, https://doi.org/10.6028/jres.049.044, preconditioned with the diagonal.

    Args:
        right: ``[groups, rows, outputs]``.
        hessian: ``[groups, rows, rows]``, positive definite.
        support: Where weights may differ from zero, of the shape of ``right``.
        start: Where the search starts, of the same shape.
        steps: The most steps.
        enough: The share of the first residual, as the preconditioner measures it, that may be left.
    """
    scale = 1 / np.diagonal(hessian, axis1=1, axis2=2)[:, :, None]
    found = np.where(support, start, 0.0)
    wanted = np.where(support, right, 0.0)
    residual = np.where(support, wanted - hessian @ found, 0.0)
    direction = scale * residual
    size = _product(residual, direction)
    least = enough**2 * np.maximum(_product(wanted, scale * wanted), np.finfo(np.float64).tiny)
    for _ in range(steps):
        if (size <= least).all():
            break
        moved = np.where(support, hessian @ direction, 0.0)
        length = _quotient(size, _product(direction, moved))
        found += length * direction
        residual -= length * moved
        scaled = scale * residual
        following = _product(residual, scaled)
        direction = scaled + _quotient(following, size) * direction
        size = following
    return found


def with_bias(support: Flags) -> Flags:
    """The support with the bias as last row, which is free."""
    return np.concatenate([support, np.ones_like(support[:, :1])], axis=1)


def _product(first: Matrix, second: Matrix) -> Matrix:
    """The inner products of columns: ``[groups, 1, outputs]``."""
    return np.asarray(np.einsum("gij,gij->gj", first, second)[:, None])


def _quotient(above: Matrix, below: Matrix) -> Matrix:
    """Zero where nothing is left to divide by: that column has arrived."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
