"""The best weights among those that are zero in given places.

Each output has places of its own, so that normal equations have to be solved once for each. Where few weights stay these
are small, and solving them is least work. Where many stay, conjugate gradients solve them for all outputs at once, with
nothing but products with the whole matrix; they are exact after as many steps as there are weights, and far fewer are
enough.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[Any]  # in single precision where that is enough
    Flags = NDArray[np.bool_]

STEPS = 200
ENOUGH = 1e-6  # of the first residual
USUAL = 30  # steps until that is left
OVERHEAD = 1e5  # of solving one system, in multiplications
GATHERED = 10  # multiplications in the time that it takes to pick one number of the matrix


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

    Args:
        right: ``[groups, rows, outputs]``.
        hessian: ``[groups, rows, rows]``, positive definite.
        support: Where weights may differ from zero, of the shape of ``right``.
        start: Where the search starts, of the same shape.
        steps: The most steps.
        enough: The share of the first residual, as the preconditioner measures it, that may be left.
    """
    if _is_small(support, min(steps, USUAL)):
        found = _one_by_one(right, hessian, support)
        if found is not None:
            return found
    return _together(right, hessian, support, start, steps, enough)


def _is_small(support: Flags, steps: int) -> bool:
    """Whether it is less work to solve the equations of each output than to make so many products with the whole matrix."""
    rows = support.shape[1]
    stay = support.sum(axis=1, dtype=np.float64)
    alone = stay**3 * 2 / 3 + GATHERED * stay**2 + OVERHEAD
    return bool(alone.sum() < steps * stay.size * (2.0 * rows**2 + GATHERED * rows))


def _one_by_one(right: Matrix, hessian: Matrix, support: Flags) -> Matrix | None:
    """By Cholesky's decomposition; None where rounding has left some matrix not positive definite."""
    from scipy.linalg import get_lapack_funcs

    (solve,) = get_lapack_funcs(("posv",), (hessian, right))
    found = np.zeros_like(right)
    for group, matrix in enumerate(hessian):
        for output in range(right.shape[2]):
            stay = np.flatnonzero(support[group, :, output])
            if not len(stay):
                continue
            part = matrix[np.ix_(stay, stay)].T  # the same, in the order that LAPACK wants
            _, solved, failed = solve(part, right[group, stay, output], lower=1, overwrite_a=1)
            if failed or not np.isfinite(solved).all():
                return None
            found[group, stay, output] = solved
    return found


def _together(
    right: Matrix, hessian: Matrix, support: Flags, start: Matrix, steps: int, enough: float
) -> Matrix:
    """Hestenes and Stiefel, https://doi.org/10.6028/jres.049.044, preconditioned with the diagonal."""
    scale = 1 / np.diagonal(hessian, axis1=1, axis2=2)[:, :, None]
    found = np.where(support, start, 0.0)
    wanted = np.where(support, right, 0.0)
    residual = np.where(support, wanted - hessian @ found, 0.0)
    direction = scale * residual
    size = _product(residual, direction)
    least = enough**2 * np.maximum(_product(wanted, scale * wanted), np.finfo(right.dtype).tiny)
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
