"""Work on tall matrices, products above all, block by block of their rows, on as many threads as a run has.

The linear algebra underneath runs on one thread (see `surgeon.job`): threads of its own wait for one another at every product, in
vain where other threads or processes want the processors as well. Here each block is a product of its own, and nobody waits but
for the last one. Blocks do not depend on the number of threads, and neither do results.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from numpy.typing import NDArray

    Array = NDArray[Any]

ROWS = 4096  # of a block
AHEAD = 16  # blocks at work or waiting to be taken, and so the most processors that have work
_POOL: ContextVar[ThreadPoolExecutor | None] = ContextVar("pool", default=None)


@contextmanager
def workers(threads: int) -> Iterator[None]:
    """Within, products run on so many threads; elsewhere on that of the caller."""
    if threads < 2:
        yield
        return
    with ThreadPoolExecutor(threads) as pool:
        token = _POOL.set(pool)
        try:
            yield
        finally:
            _POOL.reset(token)


def product(x: Array, weights: Array) -> Array:
    """``x @ weights``, of ``[..., rows, inputs]`` and ``[..., inputs, outputs]``."""
    shape = (*np.broadcast_shapes(x.shape[:-2], weights.shape[:-2]), x.shape[-2], weights.shape[-1])
    result = np.empty(shape, np.result_type(x, weights))

    def multiply(rows: slice) -> None:
        np.matmul(x[..., rows, :], weights, out=result[..., rows, :])

    for _ in _each(multiply, x.shape[-2]):
        pass
    return result


def moments(x: Array, y: Array) -> Array:
    """``xᵀ @ y`` in double precision, of ``[..., rows, inputs]`` and ``[..., rows, outputs]``; blocks are of the precision of both."""

    def multiply(rows: slice) -> Array:
        return np.asarray(np.swapaxes(x[..., rows, :], -1, -2) @ y[..., rows, :])

    parts = _each(multiply, x.shape[-2])
    total = np.asarray(next(parts), np.float64)
    for part in parts:
        total += part
    return total


def rowwise(function: Callable[..., Array], *arrays: Array) -> Array:
    """A function of arrays ``[..., rows, columns]`` whose rows do not depend on one another."""
    parts = _each(lambda rows: function(*(array[..., rows, :] for array in arrays)), arrays[0].shape[-2])
    return np.concatenate(list(parts), axis=-2)


def _each(work: Callable[[slice], Any], rows: int) -> Iterator[Any]:
    """What comes of every block, in order, few ahead of what is taken; there is one block even without rows."""
    blocks = [slice(start, start + ROWS) for start in range(0, max(rows, 1), ROWS)]
    pool = _POOL.get()
    if pool is None or len(blocks) == 1:
        yield from map(work, blocks)
        return
    waiting: deque[Future[Any]] = deque()
    for block in blocks:
        waiting.append(pool.submit(work, block))
        if len(waiting) > AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
