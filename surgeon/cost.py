"""What a model costs: parameters, multiply-accumulates and bytes, as polynomials of the group sizes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

import onnx
import onnx_graphsurgeon as gs

from surgeon.axes import Atom, Axis, Concat, Selection, atoms_of, is_fixed, mask, normal
from surgeon.axes import count as size_of
from surgeon.graph.order import every_node
from surgeon.graph.probe import open_dimensions
from surgeon.graph.shapes import Shapes, infer_once
from surgeon.graph.weights import data_type, packed_bytes
from surgeon.ops import Ref

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from surgeon.analysis import Analysis
    from surgeon.axes import Keep
    from surgeon.ops.op import Op

OTHER_SIZES = (8, 32, 64, 224, 16, 1)


@dataclass(frozen=True)
class Cost:
    """Sums over a model.

    Attributes:
        params: Elements of all constants of rank >= 1 that are not int64.
        macs: Multiply-accumulates of one sample.
        bytes: Bytes of the tensors that ``params`` counts.
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
    """The cost of every possible cut of one analysed graph.

    Args:
        analysis: The solved graph.
        stored: The constants that the model file holds, by name. Others that do not shrink are folded arithmetic, which
            is computed again in what is written, from stored ones that the analysed graph lacks. By default what counts
            is every constant of the analysed graph.
        sample: Shapes for one sample, inferred when not given.

    Attributes:
        folded: What a cut model may have more than the terms say, where arithmetic reads something that was cut and
            stays folded.
        copies: What `evaluate` counts more than the file holds: a vector with several uses counts once for each use
            that can shrink on its own.
    """

    def __init__(
        self,
        analysis: Analysis,
        stored: Mapping[str, gs.Constant] | None = None,
        sample: Shapes | None = None,
    ) -> None:
        shapes = sample or one_sample(analysis.graph) or analysis.shapes
        known: dict[object, Axis] = {}
        weights = _weights(analysis, known, stored)
        self.terms = [*weights.terms, *_mac_terms(analysis, shapes, known)]
        self.folded = _total(weights.folded)
        self._uses = [uses for uses in weights.uses.values() if len(uses) > 1]
        self.copies = _total([term for uses in self._uses for use in uses[1:] for term in use])
        self._by_atom: dict[Atom, list[Term]] = defaultdict(list)
        for term in self.terms:
            for atom in {a for axis in term.axes for a in atoms_of(axis)}:
                self._by_atom[atom].append(term)

    def evaluate(self, sizes: Mapping[Atom, float] | None = None) -> Cost:
        """The cost when atoms have ``sizes``; atoms not named are whole. Selections are taken to shrink evenly."""
        return self._sum(lambda axis: size_of(axis, sizes or {}))

    def after(self, keep: Keep) -> Cost:
        """The exact cost of one cut, given what is kept of each atom; atoms not named are whole.

        Copies of one vector that lose the same are one constant again.
        """
        total = vars(self._sum(lambda axis: float(mask(axis, keep).sum())))
        for uses in self._uses:
            left: set[tuple[bytes, ...]] = set()
            for use in uses:
                masks = [mask(axis, keep) for axis in use[0].axes]
                key = tuple(each.tobytes() for each in masks)
                if key in left:
                    for term in use:
                        total[term.kind] -= term.coefficient * prod(int(each.sum()) for each in masks)
                left.add(key)
        return Cost(**total)

    def terms_of(self, atom: Atom) -> list[Term]:
        """The terms that change with the size of ``atom``."""
        return self._by_atom[atom]

    def controlled(self, atom: Atom, kind: str) -> float:
        """How much of ``kind`` is proportional to ``atom``: what would vanish with all of it."""
        gone = {atom: 0.0}
        return sum(t.value({}) - t.value(gone) for t in self._by_atom[atom] if t.kind == kind)

    def _sum(self, size: Callable[[Axis], float]) -> Cost:
        """Adds the terms up; each distinct axis is measured once."""
        found = {id(axis): axis for term in self.terms for axis in term.axes}
        sizes = {key: size(axis) for key, axis in found.items()}
        totals = {"params": 0.0, "macs": 0.0, "bytes": 0.0}
        for term in self.terms:
            totals[term.kind] += term.coefficient * prod(sizes[id(axis)] for axis in term.axes)
        return Cost(**totals)


