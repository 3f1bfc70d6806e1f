"""Whether a graph keeps samples apart along the first axis: tried out, for shapes do not tell batch from time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.errors import DataError, UnsupportedModelError
from surgeon.graph.copy import copy_of
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

    from surgeon.grad.samples import Samples

    Array = NDArray[Any]

CLOSE = 1e-3  # of the largest value: products of other sizes may add up in another order


def rows_are_apart(
    graph: gs.Graph, samples: Samples, threads: int = 1, judged: Collection[str] | None = None
) -> bool:
    """Whether rows of one or two batches, mixed, give what each gave in its own batch.

    A recurrent operator along the first axis, statistics over a batch and sizes that are written into the graph all
    show here; batches of one can be put together where nothing in the graph minds.

    Args:
        graph: What is computed. It is not changed.
        samples: Of all of the graph's inputs.
        threads: Threads for onnxruntime.
        judged: Names of tensors that are looked at, and along each of their axes, since samples may be further in there; what the
            graph puts out then only has to be computed. By default its outputs, along the first.
    """
    filled = [batch for batch, size in enumerate(samples.sizes) if size]
    if not samples.rows or len(samples) < 2:
        return False
    batches = sorted({filled[0], filled[-1]})
    ends = [(batch, row) for batch in batches for row in sorted({0, samples.sizes[batch] - 1})]
    try:
        work = for_any_shape(graph, {name: samples.get(name, 0) for name in samples.names})
        if judged is not None:
            tensors = work.tensors()
            work.outputs = [
                *map(tensors.__getitem__, judged),
                *(t for t in work.outputs if t.name not in judged),
            ]
        runner = session(to_model(work), threads=threads)
        count = len(work.outputs if judged is None else judged)
        whole = {
            batch: run(runner, {name: samples.get(name, batch) for name in samples.names})
            for batch in batches
        }
        mixed = [(trial, run(runner, _rows(samples, trial))) for trial in (ends[::-1], ends[:1])]
    except (DataError, UnsupportedModelError):  # sizes are written into it
        return False

    def apart(k: int, axis: int) -> bool:
        return all(
            _alike(found[k], [(whole[batch][k], row) for batch, row in trial], axis) for trial, found in mixed
        )

    if judged is None:
        return all(apart(k, 0) for k in range(count))
    return all(any(apart(k, axis) for axis in range(whole[batches[0]][k].ndim)) for k in range(count))


def for_any_shape(graph: gs.Graph, feeds: Mapping[str, Array]) -> gs.Graph:
    """A copy whose inputs are of any shape and of the types that are fed."""
    result = copy_of(graph)
    result.__dict__.pop("surgeon_interface", None)
    for tensor in result.inputs:
        tensor.shape, tensor.dtype = None, feeds[tensor.name].dtype
    for tensor in result.outputs:
        if isinstance(tensor, gs.Variable):
            tensor.shape = None
    return result


def _rows(samples: Samples, trial: list[tuple[int, int]]) -> dict[str, Array]:
    return {
        name: np.concatenate([samples.get(name, batch)[row : row + 1] for batch, row in trial])
        for name in samples.names
    }


def _alike(found: Array, expected: list[tuple[Array, int]], axis: int) -> bool:
    """Whether a result consists, along an axis, of the rows of others that are given by number."""
    if any(array.ndim <= axis or array.shape[axis] <= row for array, row in expected):
        return False
    rows = [np.take(array, row, axis) for array, row in expected]
    if any(row.shape != rows[0].shape for row in rows):
        return False
    wanted = np.stack(rows, axis)
    if found.shape != wanted.shape:
        return False
    finite = np.abs(found[np.isfinite(found)])
    return bool(np.allclose(found, wanted, rtol=0, atol=CLOSE * finite.max(initial=0), equal_nan=True))
