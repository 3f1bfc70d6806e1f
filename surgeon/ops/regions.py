"""Reading and writing images at computed places: channels pass, places stay."""

from __future__ import annotations

from math import prod

from surgeon.axes import Atom, product
from surgeon.ops.conv import convolve
from surgeon.ops.op import Axes, Op
from surgeon.ops.operator import Barrier
from surgeon.ops.registry import rule


@rule("GridSample", domain="com.microsoft")
@rule("GridSample")
def grid_sample(op: Op, x: Axes, grid: Axes) -> list[Axes]:
    """Each channel is read at the places of the grid, whose last axis holds coordinates."""
    op.unify(x[0], grid[0])
    op.pin((*x[2:], *grid[1:]), "places")
    op.zeros(factors=[0])
    return [[*x[:2], *grid[1:-1]]]


@rule("RoiAlign", "MaxRoiPool")
def region_pool(op: Op, x: Axes, rois: Axes, batch_indices: Axes | None = None) -> list[Axes]:
    """Each region of an image becomes an image of one size."""
    op.pin((x[0], *x[2:], rois[1]), "places")
    if batch_indices is not None:
        op.unify(rois[0], batch_indices[0])
    op.zeros(factors=[0])
    return [[rois[0], x[1], *op.fixed_output("places")[2:]]]


@rule("AffineGrid")
def affine_grid(op: Op, theta: Axes, size: Axes) -> list[Axes]:
    """Places, from one matrix for each image."""
    op.pin((*theta[1:], *size), "places")
    return [[theta[0], *op.fixed_output("places")[1:]]]


@rule("MaxUnpool")
def max_unpool(op: Op, x: Axes, i: Axes, output_shape: Axes | None = None) -> list[Axes]:
    """The inverse of a MaxPool: the places it counts over all channels follow when it is cut as well."""
    source = op.node.inputs[1].inputs
    if not source or source[0].op != "MaxPool":
        raise Barrier("places in the flat tensor, which no MaxPool of the model computes")
    for left, right in zip(x, i, strict=True):
        op.unify(left, right)
    op.pin((*x[2:], *(output_shape or ())), "spatial extent")
    out = [*x[:2], *op.fixed_output("spatial extent")[2:]]
    if output_shape is not None:
        op.resize_input(2, out)
    op.zeros(factors=[0])
    return [out]


@rule("Col2Im")
def col2im(op: Op, x: Axes, image_shape: Axes, block_shape: Axes) -> list[Axes]:
    """Blocks, flat behind their channel, are summed to an image."""
    block = op.value(2)
    if block is None:
        raise Barrier("the shape of the blocks is computed while the model runs")
    op.pin((x[2], *image_shape, *block_shape), "spatial extent")
    size = prod(int(each) for each in block)
    channels = Atom(x[1].size // size)
    op.unify(x[1], product(channels, op.fixed(size, "kernel taps")))
    op.zeros(factors=[0])
    return [[x[0], channels, *op.fixed_output("spatial extent")[2:]]]


@rule("DeformConv")
def deform_conv(
    op: Op, x: Axes, w: Axes, offset: Axes, b: Axes | None = None, mask: Axes | None = None
) -> list[Axes]:
    """A convolution whose taps move, alike for all channels of an offset group."""
    (result,) = convolve(op, x, w, b, (0, 1, 3))
    op.pin(x[2:], "places")
    count = op.attribute("offset_group", 1)
    groups = Atom(count)
    op.unify(x[1], product(groups, Atom(x[1].size // count)))
    for moves in (offset, mask):
        if moves is not None:
            op.unify(moves[0], x[0])
            op.unify(moves[1], product(groups, op.fixed(moves[1].size // count, "places")))
            op.pin(moves[2:], "places")
    if count > 1:
        op.resize_attribute("offset_group", groups)
    return [result]


@rule("CenterCropPad")
def center_crop_pad(op: Op, x: Axes, shape: Axes) -> list[Axes]:
    """Axes that keep their size pass."""
    listed = op.attribute("axes") or range(len(x))
    op.pin(shape, "a shape")
    result: Axes = []
    for axis, size, dynamic in zip(x, op.out_dims(), op.out_dynamic(), strict=True):
        if axis.size == size and not (dynamic and op.is_whole(axis)):
            result.append(axis)
        else:
            op.pin(axis, "cropped or padded")
            result.append(op.fixed(size, "cropped or padded"))
    op.resize_input(1, [result[k] for k in listed])
    op.zeros(factors=[0])
    return [result]
