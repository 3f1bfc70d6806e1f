"""Whether a graph keeps samples apart along the first axis: tried out, for shapes do not tell batch from time."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.errors import DataError, UnsupportedModelError
from surgeon.graph.copy import copy_of
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from numpy.typing import NDArray

    from surgeon.grad.samples import Samples

    Array = NDArray[Any]
    View = Callable[[Array, int], Array | None]

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
        judged: Names of tensors that are looked at; what the graph puts out then only has to be computed. Samples may be further
            in there, or several rows each. By default its outputs, whose rows along the first axis have to be those of the inputs.
    """
    filled = [batch for batch, size in enumerate(samples.sizes) if size]
    if not samples.rows or len(samples) < 2:
        return False
    batches = sorted({filled[0], filled[-1]})
    ends = [(batch, row) for batch in batches for row in sorted({0, samples.sizes[batch] - 1})]
    work = for_any_shape(graph, {name: samples.get(name, 0) for name in samples.names})
    if judged is not None:
        tensors = work.tensors()
        others = [tensor for tensor in work.outputs if tensor.name not in judged]
        work.outputs = [*map(tensors.__getitem__, judged), *others]
    names = [tensor.name for tensor in work.outputs] if judged is None else list(judged)
    try:
        runner = session(to_model(work), threads=threads)
        whole = {
            batch: run(runner, {name: samples.get(name, batch) for name in samples.names}, names)
            for batch in batches
        }
        mixed = [(trial, run(runner, _rows(samples, trial), names)) for trial in (ends[::-1], ends[:1])]
    except (DataError, UnsupportedModelError):  # sizes are written into it
        return False

    def apart(k: int, view: View) -> bool:
        return all(
            _alike(
                view(found[k], len(trial)),
                [(view(whole[batch][k], samples.sizes[batch]), row) for batch, row in trial],
            )
            for trial, found in mixed
        )

    if judged is None:
        return all(apart(k, _first) for k in range(len(names)))
    return all(any(apart(k, view) for view in _views(whole[batches[0]][k].ndim)) for k in range(len(names)))


def _first(array: Array, count: int) -> Array | None:
    """An array whose first axis is that of so many samples; None if it is not."""
    return array if array.shape[:1] == (count,) else None


def _views(rank: int) -> list[View]:
    """Ways to see an array as so many samples: along each axis, which may count rows of samples, or samples in each of these."""

    def view(array: Array, count: int, axis: int, inner: int) -> Array | None:
        size = array.shape[axis] if array.ndim == rank else 0
        if not size or size % count:
            return None
        parts = (count, size // count)[:: 1 - 2 * inner]
        return np.moveaxis(
            array.reshape(*array.shape[:axis], *parts, *array.shape[axis + 1 :]), axis + inner, 0
        )

    return [partial(view, axis=axis, inner=inner) for axis in range(rank) for inner in (0, 1)]


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


def with_open_rows(graph: gs.Graph) -> gs.Graph:
    """A copy whose inputs may have other numbers of rows than are declared: those of the same number the same."""
    result = copy_of(graph)
    result.__dict__.pop("surgeon_interface", None)
    for tensor in result.inputs:
        if tensor.shape and isinstance(tensor.shape[0], int):
            tensor.shape = [f"surgeon/rows/{tensor.shape[0]}", *tensor.shape[1:]]
    for tensor in result.outputs:
        if isinstance(tensor, gs.Variable):
            tensor.shape = None
    return result


def _rows(samples: Samples, trial: list[tuple[int, int]]) -> dict[str, Array]:
    return {
        name: np.concatenate([samples.get(name, batch)[row : row + 1] for batch, row in trial])
        for name in samples.names
    }


def _alike(found: Array | None, expected: list[tuple[Array | None, int]]) -> bool:
    """Whether a result consists of the rows of others that are given by number."""
    rows = [array[row] for array, row in expected if array is not None]
    if found is None or len(rows) < len(expected) or any(row.shape != found.shape[1:] for row in rows):
        return False
    finite = np.abs(found[np.isfinite(found)])
    return bool(np.allclose(found, rows, rtol=0, atol=CLOSE * finite.max(initial=0), equal_nan=True))
