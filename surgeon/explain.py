"""Why something can or cannot shrink, and through which operators two things are coupled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from surgeon.axes import Atom, Axis, Concat, Product, Selection, atoms_of, normal
from surgeon.coupling import TensorAxis, chain, chain_to_reason, coupling
from surgeon.engine import analyse
from surgeon.graph.copy import copy_of
from surgeon.graph.views import Operator, Tensor, ancestors, data_flow, descendants, run_order, way
from surgeon.names import Names, Subject

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import networkx as nx
    import onnx_graphsurgeon as gs

    from surgeon.coupling import Shared, Step
    from surgeon.engine import Model
    from surgeon.graph.views import Vertex
    from surgeon.groups import Group

SHOWN_PARTS = 8


def explain(graph: gs.Graph, name: str, other: str | None = None) -> dict[str, Any]:
    """Explains one name, or how two names are related; the graph is not changed.

    Args:
        graph: The model.
        name: A node, a tensor, ``tensor:axis``, or the id of a channel group.
        other: The same, or None.

    Returns:
        A JSON object; `surgeon.wording.render` puts it into sentences.

    Raises:
        UsageError: There is no such node, tensor or axis.
    """
    names = Names(graph)
    model = analyse(copy_of(graph))
    subjects = [names.find(each, model) for each in ((name,) if other is None else (name, other))]
    explainer = _Explainer(model)
    answer = explainer.alone(subjects[0]) if other is None else explainer.together(*subjects)
    return {"schema": 1, **answer}


@dataclass
class _Explainer:
    model: Model

    def __post_init__(self) -> None:
        self.coupling: nx.MultiGraph = coupling(self.model.analysis)
        self.flow: nx.MultiDiGraph = data_flow(self.model.analysis.graph)
        self.groups: dict[Atom, Group] = {group.atom: group for group in self.model.groups}

    # One name -----------------------------------------------------------------------------------------------------

    def alone(self, subject: Subject) -> dict[str, Any]:
        """Everything there is to say about one name."""
        return {
            "name": subject.name,
            "is": subject.kind,
            "note": subject.note,
            "node": None if subject.operator is None else self._node(subject.operator),
            "axes": [self._axis(where) for where in subject.axes],
            "flow": self._ends(subject),
        }

    def _node(self, index: int) -> dict[str, Any]:
        op = self.model.analysis.ops[index]
        name = op.node.name or op.node.outputs[0].name
        return {
            "name": op.name,
            "barrier": op.facts.barrier,
            "writes": [group.id for group in self.model.groups if name in group.producers],
            "reads": [group.id for group in self.model.groups if name in group.consumers],
        }

    def _axis(self, where: TensorAxis) -> dict[str, Any]:
        axis = (self.model.analysis.axes[where.tensor] or [])[where.axis]
        atoms = list(dict.fromkeys(atoms_of(axis)))
        groups = [self.groups[atom] for atom in atoms if atom in self.groups]
        reasons = {atom.pinned: atom for atom in atoms if atom.pinned is not None}
        return {
            "tensor": where.tensor,
            "axis": where.axis,
            "size": axis.size,
            "dynamic": self._dynamic(where),
            "made_of": made_of(axis, self.groups),
            "can_shrink": bool(groups),
            "groups": [
                {"id": g.id, "kind": g.kind, "size": g.size, "structural": g.structural, "members": len(g.members),
                 "producers": g.producers, "consumers": g.consumers}
                for g in groups
            ],
            "pinned": [
                {"size": atom.size, "reason": str(reason), "op": reason.op, "why": reason.why,
                 "path": _path(chain_to_reason(self.coupling, [where], atom))}
                for reason, atom in reasons.items()
            ],
        }  # fmt: skip

    def _dynamic(self, where: TensorAxis) -> bool:
        """Whether the size is only the one the analysis looked at."""
        flags = self.model.analysis.shapes.dynamic.get(where.tensor, ())
        return where.axis < len(flags) and flags[where.axis]

    def _ends(self, subject: Subject) -> dict[str, list[str]]:
        """The graph inputs that reach it, and the graph outputs it reaches."""
        graph = self.model.analysis.graph
        vertices = self._vertices(subject)
        before = ancestors(self.flow, vertices) | set(vertices)
        after = descendants(self.flow, vertices) | set(vertices)
        return {
            "inputs": [tensor.name for tensor in graph.inputs if Tensor(tensor.name) in before],
            "outputs": [tensor.name for tensor in graph.outputs if Tensor(tensor.name) in after],
        }

    def _vertices(self, subject: Subject) -> list[Vertex]:
        if subject.operator is not None:
            return [Operator(subject.operator)]
        found: list[Vertex] = [Tensor(where) for where in dict.fromkeys(each.tensor for each in subject.axes)]
        return [vertex for vertex in found if vertex in self.flow]

    # Two names ----------------------------------------------------------------------------------------------------

    def together(self, first: Subject, second: Subject) -> dict[str, Any]:
        """What two names have in common, with the chain of operators for each."""
        here, there = self._atoms(first), self._atoms(second)
        common = [atom for atom in here if atom in there]
        if "axis" not in (
            first.kind,
            second.kind,
        ):  # whole tensors nearly always share a batch, which says nothing
            common = [atom for atom in common if atom.pinned is None]
        couplings = [self._coupling(atom, here[atom], there[atom]) for atom in common]
        return {
            "names": [first.name, second.name],
            "coupled": bool(couplings),
            "couplings": couplings,
            "sides": [self.alone(first), self.alone(second)],
            "between": self._between(first, second),
        }

    def _atoms(self, subject: Subject) -> dict[Atom, list[TensorAxis]]:
        found: dict[Atom, list[TensorAxis]] = {}
        for where in subject.axes:
            for atom in dict.fromkeys(atoms_of((self.model.analysis.axes[where.tensor] or [])[where.axis])):
                found.setdefault(atom, []).append(where)
        return found

    def _coupling(
        self, atom: Atom, here: Sequence[TensorAxis], there: Sequence[TensorAxis]
    ) -> dict[str, Any]:
        group = self.groups.get(atom)
        shared: Shared = atom
        steps = chain(self.coupling, here, there, shared)
        return {
            "group": group.id if group else None,
            "kind": group.kind if group else None,
            "size": atom.size,
            "pinned": str(atom.pinned) if atom.pinned else None,
            "axes": sorted({str(where) for where in here} & {str(where) for where in there}),
            "path": _path(steps),
        }

    def _between(self, first: Subject, second: Subject) -> dict[str, Any]:
        """How data get from one to the other, or the last operator both depend on."""
        one, two = self._vertices(first), self._vertices(second)
        for source, goal, starts, ends in ((first, second, one, two), (second, first, two, one)):
            path = way(self.flow, starts, ends)
            if path is not None:
                return {"from": source.name, "to": goal.name, "through": self._labels(path), "common": None}
        common = ancestors(self.flow, one) & ancestors(self.flow, two)
        last = [operator for operator in run_order(self.flow) if operator in common][-1:]
        return {"from": None, "to": None, "through": [], "common": next(iter(self._labels(last)), None)}

    def _labels(self, vertices: Iterable[Vertex]) -> list[str]:
        return [self.flow.nodes[vertex]["label"] for vertex in vertices if isinstance(vertex, Operator)]


def _path(steps: Sequence[Step] | None) -> list[dict[str, str]] | None:
    if steps is None:
        return None
    return [{"op": step.op, "from": str(step.start), "to": str(step.end)} for step in steps]


def made_of(axis: Axis, groups: dict[Atom, Group]) -> str:
    """An axis in words, such as ``head(12) × head_dim(64)``, ``channel1(64) + channel2(32)`` or ``pinned(3)``."""
    labels: dict[Atom, str] = {}
    used: dict[str, list[Atom]] = {}
    for atom in dict.fromkeys(atoms_of(axis)):
        kind = "pinned" if atom.pinned is not None else groups[atom].kind if atom in groups else "free"
        used.setdefault(kind, []).append(atom)
    for kind, atoms in used.items():
        numbered = len(atoms) > 1 and kind != "pinned"
        for number, atom in enumerate(atoms, 1):
            labels[atom] = f"{kind}{number if numbered else ''}({atom.size})"
    return _words(axis, labels)


def _words(axis: Axis, labels: dict[Atom, str], inside: bool = False) -> str:
    axis = normal(axis)
    if isinstance(axis, Atom):
        return labels.get(axis, str(axis.size))
    if isinstance(axis, Selection):
        whole = sorted(axis.indices.tolist()) == list(range(axis.base.size))
        base = _words(axis.base, labels)
        return f"reordered({base})" if whole else f"{axis.size} of {axis.base.size} from ({base})"
    if isinstance(axis, Concat):
        parts = [_words(part, labels, inside=True) for part in axis.parts[:SHOWN_PARTS]]
        if len(axis.parts) > SHOWN_PARTS:
            parts.append(f"{len(axis.parts) - SHOWN_PARTS} more parts")
        text = " + ".join(parts) or "0"
    else:
        assert isinstance(axis, Product)
        text = " × ".join(_words(factor, labels, inside=True) for factor in axis.factors) or "1"
        inside = inside and len(axis.factors) > 1
    return f"({text})" if inside else text
