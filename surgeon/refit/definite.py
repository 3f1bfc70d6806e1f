"""Inverses of positive definite matrices, by Cholesky's decomposition: a fraction of the work of one that knows nothing of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.stats.weight import weight_values

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from surgeon.stats.linear import Linear

    Floats = NDArray[Any]

SMALL = 24  # rows up to which all of a stack together take less time than a call for each


MOST_INPUTS = 10_000  # of a product whose moments are inverted: a minute, and some copies of 0.8 GB


def has_inverse(view: Linear, node: gs.Node) -> bool:
    """Whether a product's inputs are few enough for their second moments to be inverted."""
    matrices = view.matrices(node, weight_values(node.inputs[view.weight]))
    return bool(matrices.shape[1] < MOST_INPUTS)


def inverses(matrices: Floats) -> Floats:
    """The inverses of symmetric matrices ``[n, rows, rows]``, in their own precision, single or double.

    Raises:
        LinAlgError: A matrix is singular.
    """
    if matrices.shape[1] <= SMALL:
        return np.linalg.inv(matrices)
    return np.stack([_inverse(each) for each in matrices])


def _inverse(matrix: Floats) -> Floats:
    from scipy.linalg import get_lapack_funcs

    factorize, invert = get_lapack_funcs(("potrf", "potri"), (matrix,))
    # what is turned is in the order that LAPACK wants, and is the same matrix
    factor, failed = factorize(matrix.T, lower=1, clean=1)
    found, failed = (factor, failed) if failed else invert(factor, lower=1, overwrite_c=1)
    if failed:  # rounding has left it not positive definite
        return np.linalg.inv(matrix)
    whole = np.asarray(found + found.T)  # above the diagonal there is nothing
    np.fill_diagonal(whole, np.diagonal(found))
    return whole
