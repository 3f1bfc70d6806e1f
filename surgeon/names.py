"""Finding what a user means by a name: a node, a tensor, one of its axes, or a channel group."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import onnx_graphsurgeon as gs

from surgeon.analysis import UNENTERED
from surgeon.coupling import TensorAxis
from surgeon.errors import UsageError
from surgeon.graph.order import every_node, graphs
from surgeon.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from surgeon.engine import Model
    from surgeon.ops.op import Op

INSIDE = "inside an operator that is not understood, so it is not analysed, and what it reads is pinned"
FOLDED = "arithmetic on shapes and constants, or unused: it is computed once, before the analysis"
_FIRST = "names of the graph the run began with"
UNRANKED = "not even the number of its axes is known, so whatever touches it is pinned"


@dataclass(frozen=True)
class Subject:
    """What a name stands for.

    Attributes:
        name: As the user wrote it.
        kind: node, tensor, axis or group.
        axes: The axes it is about.
        operator: The node's place in the analysed graph, or None.
        note: What else there is to know, or None.
    """

    name: str
    kind: str
    axes: tuple[TensorAxis, ...]
    operator: int | None = None
    note: str | None = None


def pattern_of(name: str) -> str:
    """Returns the pattern that matches a name and nothing else."""
    return re.sub(r"([*?[])", r"[\1]", name)


def misspelt(patterns: Iterable[str], known: Collection[str]) -> str | None:
    """Returns the first pattern that matches no known name, as shell wildcards do; ``NAME__2`` is a use of ``NAME``."""
    for pattern in patterns:
        meant = {pattern, re.sub(r"__\d+$", "", pattern)}
        if not any(fnmatchcase(name, each) for each in meant for name in known):
            return pattern
    return None


def names_known(graph: gs.Graph, kept: dict[str, Any]) -> set[str]:
    """Returns the names of all nodes and tensors of a graph and of the graph the run began with.

    Args:
        graph: The graph.
        kept: What a run keeps: the names of the first graph it is asked about.
    """
    mine = Names(graph)
    now = mine.nodes | mine.tensors
    first: set[str] = kept.setdefault(_FIRST, now)
    return now | first


class Names:
    """All names of a model as it came from its file, before shape arithmetic is folded away."""

    def __init__(self, graph: gs.Graph) -> None:
        nodes = list(every_node(graph))
        ends = [tensor for each in graphs(graph) for tensor in (*each.inputs, *each.outputs)]
        self.nodes = {node.name for node in nodes if node.name}
        self.tensors = {
            tensor.name
            for tensors in (ends, *((*node.inputs, *node.outputs) for node in nodes))
            for tensor in tensors
            if tensor.name
        }

    def find(self, name: str, model: Model) -> Subject:
        """What ``name`` stands for in the analysed ``model``.

        Raises:
            UsageError: Nothing has that name, or the tensor has no such axis.
        """
        found = self._whole(name, model) or _group(name, model) or self._axis(name, model)
        if found is not None:
            return found
        known = self.nodes | self.tensors
        tensor = name.rpartition(":")[0]
        hint = did_you_mean(tensor or name, known, what="names")
        raise UsageError("no node, tensor or tensor:axis has this name", where=name, hint=hint)

    def _whole(self, name: str, model: Model) -> Subject | None:
        for index, op in enumerate(model.analysis.ops):
            if op.node.name == name:
                return Subject(name, "node", _axes_of_node(op, model), index)
        if name in model.analysis.axes:
            axes = _axes_of_tensor(name, model)
            note = UNRANKED if model.analysis.axes[name] is None else _split_note(name, model)
            return Subject(name, "tensor", axes, note=note)
        copies = _copies(name, model)
        if copies:
            axes = tuple(axis for copy in copies for axis in _axes_of_tensor(copy, model))
            return Subject(name, "tensor", axes, note=f"analysed as {', '.join(copies)}, one for each use")
        kind = "node" if name in self.nodes else "tensor"
        if name in self.nodes | self.tensors:
            return Subject(name, kind, (), note=INSIDE if _is_inside(name, model) else FOLDED)
        return None

    def _axis(self, name: str, model: Model) -> Subject | None:
        tensor, colon, text = name.rpartition(":")
        whole = self._whole(tensor, model) if colon and text.lstrip("-").isdigit() else None
        if whole is None:
            return None
        axes = _axes_of_tensor(tensor, model) if tensor in model.analysis.axes else ()
        number = int(text)
        if whole.note is not None and not axes:
            return Subject(name, "axis", (), note=whole.note)
        if not -len(axes) <= number < len(axes):
            has = f"its axes are 0 to {len(axes) - 1}" if axes else "it has no axes"
            hint = None if tensor in self.tensors else "only tensors have axes, nodes do not"
            raise UsageError(f"has no axis {number}: {has}", where=tensor, hint=hint)
        return Subject(name, "axis", (axes[number],))


def _is_inside(name: str, model: Model) -> bool:
    """Whether the tensor belongs to an operator in a body that was not analysed."""
    return any(
        tensor.name == name
        for op in model.analysis.ops
        if op.facts.barrier == UNENTERED
        for tensor in (*op.node.inputs, *op.node.outputs)
    )


def _group(name: str, model: Model) -> Subject | None:
    group = next((group for group in model.groups if group.id == name and "#" in name), None)
    return None if group is None else Subject(name, "group", (TensorAxis(*group.members[0]),))


def _axes_of_tensor(name: str, model: Model) -> tuple[TensorAxis, ...]:
    return tuple(TensorAxis(name, k) for k in range(len(model.analysis.axes.get(name) or ())))


def _axes_of_node(op: Op, model: Model) -> tuple[TensorAxis, ...]:
    """The axes a node makes, and those of its weights."""
    weights = [tensor.name for tensor in op.node.inputs if isinstance(tensor, gs.Constant) and tensor.name]
    made = [tensor.name for tensor in op.node.outputs if tensor.name]
    return tuple(axis for name in dict.fromkeys((*made, *weights)) for axis in _axes_of_tensor(name, model))


def _copies(name: str, model: Model) -> list[str]:
    """The constants that a shared one was split into."""
    tensors = [tensor for op in model.analysis.ops for tensor in op.node.inputs]
    return list(dict.fromkeys(t.name for t in tensors if vars(t).get("origin") == name and t.name != name))


def _split_note(name: str, model: Model) -> str | None:
    copies = _copies(name, model)
    return f"shared; its other uses are analysed as {', '.join(copies)}" if copies else None
