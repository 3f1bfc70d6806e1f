"""Surgery: a graph and what to keep of its atoms become a smaller graph."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from surgeon.axes import Atom, Axis, Concat, Keep, Selection, atoms_of, coordinates, mask, normal
from surgeon.errors import InternalError
from surgeon.graph.copy import copy_of
from surgeon.graph.order import every_node, graphs, nodes_in_graphs, ordered
from surgeon.graph.weights import derived
from surgeon.ops import Emitter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from surgeon.analysis import Analysis


def cut(analysis: Analysis, keep: Keep) -> gs.Graph:
    """Remove everything that is not kept.

    Args:
        analysis: The solved graph; it is not changed.
        keep: Boolean array ``[size]`` per atom; atoms not named stay whole.

    Returns:
        A new graph; constants that lose nothing are shared with the old one.

    Raises:
        InternalError: An axis would lose all its positions.
    """
    graph = copy_of(analysis.graph)
    for op, (inside, node) in zip(analysis.ops, list(nodes_in_graphs(graph)), strict=True):
        if op.facts.emit:
            emitter = Emitter(inside, node, op, keep)
            for action in op.facts.emit:
                action(emitter)
    _slice_constants(analysis, graph, keep)
    _rejoin(analysis, graph, keep)
    outputs = {id(tensor) for tensor in (*graph.inputs, *graph.outputs)}
    for each in graphs(graph):
        each.nodes = ordered(each.nodes)
        _declare(each, analysis, keep)
        for node in each.nodes:
            for tensor in node.outputs:
                if id(tensor) not in outputs:
                    tensor.shape = None
    return graph


def _declare(graph: gs.Graph, analysis: Analysis, keep: Keep) -> None:
    """Correct the declared shapes of what a graph or body gets and gives; onnxruntime reads them."""
    interface = dict(graph.__dict__.get("surgeon_interface", {}))
    for tensor in (*graph.inputs, *graph.outputs):
        masks = axis_masks(analysis.axes.get(tensor.name), keep)
        entry = interface.get(tensor.name)
        if masks and entry is not None:
            declared = onnx.ValueInfoProto()
            declared.CopyFrom(entry)
            for axis, dim in enumerate(declared.type.tensor_type.shape.dim):
                if axis in masks and dim.HasField("dim_value"):
                    dim.dim_value = int(masks[axis].sum())
            interface[tensor.name] = declared
        if masks and isinstance(tensor, gs.Variable) and tensor.shape is not None:
            tensor.shape = [
                int(masks[axis].sum()) if axis in masks and isinstance(size, int) else size
                for axis, size in enumerate(tensor.shape)
            ]
    graph.surgeon_interface = interface


def without_empty_axes(analysis: Analysis, keep: Keep) -> dict[Atom, NDArray[np.bool_]]:
    """``keep`` with as little added as is needed for every axis to keep a position.

    Only a selection can be left empty: its atoms keep something, but perhaps nothing that it selects.
    """
    result = dict(keep)
    for axes in analysis.axes.values():
        for axis in axes or ():
            if _has_selection(axis) and axis.size and not mask(axis, result).any():
                for atom in set(atoms_of(axis)) & result.keys():
                    for places in coordinates(axis, atom):
                        if places[0] >= 0:
                            result[atom] = result[atom].copy()
                            result[atom][places[0]] = True
    return result


def _has_selection(axis: Axis) -> bool:
    axis = normal(axis)
    if isinstance(axis, Atom):
        return False
    if isinstance(axis, Selection):
        return True
    return any(map(_has_selection, axis.parts if isinstance(axis, Concat) else axis.factors))


def _slice_constants(analysis: Analysis, graph: gs.Graph, keep: Keep) -> None:
    done: set[int] = set()
    for node in every_node(graph):
        for tensor in node.inputs:
            if id(tensor) in done or not isinstance(tensor, gs.Constant):
                continue
            done.add(id(tensor))
            masks = axis_masks(analysis.axes.get(tensor.name), keep)
            if masks:
                shape = [int(masks[k].sum()) if k in masks else size for k, size in enumerate(tensor.shape)]
                tensor.values = derived(tensor, partial(sliced, masks=masks), shape)


def _rejoin(analysis: Analysis, graph: gs.Graph, keep: Keep) -> None:
    """Copies of one vector that lost the same positions become one constant again."""
    first: dict[tuple[object, ...], gs.Constant] = {}
    for node in every_node(graph):
        for index, tensor in enumerate(node.inputs):
            origin = vars(tensor).get("origin")
            if origin is not None and isinstance(tensor, gs.Constant):
                masks = axis_masks(analysis.axes.get(tensor.name), keep)
                left = tuple((axis, kept.tobytes()) for axis, kept in sorted(masks.items()))
                kept_one = first.setdefault((origin, *left), tensor)
                if kept_one is not tensor:
                    node.inputs[index] = kept_one


def axis_masks(axes: list[Axis] | None, keep: Keep) -> dict[int, NDArray[np.bool_]]:
    """The axes of a tensor that lose positions, with what stays of each.

    Raises:
        InternalError: Nothing would stay.
    """
    result = {}
    for k, axis in enumerate(axes or ()):
        if any(atom in keep for atom in atoms_of(axis)):
            kept = mask(axis, keep)
            if not kept.any():
                raise InternalError(f"nothing would be left of {axis!r}")
            if not kept.all():
                result[k] = kept
    return result


def sliced(values: NDArray[Any], masks: Mapping[int, NDArray[np.bool_]]) -> NDArray[Any]:
    """``values`` without the positions masked out, contiguous; the axis that shrinks most goes first."""
    for axis in sorted(masks, key=lambda k: masks[k].mean()):
        values = np.compress(masks[axis], values, axis=axis)
    return np.ascontiguousarray(values)


def tensor_cuts(analysis: Analysis, keep: Keep) -> dict[str, dict[int, tuple[int, ...]]]:
    """For each constant of the input file that shrinks, the indices kept per axis.

    Copies that were split from one shared constant are merged: what any of them keeps counts as kept.
    """
    merged: dict[str, dict[int, NDArray[np.bool_]]] = {}
    seen: set[str] = set()
    for op in analysis.ops:
        for tensor in op.node.inputs:
            if not isinstance(tensor, gs.Constant) or tensor.name in seen:
                continue
            seen.add(tensor.name)
            masks = axis_masks(analysis.axes.get(tensor.name), keep)
            origin = getattr(tensor, "origin", tensor.name)
            if origin in merged:
                old = merged[origin]
                merged[origin] = {k: old[k] | masks[k] for k in old.keys() & masks.keys()}
            else:
                merged[origin] = masks
    return {
        name: {k: tuple(np.flatnonzero(kept).tolist()) for k, kept in masks.items() if not kept.all()}
        for name, masks in merged.items()
        if any(not kept.all() for kept in masks.values())
    }


def interface_cuts(analysis: Analysis, keep: Keep) -> dict[str, dict[int, tuple[int, ...]]]:
    """For each input and output of the model that shrinks, the indices kept per axis."""
    ends = {tensor.name for tensor in (*analysis.graph.inputs, *analysis.graph.outputs)}
    masks = {name: axis_masks(analysis.axes.get(name), keep) for name in sorted(ends)}
    return {
        name: {axis: tuple(np.flatnonzero(kept).tolist()) for axis, kept in found.items()}
        for name, found in masks.items()
        if found
    }


def keep_of(
    kept: Mapping[str, NDArray[np.bool_]], atoms: Mapping[str, Atom]
) -> dict[Atom, NDArray[np.bool_]]:
    """Translate what is kept by group id to what is kept by atom; groups that lose nothing are left out."""
    return {atoms[name]: flags for name, flags in kept.items() if not flags.all()}
