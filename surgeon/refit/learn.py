"""Rounding that is learned: the integers of a quantized graph's weights, block by block, by gradients.

While a block learns, each of its weights is a number of steps that is rounded on the way to its operator. Gradients pass
the rounding straight through (Bengio, Léonard and Courville, arXiv 1308.3432), and the block aims at what the float graph
has there, as in Nagel et al., arXiv 2004.10568, and Li et al., arXiv 2102.05426. What is judged on held-out samples is
the block with its weights rounded, so that what is taken is on the grid as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.graph.copy import copy_of
from surgeon.graph.weights import peek
from surgeon.refit.block import Reconstructed, reconstruct
from surgeon.refit.keeping import of_originals, tie_of
from surgeon.refit.soften import rounded_on_the_way
from surgeon.refit.twins import Twins
from surgeon.stats.weight import is_rounded, is_shared, weight_chain, weight_values

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.grad.ties import Tie
    from surgeon.grad.train import Course
    from surgeon.reference import Reference
    from surgeon.stats.grid import Grid

    Array = NDArray[Any]
    Feeds = Sequence[Mapping[str, Array]]


@dataclass
class Learned:
    """What was learned.

    Attributes:
        blocks: What training did to each block.
        changed: How many integers are others, and of how many.
        left: Weighted operators whose weights stay as they are, and why.
    """

    blocks: Reconstructed
    changed: tuple[int, int] = (0, 0)
    left: dict[str, str] = field(default_factory=dict)


def learn_rounding(
    graph: gs.Graph,
    reference: Reference,
    feeds: Feeds,
    course: Course,
    *,
    threads: int = 1,
    limit_bytes: int = 2**31,
    excluded: Callable[[str], bool] = lambda _: False,
    progress: Callable[[int], None] = lambda _: None,
) -> Learned:
    """Learn the integers of the weights, in place.

    Args:
        graph: A quantized graph; scales and zero points stay as they are.
        reference: The float graph it was made from.
        feeds: Batches of inputs, without labels.
        course: How each block is trained; the rate is in steps of the grid.
        threads: Threads for onnxruntime.
        limit_bytes: Activations held in memory, per graph, and those of a step.
        excluded: Whether a node or tensor, by name, is to be left alone.
        progress: Called with 1 after every step of a block.
    """
    work = copy_of(graph)
    soft, left, ties = _soften(work, reference, excluded)
    _rename(work)
    others = {
        tensor.name for node in work.nodes for tensor in node.inputs if isinstance(tensor, gs.Constant)
    } - {tensor.name for tensor, _ in soft.values()}
    blocks = reconstruct(
        work,
        reference,
        feeds,
        course,
        threads=threads,
        limit_bytes=limit_bytes,
        excluded=lambda name: name in others,
        ties=ties,
        progress=progress,
    )
    changed = total = 0
    constants = {
        tensor.name: tensor
        for node in graph.nodes
        for tensor in node.inputs
        if isinstance(tensor, gs.Constant)
    }
    for name, (tensor, grid) in soft.items():
        constant = constants[name]
        before = peek(constant)
        after = np.clip(np.rint(peek(tensor)), grid.least, grid.most).astype(before.dtype)
        differing = int((after.astype(np.int64) != before.astype(np.int64)).sum())
        changed, total = changed + differing, total + before.size
        if differing:
            constant.values = after
    return Learned(blocks, (changed, total), left)


def _soften(
    graph: gs.Graph, reference: Reference, excluded: Callable[[str], bool]
) -> tuple[dict[str, tuple[gs.Constant, Grid]], dict[str, str], dict[str, Tie]]:
    """Let weights be numbers of steps that are rounded.

    Returns:
        The numbers by the name the weight had, what is left, and what of the numbers, by their own names, stays zero or moves
        together: what the original's weight promises.
    """
    twins = Twins.of(graph, reference)
    soft: dict[str, tuple[gs.Constant, Grid]] = {}
    left = dict(twins.left)
    promised = of_originals(graph, reference)
    ties: dict[str, Tie] = {}
    for twin in twins.found:
        tensor = twin.node.inputs[twin.view.weight]
        if any(excluded(name) for name in (twin.node.name, tensor.name) if name):
            left[twin.label] = "excluded"
        elif not is_rounded(tensor):
            left[twin.label] = "its weight is not rounded"
        elif not twin.view.output:
            left[twin.label] = "its products are no tensors"
        elif is_shared(tensor):
            left[twin.label] = "its weight is shared"
        elif twin.is_folded:
            left[twin.label] = "its weight has taken in what scales its result in the original"
        else:
            chain: Any = weight_chain(tensor)
            theirs = twin.original.op.node.inputs[twin.original.weight]
            name = chain[0].name
            promise = promised.get((id(twin.node), twin.view.weight))
            tie = None if promise is None else tie_of(twin.view, tensor, promise)
            soft[name] = rounded_on_the_way(graph, chain[0], tensor, weight_values(theirs))
            if tie is not None:
                ties[soft[name][0].name] = tie
    return soft, left, ties


def _rename(graph: gs.Graph) -> None:
    """Give what a tensor has become by rounding the name that the tensor had.

    Activations that a quantizer left out are part of the rounding, so that only then is it what the original calls so.
    """
    for node in list(graph.nodes):
        if node.op != "DequantizeLinear" or isinstance(node.inputs[0], gs.Constant):
            continue
        makers = node.inputs[0].inputs
        if len(makers) != 1 or makers[0].op != "QuantizeLinear" or len(node.inputs[0].outputs) != 1:
            continue
        before, after = makers[0].inputs[0], node.outputs[0]
        interface = (*graph.inputs, *graph.outputs)
        if isinstance(before, gs.Constant) or len(before.outputs) != 1:
            continue
        if any(each is tensor for each in (before, after) for tensor in interface):
            continue
        before.name, after.name = f"{before.name}/surgeon/unrounded", before.name
