"""What a model costs: parameters, multiply-accumulates and bytes, as polynomials of the group sizes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import onnx
import onnx_graphsurgeon as gs

from surgeon.axes import Atom, Axis, atoms_of, is_fixed, normal
from surgeon.axes import count as size_of
from surgeon.graph.probe import open_dimensions
from surgeon.graph.shapes import Shapes, infer
from surgeon.graph.weights import data_type, packed_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from surgeon.analysis import Analysis

OTHER_SIZES = (8, 32, 64, 224, 16, 1)


@dataclass(frozen=True)
class Cost:
    """Sums over a model.

    Attributes:
        params: Elements of all constants of rank >= 1 that are not int64.
        macs: Multiply-accumulates of one sample.
        bytes: Bytes of the weights.
    """

    params: float
    macs: float
    bytes: float


@dataclass(frozen=True)
class Term:
    """``coefficient`` times the product of the sizes of ``axes``; counted in ``params``, ``macs`` or ``bytes``."""

    kind: str
    coefficient: float
    axes: tuple[Axis, ...]

    def value(self, sizes: Mapping[Atom, float]) -> float:
        """The term when atoms have ``sizes``."""
        return self.coefficient * prod(size_of(axis, sizes) for axis in self.axes)


class CostModel:
    """The cost of every possible cut of one analysed graph."""

    def __init__(self, analysis: Analysis) -> None:
        shapes = one_sample(analysis.graph) or analysis.shapes
        self.terms = [*_parameter_terms(analysis), *_mac_terms(analysis, shapes)]
        self._by_atom: dict[Atom, list[Term]] = defaultdict(list)
        for term in self.terms:
            for atom in {a for axis in term.axes for a in atoms_of(axis)}:
                self._by_atom[atom].append(term)

    def evaluate(self, sizes: Mapping[Atom, float] | None = None) -> Cost:
        """The cost when atoms have ``sizes``; atoms not named are whole."""
        totals = {"params": 0.0, "macs": 0.0, "bytes": 0.0}
        for term in self.terms:
            totals[term.kind] += term.value(sizes or {})
        return Cost(**totals)

    def terms_of(self, atom: Atom) -> list[Term]:
        """The terms that change with the size of ``atom``."""
        return self._by_atom[atom]

    def controlled(self, atom: Atom, kind: str) -> float:
        """How much of ``kind`` is proportional to ``atom``: what would vanish with all of it."""
        gone = {atom: 0.0}
        return sum(t.value({}) - t.value(gone) for t in self._by_atom[atom] if t.kind == kind)


def _term(kind: str, coefficient: float, axes: list[Axis]) -> Term:
    free = tuple(normal(axis) for axis in axes if not is_fixed(axis))
    fixed = prod(axis.size for axis in axes if is_fixed(axis))
    return Term(kind, coefficient * fixed, free)


def _parameter_terms(analysis: Analysis) -> Iterator[Term]:
    seen: set[str] = set()
    for op in analysis.ops:
        for tensor in op.node.inputs:
            if not isinstance(tensor, gs.Constant) or tensor.name in seen:
                continue
            seen.add(tensor.name)
            element = data_type(tensor)
            axes = analysis.axes.get(tensor.name) or []
            elements = prod(axis.size for axis in axes)
            yield _term("bytes", packed_bytes(element, list(tensor.shape)) / max(elements, 1), axes)
            if axes and element != onnx.TensorProto.INT64:
                yield _term("params", 1.0, axes)


def _mac_terms(analysis: Analysis, shapes: Shapes) -> Iterator[Term]:
    for op in analysis.ops:
        for refs in op.facts.macs:
            axes = [(analysis.axes[ref.tensor] or [])[ref.axis] for ref in refs]
            probe = prod(axis.size for axis in axes)
            wanted = prod((shapes.dims.get(ref.tensor) or op.shapes.dims[ref.tensor] or ())[ref.axis] for ref in refs)
            yield _term("macs", wanted / max(probe, 1), axes)


def one_sample(graph: gs.Graph) -> Shapes | None:
    """Shapes for one sample: batch 1, other open dimensions at the first size that the model accepts."""
    dimensions = open_dimensions(graph)
    if not dimensions:
        return None
    best: Shapes | None = None
    for other in OTHER_SIZES:
        shapes = infer(graph, {key: 1 if d.kind == "batch" else other for key, d in dimensions.items()})
        if best is None or len(shapes.failures) < len(best.failures):
            best = shapes
        if not best.failures:
            break
    return best


def count(graph: gs.Graph) -> Cost:
    """Count a graph as it is."""
    from surgeon.analysis import solve

    return CostModel(solve(graph)).evaluate()
