"""Pooling, resampling and padding: channels pass, spatial extents are new."""

from __future__ import annotations

from surgeon.axes import Axis, Concat
from surgeon.ops.emit import Emitter
from surgeon.ops.op import Axes, Op
from surgeon.ops.operator import Barrier
from surgeon.ops.registry import rule


@rule("MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool")
def pool(op: Op, x: Axes) -> list[Axes]:
    """Batch and channels pass; windows slide over the rest."""
    op.pin(x[2:], "spatial extent")
    op.zeros(factors=[0])
    return [[*x[:2], *op.fixed_output("spatial extent", k)[2:]] for k in range(len(op.node.outputs))]


@rule("Resize", "Upsample")
def resize(op: Op, x: Axes, *inputs: Axes | None) -> list[Axes]:
    """Axes whose extent does not change pass, unless a region of interest or a flag may touch them."""
    if op.attribute("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise Barrier("crop and resize")
    sizes = op.out_dims()
    result: Axes = []
    for axis, size, dynamic in zip(x, sizes, op.out_dynamic(), strict=True):
        if axis.size == size and not (dynamic and op.is_whole(axis)):
            result.append(axis)
        else:
            op.pin(axis, "resampled")
            result.append(op.fixed(size, "resampled"))
    if len(inputs) == 3 and op.has(3) and op.node.op == "Resize":
        listed = op.attribute("axes")
        op.resize_input(3, result if listed is None else [result[k] for k in listed])
    op.zeros(factors=[0])
    return [result]


@rule("Pad")
def pad(op: Op, x: Axes, *inputs: Axes | None) -> list[Axes]:
    """Padding with a constant joins new positions to an axis; other modes repeat what is there."""
    del inputs
    known = (op.attribute("pads"), [False] * (2 * len(x))) if "pads" in op.node.attrs else op.partial(1)
    if known is None:
        raise Barrier("the amounts of padding are not known")
    axes = _padded_axes(op, len(x))
    amounts, dynamic = known
    before: dict[int, Axis] = {}
    after: dict[int, Axis] = {}
    result = list(x)
    for k, axis in enumerate(axes):
        low, high = int(amounts[k]), int(amounts[k + len(axes)])
        if not low and not high and not dynamic[k] and not dynamic[k + len(axes)]:
            continue
        constant = op.attribute("mode", "constant") == "constant"
        if op.is_whole(x[axis]) or not constant or low < 0 or high < 0:
            op.pin(x[axis], f"padded by {op.attribute('mode', 'constant')}")
            result[axis] = op.fixed(op.out_dims()[axis], "padded")
        else:
            before[k], after[k] = op.free(low), op.free(high)
            result[axis] = Concat([before[k], x[axis], after[k]])
    if before:
        op.emit(lambda emitter: _emit_pads(emitter, before, after, len(axes)))
    value = op.value(2) if op.has(2) else op.attribute("value", 0.0)
    if value is not None and not value:
        op.zeros(factors=[0])
    return [result]


def _padded_axes(op: Op, rank: int) -> list[int]:
    if not op.has(3):
        return list(range(rank))
    listed = op.value(3)
    if listed is None:
        raise Barrier("the padded axes are not known")
    return [int(axis) % rank for axis in listed]


def _emit_pads(emitter: Emitter, before: dict[int, Axis], after: dict[int, Axis], count: int) -> None:
    changed = {k: emitter.size(axis) for k, axis in before.items()}
    changed |= {k + count: emitter.size(axis) for k, axis in after.items()}
    if "pads" in emitter.node.attrs:
        old = emitter.node.attrs["pads"]
        emitter.node.attrs["pads"] = [changed.get(k, amount) for k, amount in enumerate(old)]
    else:
        emitter.set_elements(1, changed)
