"""Concrete shapes of every tensor, and the values of the shape arithmetic, at probe sizes.

onnx infers the shapes node by node, with our own values as data; everything is done at two assignments of sizes to
the open dimensions, and what differs between the two is dynamic.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.graph.decisions import mark_decisions
from surgeon.graph.inference import Program, Run
from surgeon.graph.order import captured, every_node
from surgeon.graph.probe import candidates, complete, dynamic_dims, open_dimensions, taken_sizes
from surgeon.graph.unsteady import assignments, is_doubtful

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

LARGEST_SEARCH = 50_000  # nodes to infer while looking for sizes a model accepts

__all__ = ["Shapes", "Value", "captured", "dynamic_dims", "infer", "infer_once"]


@dataclass(frozen=True)
class Value:
    """A known small tensor: its ``data`` at the probe sizes, and which elements are ``dynamic`` (same shape).

    A dynamic element changes with a dynamic dimension; the others are the same for every input of the model.
    """

    data: NDArray[Any]
    dynamic: NDArray[np.bool_]

    @property
    def static(self) -> bool:
        """Whether every element is the same for every input of the model."""
        return not self.dynamic.any()


@dataclass
class Shapes:
    """What is known of every tensor of a graph and of the bodies inside it, by name.

    Attributes:
        dims: The shape at the probe sizes; None where not even the rank is known, or it is not a tensor.
        dtypes: The onnx data type (``TensorProto.DataType``), where known.
        dynamic: For each axis, whether its size changes with a dynamic dimension or depends on data.
        values: Known small tensors: shape arithmetic and what goes into it.
        probe: The size given to each open dimension (see ``dynamic_dims``).
        failures: Nodes onnx's inference refused, and why; by first output. What an ``If`` does not do at the probe
            sizes cannot fail.
        aside: Tensors of branches that are not taken at the probe sizes.
    """

    dims: dict[str, tuple[int, ...] | None]
    dtypes: dict[str, int]
    dynamic: dict[str, tuple[bool, ...]]
    values: dict[str, Value]
    probe: dict[str, int]
    failures: dict[str, str] = field(default_factory=dict)
    aside: frozenset[str] = frozenset()


def infer(graph: gs.Graph, sizes: Mapping[str, int] | None = None) -> Shapes:
    """Infers concrete shapes and values at probe sizes.

    Args:
        graph: The graph; it is not changed, and its weights are not read.
        sizes: Sizes to use for some open dimensions (keys as in :func:`dynamic_dims`) instead of chosen ones.

    Raises:
        UnsupportedModelError: The graph has a cycle.
    """
    program = Program(graph)
    dimensions = open_dimensions(graph)
    forced = dict(sizes or {})
    taken = taken_sizes(graph, program.constants.values())
    best = _search(program, dimensions, taken, forced)
    clashes = set(best.probe.values()) & _static_sizes(best) if dimensions else set()
    if clashes - set(forced.values()):
        again = _search(program, dimensions, taken | _static_sizes(best), forced)
        if _doubts(again) <= _doubts(best):
            best = again
    mark_decisions(graph, best)
    if is_doubtful(graph, best):
        probe = {key: best.probe[key] for key in dimensions}
        for tried, variant in assignments(probe, sum(1 for _ in every_node(graph))):
            run = program.run(complete(tried, forced), variant)
            if set(run.failures) <= set(best.failures):  # sizes that a node refuses say nothing
                _mark_changes(best, _joined(each for each, _ in _with_bodies(run)), ranks=False)
        mark_decisions(graph, best)
    return best


def infer_once(graph: gs.Graph, sizes: Mapping[str, int]) -> Shapes:
    """The shapes at given sizes of all open dimensions, in half the time of `infer`: what is dynamic stays unknown.

    Raises:
        UnsupportedModelError: The graph has a cycle.
    """
    first, _ = next(candidates(open_dimensions(graph), set(), sizes))
    run = Program(graph).run(first, 0)
    return _compare(run, run, first)


def _search(
    program: Program, dimensions: Mapping[str, Any], taken: set[int], forced: Mapping[str, int]
) -> Shapes:
    """The first assignment that every node accepts and that leaves no dynamic axis with size 1, or the best of all."""
    best: Shapes | None = None
    choice = not dimensions.keys() <= forced.keys()
    tries = max(4, LARGEST_SEARCH // (len(program.nodes) + 1)) if choice else 1
    for first, alternatives in islice(candidates(dimensions, taken, forced), tries):
        run = program.run(first, 0)
        if best is not None and len(run.failures) > len(best.failures):
            continue
        shapes = _compare(run, _accepted(program, run, alternatives), first)
        if best is None or _doubts(shapes) < _doubts(best):
            best = shapes
        if not any(_doubts(best)):
            break
    if best is None:
        raise AssertionError("there is always one recipe")
    return best


def _accepted(program: Program, run: Run, alternatives: list[dict[str, int]]) -> Run:
    """The run to compare with: the first that no further node refuses."""
    if not run.sizes and not run.data_dependent:
        return run
    for sizes in alternatives:
        other = program.run(sizes, 1)
        if set(other.failures) <= set(run.failures):
            return other
    return other


def _static_sizes(shapes: Shapes) -> set[int]:
    return {
        size
        for name, dims in shapes.dims.items()
        if dims is not None
        for size, dynamic in zip(dims, shapes.dynamic[name], strict=True)
        if not dynamic
    }


def _doubts(shapes: Shapes) -> tuple[int, int, int]:
    """How unfit the chosen sizes are, the worst first: refused nodes, unknown ranks, dynamic axes of size 1."""
    unknown = sum(dims is None for name, dims in shapes.dims.items() if name not in shapes.aside)
    return len(shapes.failures), unknown, _ones(shapes)


def _ones(shapes: Shapes) -> int:
    """How many dynamic axes have shrunk to nothing or to size 1, where broadcasting hides what they are."""
    return sum(
        size <= 1 and dynamic
        for name, dims in shapes.dims.items()
        if dims is not None and name not in shapes.aside
        for size, dynamic in zip(dims, shapes.dynamic[name], strict=True)
    )


def _compare(run: Run, other: Run, sizes: Mapping[str, int]) -> Shapes:
    runs = list(_with_bodies(run, counts=True))
    aside = {name for each, counts in runs if not counts for name in each.dims}
    counted = {name for each, counts in runs if counts for name in each.dims}
    found = _joined(each for each, _ in runs)
    dynamic = {name: (False,) * len(dims) for name, dims in found.dims.items() if dims is not None}
    values = {name: Value(data, np.zeros(data.shape, bool)) for name, data in found.values.items()}
    outside = frozenset(aside - counted)
    shapes = Shapes(found.dims, found.dtypes, dynamic, values, dict(sizes), run.failures, outside)
    _mark_changes(shapes, _joined(each for each, _ in _with_bodies(other)), ranks=True)
    return shapes


def _mark_changes(shapes: Shapes, again: _Joined, *, ranks: bool) -> None:
    """Marks as dynamic what is not the same in another run, and all elements that are not known there.

    What is empty in one of the two cannot be marked, and is forgotten.

    Args:
        shapes: What was found in the first.
        again: What was found in the other.
        ranks: Whether all axes change where there are more or fewer of them, or nobody knows how many. At odd sizes that says
            nothing: a Squeeze takes the batch away if it is one.
    """
    for name, flags in shapes.dynamic.items():
        dims, other = shapes.dims[name], again.dims.get(name)
        if dims is None or other is None or len(other) != len(dims):
            shapes.dynamic[name] = (True,) * len(flags) if ranks else flags
        elif dims != other:
            shapes.dynamic[name] = tuple(was or a != b for was, a, b in zip(flags, dims, other, strict=True))
    for name, value in list(shapes.values.items()):
        data = again.values.get(name)
        if data is value.data:
            continue
        if value.data.size == 0 and (data is None or data.shape != value.data.shape):
            del shapes.values[name]  # nothing is there to be marked
            continue
        new = _changed(value.data, data)
        if new.any():
            shapes.values[name] = replace(value, dynamic=value.dynamic | new)


def _changed(data: NDArray[Any], other: NDArray[Any] | None) -> NDArray[np.bool_]:
    """Which elements of a value are not the same in another run; all where it is not known there."""
    if other is None or other.shape != data.shape:
        return np.ones(data.shape, bool)
    return np.asarray((data != other) & ((data == data) | (other == other)))  # noqa: PLR0124  # NaN equals NaN here


@dataclass
class _Joined:
    """What the runs of a graph and of its bodies found, together."""

    dims: dict[str, tuple[int, ...] | None] = field(default_factory=dict)
    dtypes: dict[str, int] = field(default_factory=dict)
    values: dict[str, NDArray[Any]] = field(default_factory=dict)


def _joined(runs: Iterable[Run]) -> _Joined:
    """Names are unique over all bodies; what a body sees of its surroundings is the same there."""
    result = _Joined()
    for run in runs:
        result.dims.update(run.dims)
        result.dtypes.update(run.dtypes)
        result.values.update(run.values)
    return result


def _with_bodies(run: Run, *, counts: bool = True) -> Iterator[tuple[Run, bool]]:
    """A run and those of its bodies, with whether what fails in them fails the model."""
    yield run, counts
    for body, counted in run.bodies:
        yield from _with_bodies(body, counts=counts and counted)
