"""What a cut reaches: tensors whose values change, and tensors that are not the same in both graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.axes import Keep, mask
from surgeon.graph.order import needs
from surgeon.graph.shapes import infer
from surgeon.stats.replay import Replay

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.analysis import Analysis
    from surgeon.axes import Axis
    from surgeon.ops import Op
    from surgeon.stats.linear import Linear

    Array = NDArray[Any]


def changed(analysis: Analysis, keep: Keep) -> set[str]:
    """Tensors whose kept part differs from the original's: everything behind a sum over an axis that lost something."""

    def loses(op: Op) -> bool:
        summed = [axis for axes in op.facts.contracted.values() for axis in axes]
        return any(not mask(axis, keep).all() for axis in (*summed, *(r.axis for r in op.facts.reductions)))

    return _behind(analysis, loses)


def touched(analysis: Analysis, keep: Keep) -> set[str]:
    """Tensors that are not the same in both graphs: everything that was cut, and what is behind it."""
    cut = {
        name for name, axes in analysis.axes.items() if any(not mask(axis, keep).all() for axis in axes or ())
    }
    return _behind(analysis, lambda op: any(t.name in cut for t in (*op.node.inputs, *op.node.outputs)))


def beside(original: Replay, analysis: Analysis, graph: gs.Graph, names: set[str]) -> Replay:
    """A run of a cut graph that takes from a run of the original what is the same in both.

    Args:
        original: The run of the analysed graph.
        analysis: What was cut.
        graph: The cut graph.
        names: Tensors that differ, see `touched`.
    """
    dtypes = infer(graph).dtypes
    dtypes |= {name: kind for name, kind in analysis.shapes.dtypes.items() if name in names - dtypes.keys()}
    return _beside(original, graph, dtypes, _own(graph, analysis, names, dtypes))


def _beside(original: Replay, graph: gs.Graph, dtypes: Mapping[str, int], within: set[str]) -> Replay:
    return Replay(
        graph,
        dtypes,
        [{}] * original.batches,
        threads=original.threads,
        limit_bytes=original.store.limit,
        within=within,
        source=original,
        more=None if original.more is None else _beside(original.more, graph, dtypes, within),
    )


def kept_weight(analysis: Analysis, view: Linear, keep: Keep) -> NDArray[np.bool_]:
    """Which entries of the original's matrices ``[groups, inputs, outputs]`` are kept."""
    axes = analysis.axes[view.op.node.inputs[view.weight].name] or []
    flags = np.ones([axis.size for axis in axes], bool)
    for k, axis in enumerate(axes):
        flags &= np.expand_dims(mask(axis, keep), [j for j in range(len(axes)) if j != k])
    return np.asarray(view.matrices(view.op.node, flags))


def kept_part(array: Array, axes: Sequence[Axis], keep: Keep) -> Array:
    """What a cut leaves of an array of the original, given the axes of its tensor."""
    for k, axis in enumerate(axes):
        kept = mask(axis, keep)
        if not kept.all() and array.shape[k] == len(kept):
            array = np.compress(kept, array, axis=k)
    return array


def _own(graph: gs.Graph, analysis: Analysis, names: set[str], dtypes: Mapping[str, int]) -> set[str]:
    """What a cut graph has to compute itself.

    That is ``names``, what the analysed graph has not (arithmetic that was folded there), and sequences that these
    read, which cannot be handed over: they have no type.
    """
    given = {t.name for node in analysis.graph.nodes for t in node.outputs}
    found = set(names)
    for node in reversed(graph.nodes):
        made = {tensor.name for tensor in node.outputs if tensor.name}
        if made & found or made - given:
            found |= made
            found |= {t.name for t in needs(node) if not isinstance(t, gs.Constant) and t.name not in dtypes}
    return found


def _behind(analysis: Analysis, starts: Callable[[Op], bool]) -> set[str]:
    """The outputs of operators that ``starts`` picks, and everything computed from them."""
    found: set[str] = set()
    owners: set[int] = set()  # operators with a body in which something was found
    for op in analysis.ops:
        if starts(op) or id(op) in owners or any(t.name in found for t in needs(op.node)):
            found |= {tensor.name for tensor in op.node.outputs if tensor.name}
            if op.within is not None:
                owners.add(id(op.within[0]))
    return found
