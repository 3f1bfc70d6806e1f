"""Removes channels that nothing reads: every weight that would multiply them is zero.

Constant channels are folded into the next bias first (see `constant_channels`), which zeroes the weights that read them.
The smaller model is compared with the whole one before it is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.axes import atoms_of, coordinates
from surgeon.engine import Model, analyse
from surgeon.errors import GateError
from surgeon.graph.copy import copy_of
from surgeon.graph.weights import peek
from surgeon.verify import prove
from surgeon_passes.cleaning.constant_channels import fold_constant_channels
from surgeon_passes.cleaning.wiring import Wiring, fixed_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from surgeon.axes import Atom
    from surgeon.groups import Group
    from surgeon.ops.op import Op
    from surgeon.passes import Context
    from surgeon.plan import Plan

    Flags = NDArray[np.bool_]

UNROUNDED = ("head", "group")  # counts of blocks, not the width that kernels work on
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def remove_dead_channels(graph: gs.Graph, context: Context, multiple: int) -> tuple[gs.Graph, int]:
    """Fold constant channels and remove dead ones.

    Args:
        graph: The graph; it is not changed.
        context: Gets the certificate of the cut, and takes note of it.
        multiple: Sizes of channel groups that shrink stay multiples of this.

    Returns:
        The graph, a new one if anything was removed, and how many channels went, counted once for each group.
    """
    if not any(_has_empty_slices(node) for node in graph.nodes):
        return graph, 0
    original, graph = graph, copy_of(graph)
    fold_constant_channels(Wiring(graph))
    cuts: list[tuple[Model, Plan]] = []
    while True:
        model = analyse(graph)
        wanted = {group.id: _rounded(_needed(model, group), group, multiple) for group in model.groups}
        kept = {name: flags for name, flags in wanted.items() if not flags.all()}
        if not kept:
            break
        smaller, plan = model.cut(kept, context.model_sha256)
        try:
            # nothing is masked: without what nobody reads, the outputs are those of the whole
            certificate = prove(model.analysis, smaller, {}, threads=context.threads, folder=context.scratch)
        except GateError as error:
            context.warn(f"clean leaves dead channels in place: {error.message}")
            return original, 0
        context.record["certificate"] = certificate.to_json()
        for key in (
            vars(graph).keys() - vars(smaller).keys()
        ):  # where the graph came from, which copies forget
            setattr(smaller, key, vars(graph)[key])
        cuts.append((model, plan))
        graph = smaller
    for model, plan in cuts:
        context.note_cut(model, plan, lossless=True)
    removed = sum(group.size - len(group.kept) for _, plan in cuts for group in plan.groups)
    return (graph, removed) if removed else (original, 0)


def _has_empty_slices(node: gs.Node) -> bool:
    """Whether a layer's weight has a row or column of zeros; most have no zero at all, which is quick to see."""
    if node.op not in LAYERS:
        return False
    for tensor in node.inputs[:2]:
        weight = fixed_values(tensor)
        if (
            weight is None
            or weight.ndim < 2
            or weight.dtype.kind != "f"
            or np.count_nonzero(weight) == weight.size
        ):
            continue
        axes = (-2, -1) if node.op == "MatMul" else (0, 1)
        if any(not _used(weight, axis % weight.ndim).all() for axis in axes):
            return True
    return False


def _used(weight: NDArray[Any], axis: int) -> Flags:
    """Which positions of one axis have a nonzero anywhere."""
    return np.asarray(np.any(weight != 0, axis=tuple(k for k in range(weight.ndim) if k != axis)))


def _needed(model: Model, group: Group) -> Flags:
    """Which indices of a group some weight multiplies; all of them where it cannot be told, at least one in any case."""
    everything, needed, read = np.ones(group.size, bool), np.zeros(group.size, bool), False
    for op in model.analysis.ops:
        if any(group.atom in atoms_of(reduction.axis) for reduction in op.facts.reductions):
            return everything
        contracted = {
            atom for axes in op.facts.contracted.values() for axis in axes for atom in atoms_of(axis)
        }
        if group.atom in contracted:
            needed |= _multiplied(model, op, group.atom)
            read = True
    if not read:
        return everything
    needed[0] |= not needed.any()
    return needed


def _rounded(needed: Flags, group: Group, multiple: int) -> Flags:
    """Keeps as many dead indices, the first ones, as make the size a multiple."""
    missing = -int(needed.sum()) % (1 if group.kind in UNROUNDED else multiple)
    result = needed.copy()
    result[np.flatnonzero(~needed)[:missing]] = True
    return result


def _multiplied(model: Model, op: Op, atom: Atom) -> Flags:
    """Which indices of a contracted atom meet a nonzero weight in every constant operand."""
    result = np.ones(atom.size, bool)
    for index, contracted in op.facts.contracted.items():
        tensor = op.node.inputs[index]
        if not isinstance(tensor, gs.Constant):
            continue
        axes = model.analysis.axes.get(tensor.name) or []
        # a square weight has the atom on both sides; only the side that is summed over counts, where it can be told
        mentions = [k for k, axis in enumerate(axes) if coordinates(axis, atom)]
        summed = [k for k in mentions if any(axes[k] is each for each in contracted)]
        here = np.zeros(atom.size, bool)
        for k in summed or mentions:
            used = _used(peek(tensor), k)
            for places in coordinates(axes[k], atom):
                here[places[used & (places >= 0)]] = True
                here |= bool((used & (places < 0)).any())
        result &= here
    return result
