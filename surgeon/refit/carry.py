"""Weights that were refitted after one cut, carried over to a graph that is cut further."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.axes import Keep, mask
from surgeon.graph.weights import peek
from surgeon.refit.behind import kept_weight
from surgeon.refit.norms import FITTED, is_norm, put_vector
from surgeon.stats.bias import read_bias, write_bias
from surgeon.stats.grid import grid_of, set_integers
from surgeon.stats.linear import Linear, linear_views
from surgeon.stats.sequences import named_sequences
from surgeon.stats.weight import is_rounded, is_shared, put_weight, weight_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from surgeon.analysis import Analysis

    Array = NDArray[Any]


@dataclass(frozen=True)
class Current:
    """A graph that was cut out of the analysed one: what it keeps, and the graph."""

    keep: Keep
    graph: gs.Graph

    @property
    def nodes(self) -> dict[str, gs.Node]:
        """Its nodes by first output."""
        return {node.outputs[0].name: node for node in self.graph.nodes if node.outputs}


def carry_over(analysis: Analysis, before: Current, after: Current) -> None:
    """Give ``after`` the weights that ``before`` has, in place.

    Args:
        analysis: What both were cut from.
        before: The earlier cut, refitted.
        after: A cut that removes at least as much, with the weights of the original.
    """
    with named_sequences(analysis, before.graph, after.graph):
        _carry(analysis, before, after)


def _carry(analysis: Analysis, before: Current, after: Current) -> None:
    old, new = before.nodes, after.nodes
    for op in analysis.ops:
        name = op.node.outputs[0].name if op.node.outputs else ""
        if name not in old or name not in new:
            continue
        for view in linear_views(op):
            if not is_shared(new[name].inputs[view.weight]):
                _carry_weight(analysis, view, before, after, old, new)
        if is_norm(op):
            _carry_norm(analysis, op.node, before, after, old[name], new[name])


def set_weight(view: Linear, nodes: dict[str, gs.Node], solved: Array) -> None:
    """Let a product have these weights and, as last row, this bias: ``[groups, inputs + 1, outputs]``.

    What is stored as integers gets the nearest ones.
    """
    node = nodes[view.op.node.outputs[0].name]
    tensor = node.inputs[view.weight]
    values = weight_values(tensor)
    if is_rounded(tensor):
        set_integers(tensor, grid_of(tensor).nearest(view.weights(solved[:, :-1], values.shape)))
        if view.bias is not None:
            write_bias(view, nodes, solved[:, -1:])
        return
    weights = view.weights(solved[:, :-1], values.shape).astype(values.dtype)
    node.inputs[view.weight] = put_weight(tensor, weights)
    if view.bias is not None:
        write_bias(view, nodes, solved[:, -1:].astype(values.dtype))


def get_weight(view: Linear, nodes: dict[str, gs.Node]) -> NDArray[np.float64]:
    """The weights of a product with its bias as last row: ``[groups, inputs + 1, outputs]``."""
    node = nodes[view.op.node.outputs[0].name]
    matrices = view.matrices(node, weight_values(node.inputs[view.weight])).astype(np.float64)
    return np.concatenate([matrices, read_bias(view, nodes)], axis=1)


def _carry_weight(
    analysis: Analysis,
    view: Linear,
    before: Current,
    after: Current,
    old: dict[str, gs.Node],
    new: dict[str, gs.Node],
) -> None:
    had, has = (_rows_and_columns(kept_weight(analysis, view, each.keep)) for each in (before, after))
    source, given = get_weight(view, old), get_weight(view, new)
    result = given.copy()
    where = {k: number for number, k in enumerate(had)}
    for number, (k, (rows, columns)) in enumerate(has.items()):
        known_rows, known_columns = had[k]
        result[number] = source[where[k]][np.ix_(rows[known_rows], columns[known_columns])]
    if not np.array_equal(result, given):  # what was never refitted keeps its constants, and gets no bias
        set_weight(view, new, result)


def _rows_and_columns(flags: NDArray[np.bool_]) -> dict[int, tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """For each group that is left, which of its rows (the bias is one more) and columns are."""
    return {
        k: (np.append(each.any(axis=1), True), each.any(axis=0)) for k, each in enumerate(flags) if each.any()
    }


def _carry_norm(
    analysis: Analysis, original: gs.Node, before: Current, after: Current, old: gs.Node, new: gs.Node
) -> None:
    for index in FITTED:
        axis = (analysis.axes[original.inputs[index].name] or [])[0]
        had, has = mask(axis, before.keep), mask(axis, after.keep)
        put_vector(new, index, peek(old.inputs[index])[has[had]])
