"""How far a graph's outputs are from the original's on held-out samples: what better blocks are worth in the end."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from surgeon.grad.losses import PASSED_ON
from surgeon.grad.rows import for_any_shape
from surgeon.graph.order import ordered
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.graph.shapes import infer
from surgeon.graph.weights import peek
from surgeon.refit.turns import depending
from surgeon.stats.replay import Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray
    from onnx_graphsurgeon.ir.tensor import LazyValues

    from surgeon.reference import Reference

    Array = NDArray[Any]

SHARES = (1 / 2, 1 / 4)  # of the way from where weights were to where they are
FLOOR = 1e-2  # of the mean square: the variance of few samples may be next to nothing
TINY = 1e-12
MOVING = PASSED_ON | {"Transpose"}
ROUNDING = frozenset({"Cast", "CastLike", "QuantizeLinear", "DynamicQuantizeLinear"})
PRODUCTS = frozenset({"MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv"})
JOINING = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "Concat", "Where"})
FINDING = frozenset({"ArgMax", "ArgMin", "TopK", "NonZero", "NonMaxSuppression", "Shape", "Size"})


@dataclass(frozen=True)
class Outcome:
    """What was made of all that was learned.

    Attributes:
        before: The error of the outputs at the start, as :meth:`Outputs.error` has it; NaN where it cannot be told.
        after: At the end.
        share: How much of the way weights went; 0 where the outputs would be worse even after a quarter of it.
    """

    before: float
    after: float
    share: float


class Outputs:
    """The outputs of a graph, whose weights change, beside the original's.

    Args:
        graph: The smaller graph; it is looked at anew every time.
        reference: What it should compute.
        feeds: Batches of inputs that nothing was learned from.
        threads: Threads for onnxruntime.
        limit_bytes: What of the original's outputs is held in memory.
    """

    def __init__(
        self,
        graph: gs.Graph,
        reference: Reference,
        feeds: Sequence[Mapping[str, Array]],
        threads: int = 1,
        limit_bytes: int = 2**31,
    ) -> None:
        self.graph, self.feeds, self.threads = graph, feeds, threads
        self.original, self.limit = reference.graph, limit_bytes
        ours, theirs = _labels(graph), _labels(self.original)
        self.labels = {name: ours[name] or theirs[name] for name in ours.keys() & theirs.keys()}

    @cached_property
    def _wanted(self) -> Store:
        """What the original puts out, by output and batch."""
        store = Store(self.limit)
        for results in self._run(self.original):
            for name, array in results.items():
                store.put(name, array)
        return store

    def _run(self, graph: gs.Graph) -> Iterator[dict[str, Array]]:
        """Batch by batch what can be compared of what a graph puts out."""
        work = for_any_shape(graph, self.feeds[0])
        work.outputs = [tensor for tensor in work.outputs if tensor.name in self.labels]
        names, inputs = ([tensor.name for tensor in tensors] for tensors in (work.outputs, work.inputs))
        runner = session(to_model(work), threads=self.threads)
        for feeds in self.feeds:
            results = run(runner, {name: feeds[name] for name in inputs})
            yield dict(zip(names, results, strict=True))

    def error(self) -> float:
        """The squared distance from the original's outputs, relative to their variance; of labels, the share that differ.

        The mean over outputs that can be compared, which depend on the inputs and are tensors of a type that numpy has; NaN if
        there are none, or no batches.
        """
        if not (self.labels and self.feeds):
            return float("nan")
        sums: dict[str, Array] = dict.fromkeys(self.labels, np.zeros(6))
        wanted = self._wanted
        for batch, results in enumerate(self._run(self.graph)):
            for name, ours in results.items():
                compared = _compared(ours, wanted.get(name, batch), labels=self.labels[name])
                sums[name] = sums[name] + compared
        errors = [
            distance / max(square - total**2 / max(count, 1), FLOOR * square, TINY) + wrong / size
            for distance, count, total, square, wrong, size in sums.values()
            if size
        ]
        return float(np.mean(errors)) if errors else float("nan")

    def settle(self, start: Sequence[tuple[gs.Constant, Array | LazyValues]]) -> Outcome:
        """Let weights go as far as the outputs are no worse than before: all of the way, half, a quarter, or back.

        Args:
            start: Constants that were changed, and what was stored of them.
        """
        ends = [peek(constant) for constant, _ in start]
        after = self.error()
        for constant, stored in start:
            constant.values = stored
        before = self.error()
        ways = [(constant, peek(constant), end) for (constant, _), end in zip(start, ends, strict=True)]
        if after <= before or not np.isfinite(before):
            _go(ways, 1.0)
            return Outcome(before, after, 1.0)
        for share in SHARES:
            _go(ways, share)
            after = self.error()
            if after < before:  # of rounded weights part of the way may be none
                return Outcome(before, after, share)
        for constant, stored in start:
            constant.values = stored
        return Outcome(before, before, 0.0)


def _go(ways: Iterable[tuple[gs.Constant, Array, Array]], share: float) -> None:
    """Let constants be a share of the way from one value to another."""
    for constant, start, end in ways:
        constant.values = end if share == 1 else (start + share * (end - start)).astype(start.dtype)


def _labels(graph: gs.Graph) -> dict[str, bool]:
    """The outputs that are tensors of numbers, or of flags, as numpy knows them, and whether these name something."""
    kinds = {name: _kind(dtype) for name, dtype in infer(graph).dtypes.items()}
    dynamic = depending(graph)
    naming = _naming(graph, kinds, dynamic)
    return {
        tensor.name: tensor.name in naming
        for tensor in graph.outputs
        if tensor.name in dynamic and kinds.get(tensor.name, "") in set("fiub")
    }


def _kind(dtype: int) -> str:
    return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(dtype)).kind)


def _naming(graph: gs.Graph, kinds: Mapping[str, str], dynamic: set[str]) -> set[str]:
    """Tensors of flags, and of integers, whatever type they are given later, unless they are floats that were rounded."""
    found = {tensor.name for tensor in graph.inputs if kinds.get(tensor.name, "f") in "iub"}
    for node in ordered(graph.nodes):
        outputs = {tensor.name for tensor in node.outputs} & dynamic
        found |= {name for name in outputs if _names(node, kinds.get(name, "f"), kinds, found)}
    return found


def _names(node: gs.Node, kind: str, kinds: Mapping[str, str], found: set[str]) -> bool:
    """Whether what a node puts out names something, where those found of what it reads do."""
    read = [tensor.name for tensor in node.inputs]
    passed = bool(read) and read[0] in found
    if kind == "b":
        return True
    if kind not in "iu":
        return node.op in MOVING and passed
    if node.op in PRODUCTS:
        return False
    if node.op in JOINING:
        return any(name in found for name in read[node.op == "Where" :])
    if node.op in ROUNDING or (node.op not in FINDING and kinds.get(read[0], "f") in "iub"):
        return passed
    return True


def _compared(ours: Array, theirs: Array, *, labels: bool) -> Array:
    """What two arrays have to do with each other.

    Returns:
        Of numbers that are finite in both: the squared distance, how many, their sum and that of their squares. Of all: how
        many differ that are labels, or that are finite in one alone, or infinite in another way, and how many there are. All
        of them differ where there are more or fewer, as of boxes that were found.
    """
    size = theirs.size
    if ours.shape != theirs.shape:
        return np.array([0, 0, 0, 0, size, size], float)
    if labels:
        return np.array([0, 0, 0, 0, (ours != theirs).sum(), size], float)
    finite = np.isfinite(ours) & np.isfinite(theirs)
    same = finite | (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    one, two = ours[finite].astype(np.float64), theirs[finite].astype(np.float64)
    sums = [np.square(one - two).sum(), two.size, two.sum(), np.square(two).sum()]
    return np.array([*sums, size - same.sum(), size], float)
