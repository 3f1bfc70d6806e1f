"""Batch normalization that is still a node: its two numbers per channel are fitted to what the original computes.

That is what re-estimating its statistics aims at: least squares also sees which part of a channel's variance is error.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.graph.weights import peek

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from surgeon.ops import Op

    Array = NDArray[Any]

EVERY = 6  # one sample in so many is held out
DAMPING = 1e-3
_SCALE, _SHIFT, _MEAN, _VARIANCE = range(1, 5)
FITTED = {_SCALE: "scale", _SHIFT: "shift"}  # inputs


def is_norm(op: Op) -> bool:
    """Whether the operator is batch normalization as in inference, with constants of its own."""
    node = op.node
    return (
        node.op == "BatchNormalization"
        and op.within is None
        and len(node.inputs) == 5
        and not op.attribute("training_mode", 0)
        and all(isinstance(t, gs.Constant) and len(t.shape) == 1 for t in node.inputs[1:])
        and all(len(t.outputs) == 1 for t in node.inputs[_SCALE : _SHIFT + 1])
    )


def refit_norm(node: gs.Node, inputs: Sequence[Array], targets: Sequence[Array]) -> tuple[float, float]:
    """Fit scale and shift of ``node`` where that helps on held-out samples.

    Args:
        node: The node of the cut graph; its constants are replaced.
        inputs: What it gets, ``[samples, channels, ...]`` for each batch.
        targets: What the original has instead of its output, shaped as the inputs.

    Returns:
        The relative error before and after, on the held-out samples.
    """
    scale, shift, mean, variance = (peek(tensor).astype(np.float64) for tensor in node.inputs[1:])
    deviation = np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
    slope = scale / deviation
    offset = shift - mean * slope
    fitted, held_out = (_moments(inputs, targets, part) for part in (False, True))
    if not fitted[0] or not held_out[0]:
        return 0.0, 0.0
    count, x, t, xx, xt, _ = fitted
    spread = xx / count - (x / count) ** 2
    pull = DAMPING * np.maximum(spread, variance) + 1e-12
    best = (xt / count - x * t / count**2 + pull * slope) / (spread + pull)
    moved = (t - best * x) / count
    before, after = _errors(held_out, slope, offset), _errors(held_out, best, moved)
    better = after < before
    slope, offset = np.where(better, best, slope), np.where(better, moved, offset)
    kind = peek(node.inputs[_SCALE]).dtype
    for index, values in ((_SCALE, slope * deviation), (_SHIFT, offset + mean * slope)):
        put_vector(node, index, values.astype(kind))
    energy = max(float((held_out[5] - held_out[2] ** 2 / held_out[0]).sum()), 1e-12)
    return float(before.sum()) / energy, float(np.minimum(before, after).sum()) / energy


def put_vector(node: gs.Node, index: int, values: Array) -> None:
    """Give a norm another scale or shift, under a name of its own where something else reads the one it had."""
    old = node.inputs[index]
    if np.array_equal(peek(old), values):
        return
    name = old.name if len(old.outputs) == 1 else f"{node.outputs[0].name}/surgeon/{FITTED[index]}"
    node.inputs[index] = gs.Constant(name, values)


def thinned(array: Array, every: int, batch: int) -> Array:
    """One position in so many ``[samples, channels, positions]`` of one batch, at random; of other batches, others.

    A channel has two numbers to find, for which the places of all samples are far more than it takes.

    Args:
        array: ``[samples, channels, ...]``.
        every: One position in so many is taken.
        batch: The number of the batch.
    """
    flat = array.reshape(*array.shape[:2], -1)
    return flat[:, :, _positions(flat.shape[2], every, batch % every)] if every > 1 else flat


@lru_cache(maxsize=64)
def _positions(count: int, every: int, turn: int) -> NDArray[np.int64]:
    """Some of so many positions, ascending; all of them in as many turns, none of which is empty."""
    order = np.random.default_rng(count).permutation(count)
    return np.sort(order[turn % max(min(every, count), 1) :: every])


def _moments(inputs: Sequence[Array], targets: Sequence[Array], held_out: bool) -> tuple[Any, ...]:
    """Number of places and, per channel, the sums of x, t, x², xt and t² over the samples of one part."""
    count: int = 0
    sums: list[Any] = [0.0] * 5
    start = 0
    for x, t in zip(inputs, targets, strict=True):
        chosen = ((np.arange(start, start + len(x)) % EVERY) == EVERY - 1) == held_out
        start += len(x)
        if not chosen.any():
            continue
        a, b = (
            np.moveaxis(each[chosen], 1, 0).reshape(each.shape[1], -1).astype(np.float64) for each in (x, t)
        )
        count += a.shape[1]
        for k, product in enumerate((a, b, a * a, a * b, b * b)):
            sums[k] = sums[k] + product.sum(axis=1)
    return (count, *sums)


def _errors(moments: tuple[Any, ...], slope: Array, offset: Array) -> Array:
    """The sum of squares of ``slope x + offset - t`` per channel."""
    count, x, t, xx, xt, tt = moments
    return np.asarray(
        slope**2 * xx + offset**2 * count + tt + 2 * (slope * offset * x - slope * xt - offset * t)
    )