def _term(kind: str, scale: float, axes: list[Axis], dims: Sequence[int], known: dict[object, Axis]) -> Term:
    """``scale`` times the product of ``dims``, the wanted sizes of ``axes``, as a function of the axes that are free.

    Axes are shared with the terms before, so that each distinct axis is one object. Fixed axes enter by their wanted
    size and never by a quotient, so that whole numbers stay whole.
    """
    free: list[Axis] = []
    for axis, size in zip(axes, dims, strict=True):
        if is_fixed(axis) or not axis.size:  # an axis without positions has nothing to remove
            scale *= size
        else:
            scale *= size / axis.size
            free.append(known.setdefault(_key(axis), normal(axis)))
    return Term(kind, scale, tuple(free))


def _key(axis: Axis) -> object:
    """Equal for axes of equal structure."""
    axis = normal(axis)
    if isinstance(axis, Atom):
        return axis.serial
    if isinstance(axis, Selection):
        return ("of", _key(axis.base), axis.indices.tobytes())
    parts = axis.parts if isinstance(axis, Concat) else axis.factors
    return (type(axis).__name__, *map(_key, parts))


@dataclass
class _Weights:
    """Terms of the constants: those that count, those of folded arithmetic, and per origin those of each use."""

    terms: list[Term] = field(default_factory=list)
    folded: list[Term] = field(default_factory=list)
    uses: dict[str, list[list[Term]]] = field(default_factory=dict)


def _weights(
    analysis: Analysis, known: dict[object, Axis], stored: Mapping[str, gs.Constant] | None
) -> _Weights:
    """Everything but scalars, which never shrink, and int64, which are shapes and positions."""
    result = _Weights()
    seen: set[object] = set()
    origins: set[str] = set()
    for op in analysis.ops:
        for tensor in op.node.inputs:
            if not isinstance(tensor, gs.Constant):
                continue
            axes, origin = analysis.axes.get(tensor.name), vars(tensor).get("origin") or tensor.name
            origins |= {origin, tensor.name}
            use = (origin, *map(_key, axes or ())) if "origin" in vars(tensor) else tensor.name
            if not axes or use in seen:
                continue
            seen.add(use)
            terms = list(_size_terms(tensor, axes, known))
            if stored is not None and origin not in stored and all(map(is_fixed, axes)):
                result.folded += terms
            elif terms:
                result.terms += terms
                result.uses.setdefault(origin, []).append(terms)
    for name in sorted((stored or {}).keys() - origins):
        result.terms += _size_terms((stored or {})[name], [], known)
    return result


def _total(terms: Iterable[Term]) -> Cost:
    """The sum of terms at whole sizes."""
    totals = {"params": 0.0, "macs": 0.0, "bytes": 0.0}
    for term in terms:
        totals[term.kind] += term.value({})
    return Cost(**totals)


def _size_terms(tensor: gs.Constant, axes: list[Axis], known: dict[object, Axis]) -> Iterator[Term]:
    """The bytes and elements of one constant, in sizes of its ``axes`` (as a number without any)."""
    element, dims = data_type(tensor), [int(size) for size in tensor.shape]
    if not dims or element == onnx.TensorProto.INT64:
        return
    elements = prod(dims)
    if not axes:
        yield Term("bytes", packed_bytes(element, dims), ())
        yield Term("params", elements, ())
        return
    yield _term("bytes", packed_bytes(element, dims) / max(elements, 1), axes, dims, known)
    yield _term("params", 1.0, axes, dims, known)


def _mac_terms(analysis: Analysis, shapes: Shapes, known: dict[object, Axis]) -> list[Term]:
    terms = [(op, _products(op, analysis, shapes, known)) for op in analysis.ops]
    times = _times(terms, shapes)
    return [
        Term("macs", each.coefficient * times[id(op)], each.axes)
        for op, products in terms
        for each in products
        if times[id(op)]
    ]


def _products(op: Op, analysis: Analysis, shapes: Shapes, known: dict[object, Axis]) -> list[Term]:
    """The multiply-accumulates of one run of an operator itself."""
    result = []
    for refs in op.facts.macs:
        axes, dims = [], []
        for ref in refs:
            if isinstance(ref, Ref):
                axes.append((analysis.axes[ref.tensor] or [])[ref.axis])
                dims.append(_sizes(ref.tensor, op, shapes)[ref.axis])
            else:
                axes.append(ref)
                dims.append(ref.size)
        result.append(_term("macs", 1.0, axes, dims, known))
    return result


