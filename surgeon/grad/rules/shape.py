"""Operators that give the same elements another shape or order, and those that repeat them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from surgeon.grad.registry import derivative

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surgeon.grad.step import Step
    from surgeon.grad.tape import Size, Value

    Gradients: TypeAlias = Sequence[Value | None]


@derivative("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(op: Step, data: Value, *others: Value | None) -> Gradients:
    """Back to the shape it had."""
    return (op.dy().reshape(data.shape()),)


@derivative("Transpose")
def transpose(op: Step, data: Value) -> Gradients:
    """The inverse permutation."""
    order = op.attribute("perm") or range(len(op.dims(0)))[::-1]
    return (op.dy().transpose(*np.argsort(order).tolist()),)


@derivative("Expand", broadcasts=True)
def expand(op: Step, x: Value, shape: Value) -> Gradients:
    """What was repeated is summed up."""
    return (op.dy(),)


@derivative("Tile", since=6)
def tile(op: Step, x: Value, repeats: Value) -> Gradients:
    """The sum over all copies."""
    known, rank = op.value(1), len(op.dims(0))
    split: list[Size] = []
    copies = []
    for axis in range(rank):
        count = repeats.gather(op.tape.integers([axis])) if known is None else int(known[axis])
        if count != 1:
            copies.append(len(split))
            split.append(count)
        split.append(op.size(0, axis))
    return (op.dy().reshape(split).sum(copies) if copies else op.dy(),)


@derivative("DepthToSpace")
def depth_to_space(op: Step, x: Value) -> Gradients:
    """https://onnx.ai/onnx/operators/onnx__DepthToSpace.html: each block goes back to its channels."""
    return (_to_depth(op, op.dy(), x, channels_first=op.attribute("mode", "DCR") == "CRD"),)


@derivative("SpaceToDepth")
def space_to_depth(op: Step, x: Value) -> Gradients:
    """https://onnx.ai/onnx/operators/onnx__SpaceToDepth.html: each place's channels go back to its block."""
    size, channels_first = int(op.attribute("blocksize")), op.attribute("mode", "DCR") == "CRD"
    n, c = op.size(0, 0), op.size(0, 1)
    h, w = op.out_size(2), op.out_size(3)
    blocks: list[Size] = [n, c, size, size, h, w] if channels_first else [n, size, size, c, h, w]
    order = (0, 1, 4, 2, 5, 3) if channels_first else (0, 3, 4, 1, 5, 2)
    return (op.dy().reshape(blocks).transpose(*order).reshape(x.shape()),)


def _to_depth(op: Step, dy: Value, x: Value, *, channels_first: bool) -> Value:
    size = int(op.attribute("blocksize"))
    blocks: list[Size] = [
        op.size(0, 0), op.out_size(1), op.size(0, 2), size, op.size(0, 3), size,
    ]  # fmt: skip
    order = (0, 1, 3, 5, 2, 4) if channels_first else (0, 3, 5, 1, 2, 4)
    return dy.reshape(blocks).transpose(*order).reshape(x.shape())


@derivative("Trilu")
def trilu(op: Step, x: Value, k: Value | None = None) -> Gradients:
    """The same triangle."""
    return (op.tape.op("Trilu", op.dy(), k, upper=op.attribute("upper")),)


@derivative("ReverseSequence")
def reverse_sequence(op: Step, x: Value, lengths: Value) -> Gradients:
    """Reversed once more."""
    axes = {name: op.attribute(name) for name in ("batch_axis", "time_axis")}
    return (op.tape.op("ReverseSequence", op.dy(), lengths, **axes),)


@derivative("CumSum")
def cum_sum(op: Step, x: Value, axis: Value) -> Gradients:
    """Every element counts in the sums from its own on: a sum from the other end."""
    turned = int(not op.attribute("reverse"))
    return (op.tape.op("CumSum", op.dy(), axis, exclusive=op.attribute("exclusive"), reverse=turned),)
