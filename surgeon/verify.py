"""The proof: with the original weights, the cut model equals the original with the removed slices zeroed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from operator import is_
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from surgeon.errors import GateError, SurgeonError, UnsupportedModelError
from surgeon.graph.answers import Answer, answers
from surgeon.graph.branches import decided
from surgeon.graph.copy import copy_of
from surgeon.graph.order import every_node
from surgeon.graph.weights import data_type, derived
from surgeon.narrow import narrowed, zeroed
from surgeon.probes import probe_feeds
from surgeon.quantized import meanings
from surgeon.unrounded import unrounded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from surgeon.analysis import Analysis
    from surgeon.narrow import Kept

Feeds = dict[str, "NDArray[Any]"]
Opened: TypeAlias = "Callable[..., list[Answer]]"
TOLERANCE = 1e-4
LARGEST_NOISE = (
    1e-3  # where the original itself rounds to more than the tolerance, this much is still accepted
)
ROUNDINGS = 4  # how often the original is run on inputs that are rounded otherwise
MISMATCHED = 1e-3  # share of integer outputs (positions of maxima) that rounding may turn
FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
)


@dataclass(frozen=True)
class Certificate:
    """What was proved.

    Attributes:
        status: "exact", "structural" (the model runs, but a norm or reduction over a cut axis forbids equality, or the
            original answers nothing finite to compare with) or "none".
        max_rel_err: Largest difference over all outputs and probes, relative to the largest output; None if unknown.
        probes: Number of inputs the two models were compared on.
    """

    status: str
    max_rel_err: float | None
    probes: int

    def to_json(self) -> dict[str, Any]:
        """The object in reports."""
        return {"status": self.status, "max_rel_err": self.max_rel_err, "probes": self.probes}


@dataclass(frozen=True)
class _Compared:
    """The largest difference, on how many feeds the original ran and said something, and why it did not run on others."""

    worst: float
    ran: int
    told: int
    refusal: str


def prove(
    analysis: Analysis,
    smaller: gs.Graph,
    tensors: Mapping[str, Mapping[int, Sequence[int]]],
    *,
    structural: bool = False,
    feeds: Iterable[Feeds] = (),
    threads: int = 1,
    folder: Path | None = None,
    interface: Kept | None = None,
) -> Certificate:
    """Compare the cut model with the masked original, and once more with every If going either way.

    Args:
        analysis: The original graph in canonical form.
        smaller: The cut graph, with original weights.
        tensors: Per constant of the original and axis, the indices kept.
        structural: Whether a difference is expected, because a statistic runs over a cut axis.
        feeds: Real inputs to compare on as well.
        threads: Threads for onnxruntime.
        folder: Where temporary files of large models may go.
        interface: For each input and output of the model that shrinks, per axis the indices kept.

    Raises:
        GateError: The models differ, the cut model does not run, or the original runs on none of the probes.
    """
    original, smaller = (
        _unsaturated(graph, interface or {}) for graph in (masked(analysis, tensors), smaller)
    )
    opened = partial(answers, threads=threads, folder=folder)
    probes = list(probe_feeds(analysis))
    whole = _compare(original, smaller, [*probes, *feeds], opened, interface or {})
    worst = whole.worst
    for condition in (True, False):
        both = decided(original, condition), decided(smaller, condition)
        if both[0] is not None and both[1] is not None:
            with suppress(UnsupportedModelError):  # an original that cannot go that way says nothing
                worst = max(worst, _compare(both[0], both[1], probes[:1], opened, interface or {}).worst)
    if worst > TOLERANCE and not structural:
        worst = min(
            worst,
            _without_rounding(
                analysis, original, smaller, lambda a, b: _compare(a, b, probes, opened, interface or {})
            ),
        )
    if not whole.ran:
        raise GateError(
            f"the original runs on none of the made-up inputs: {whole.refusal}",
            where="proof",
            hint="give a few real ones with --data",
        )
    if not whole.told:  # nothing but NaN and infinity: the models agree, and that says nothing about the cut
        return Certificate("structural", None, whole.ran)
    if worst <= TOLERANCE:
        return Certificate("exact", worst, whole.ran)
    if structural and np.isfinite(worst):
        return Certificate("structural", worst, whole.ran)
    raise GateError(f"the cut model differs from the masked original by {worst:.1e}", where="proof")


def _unsaturated(graph: gs.Graph, kept: Kept) -> gs.Graph:
    """The graph with what a Sigmoid at its end reads as output: where that is flat its result is nothing but rounding."""
    ends = [
        read[0] if output.name not in kept and (read := _read_by_sigmoid(output)) else output
        for output in graph.outputs
    ]
    if len({id(end) for end in ends}) < len(ends) or all(map(is_, ends, graph.outputs)):
        return graph
    found = copy_of(graph)
    tensors = found.tensors()
    for k, (end, output) in enumerate(zip(ends, graph.outputs, strict=True)):
        if end is not output:
            found.outputs[k] = tensors[end.name]
            found.outputs[k].dtype = output.dtype
    return found


def _read_by_sigmoid(output: gs.Tensor) -> list[gs.Tensor]:
    """What the Sigmoid that makes a tensor reads, if something makes that."""
    return [
        tensor
        for maker in output.inputs
        if maker.op == "Sigmoid" and not maker.domain
        for tensor in maker.inputs
        if tensor.inputs
    ]


def _without_rounding(
    analysis: Analysis,
    original: gs.Graph,
    smaller: gs.Graph,
    compare: Callable[[gs.Graph, gs.Graph], _Compared],
) -> float:
    """The difference of two quantized models as they would be if they did not round; infinite if that is unknown."""
    ranks = {name: len(dims) for name, dims in analysis.shapes.dims.items() if dims is not None}
    before, after = unrounded(original, ranks), unrounded(smaller, ranks)
    if before is None or after is None:
        return np.inf
    with suppress(UnsupportedModelError, GateError):  # what cannot be written in floats says nothing
        compared = compare(before, after)
        return compared.worst if compared.told else np.inf
    return np.inf


def _compare(
    original: gs.Graph, smaller: gs.Graph, feeds: Sequence[Feeds], opened: Opened, kept: Kept
) -> _Compared:
    """Run both graphs on the feeds the original accepts.

    One graph is run after the other, so that no more than one of them is open.

    Raises:
        GateError: The smaller graph does not load, or refuses feeds that the original runs on.
        UnsupportedModelError: The original does not load.
    """
    expected, refusal, usable = [], "", []
    names = [tensor.name for tensor in original.outputs]
    feeds = [zeroed(probe, kept) for probe in feeds]
    for probe, answer in zip(feeds, opened(original, feeds), strict=True):
        if isinstance(answer, SurgeonError):
            refusal = answer.message
        else:
            usable.append(probe)
            expected.append(answer)
    try:
        found = opened(smaller, [narrowed(probe, kept) for probe in usable])
    except UnsupportedModelError as error:
        raise GateError(f"the cut model does not load: {error.message}", where="proof") from error
    worst, told = 0.0, 0
    for probe, outputs, answer in zip(usable, expected, found, strict=True):
        if isinstance(answer, SurgeonError):
            raise GateError(f"the cut model does not run: {answer.message}", where="proof") from answer
        wanted = list(narrowed(dict(zip(names, outputs, strict=True)), kept).values())
        difference = relative_error(wanted, answer)
        if TOLERANCE < difference <= LARGEST_NOISE and difference <= 2 * measured_noise(
            original, probe, outputs, opened
        ):
            difference = TOLERANCE
        worst = max(worst, difference)
        told += any(np.isfinite(array).any() for array in outputs if array.dtype.kind not in "SUO")
    return _Compared(worst, len(usable), told, refusal)


def measured_noise(
    original: gs.Graph, probe: Feeds, expected: Sequence[NDArray[Any]], opened: Opened
) -> float:
    """How much the original's own outputs move when onnxruntime merely rounds otherwise.

    It computes them in another order, and from inputs that differ by one unit in the last place.
    """
    answers = [*opened(original, [probe], optimize=True), *opened(original, list(_rounded(probe)))]
    worst = 0.0
    for answer in answers:
        if isinstance(answer, SurgeonError):
            raise answer
        worst = max(worst, relative_error(expected, answer))
    return worst


def _rounded(probe: Feeds) -> Iterator[Feeds]:
    """Feeds with every float moved by one unit in the last place, up or down at random."""
    for seed in range(ROUNDINGS):
        random = np.random.default_rng(seed)
        yield {
            name: np.nextafter(array, random.choice([-np.inf, np.inf], array.shape).astype(array.dtype))
            if array.dtype.kind == "f"
            else array
            for name, array in probe.items()
        }


def masked(analysis: Analysis, tensors: Mapping[str, Mapping[int, Sequence[int]]]) -> gs.Graph:
    """The original with every removed slice zeroed; in divisors, variances and scales it is set to one instead.

    What they divide vanishes anyway, and one is the value that cannot turn a zero into something undefined. In
    quantized weights the zero is their zero point.
    """
    graph = copy_of(analysis.graph)
    divisors = {
        op.node.inputs[k].name for op in analysis.ops for k in op.facts.divisors if k < len(op.node.inputs)
    }
    quantized = meanings(analysis)
    done: set[int] = set()
    for node in every_node(graph):
        for tensor in node.inputs:
            if not isinstance(tensor, gs.Constant) or id(tensor) in done:
                continue
            done.add(id(tensor))
            axes = tensors.get(getattr(tensor, "origin", tensor.name), {})
            value: float | NDArray[Any]
            if axes and data_type(tensor) in FLOATS:
                value = float(tensor.name in divisors)
            elif axes and tensor.name in quantized:
                value = quantized[tensor.name].zero
            else:
                continue
            tensor.values = derived(tensor, partial(_filled, axes=axes, value=value))
    return graph


def _filled(
    values: NDArray[Any], axes: Mapping[int, Sequence[int]], value: float | NDArray[Any]
) -> NDArray[Any]:
    result = values.copy()
    for axis, kept in axes.items():
        gone = np.ones(values.shape[axis], bool)
        gone[np.asarray(kept, dtype=np.int64)] = False
        place = (slice(None),) * axis + (gone,)
        result[place] = np.broadcast_to(value, values.shape)[place] if np.ndim(value) else value
    return result


def relative_error(expected: Sequence[NDArray[Any]], found: Sequence[NDArray[Any]]) -> float:
    """The largest difference over all outputs, relative to each output's largest magnitude.

    Infinite where shapes or special values differ, or where more integers differ than rounding explains.
    """
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if not a.size:
            continue
        if a.dtype.kind not in "fc" and a.dtype.name != "bfloat16":
            if float(np.mean(a != b)) > MISMATCHED:
                return float("inf")
            continue
        x, y = a.astype(np.float64), b.astype(np.float64)
        finite = np.isfinite(x)
        if not np.array_equal(finite, np.isfinite(y)):
            return float("inf")
        if finite.any():
            difference = np.abs(x[finite] - y[finite]).max()
            worst = max(worst, float(difference / (np.abs(x[finite]).max() + 1e-6)))
    return worst