def _sizes(name: str, op: Op, shapes: Shapes) -> tuple[int, ...]:
    """The shape of a tensor with as many axes as it has at the probe sizes; a Squeeze takes some of one sample away."""
    found, usual = shapes.dims.get(name), op.shapes.dims[name] or ()
    if not found:
        return usual
    if len(found) == len(usual):
        return found
    return tuple(1 if dynamic else size for size, dynamic in zip(usual, op.shapes.dynamic[name], strict=True))


def _times(terms: Sequence[tuple[Op, Sequence[Term]]], shapes: Shapes) -> dict[int, float]:
    """How often each operator counts, by identity: as often as the body it is in runs.

    Of the branches of an If only the one taken for one sample counts; where that is not known, the more expensive one
    of the whole model. A loop counts as often as it runs, once where that is not known.
    """
    whole: dict[int, float] = {}
    branches: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for op, products in terms:  # what is inside of an operator comes before it
        repeats = op.facts.repeats(shapes) if op.facts.repeats is not None else 1.0
        inside = branches[id(op)]
        whole[id(op)] = sum(each.value({}) for each in products) + max(inside.values(), default=0.0) * repeats
        if op.within is not None:
            owner, name = op.within
            branches[id(owner)][name] += whole[id(op)]
    times: dict[int, float] = {}
    for op, _ in reversed(terms):
        times[id(op)] = 1.0
        if op.within is not None:
            owner, name = op.within
            repeats = owner.facts.repeats(shapes) if owner.facts.repeats is not None else 1.0
            counted = _taken(owner, shapes) or max(branches[id(owner)], key=branches[id(owner)].__getitem__)
            times[id(op)] = times[id(owner)] * repeats * (counted == name)
    return times


def _taken(op: Op, shapes: Shapes) -> str | None:
    """The branch of an If that one sample takes, where that is known."""
    known = shapes.values.get(op.node.inputs[0].name) if op.node.op == "If" else None
    return None if known is None else ("else_branch", "then_branch")[bool(known.data.reshape(-1)[0])]


def one_sample(graph: gs.Graph) -> Shapes | None:
    """Shapes for one sample: batch 1, other open dimensions at the first size that the model accepts."""
    dimensions = open_dimensions(graph)
    if not dimensions:
        return None
    best: Shapes | None = None
    for other in OTHER_SIZES:
        shapes = infer_once(graph, {key: 1 if d.kind == "batch" else other for key, d in dimensions.items()})
        if best is None or len(shapes.failures) < len(best.failures):
            best = shapes
        if not best.failures:
            break
    return best


def count(graph: gs.Graph) -> Cost:
    """Count a graph as it is."""
    from surgeon.analysis import solve

    sample = one_sample(graph)
    if sample is not None and sample.failures:  # nothing is known of what comes after a failure
        sample = None
    return CostModel(solve(graph, sample), constants_of(graph), sample).evaluate()


def macs_of_nodes(graph: gs.Graph) -> dict[str, float]:
    """Multiply-accumulates of one sample for each node of a graph, by its first output, those in its bodies included."""
    from surgeon.analysis import solve

    sample = one_sample(graph)
    if sample is not None and sample.failures:
        sample = None
    analysis = solve(graph, sample)
    terms = [(op, _products(op, analysis, sample or analysis.shapes, {})) for op in analysis.ops]
    times = _times(terms, sample or analysis.shapes)
    found: dict[str, float] = defaultdict(float)
    for op, products in terms:
        outermost = op
        while outermost.within is not None:
            outermost = outermost.within[0]
        if outermost.node.outputs:
            name = str(outermost.node.outputs[0].name)
            found[name] += sum(each.value({}) for each in products) * times[id(op)]
    return dict(found)


def constants_of(graph: gs.Graph) -> dict[str, gs.Constant]:
    """Every constant of the graph and of the bodies inside it, by name."""
    return {t.name: t for node in every_node(graph) for t in node.inputs if isinstance(t, gs.Constant)}
