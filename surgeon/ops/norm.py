"""Normalisations: per-channel affine maps, and statistics taken over axes."""

from __future__ import annotations

from surgeon.axes import Atom, Axis, product
from surgeon.ops.emit import Emitter
from surgeon.ops.op import Axes, Op
from surgeon.ops.operator import Barrier
from surgeon.ops.registry import rule


@rule("BatchNormalization")
def batch_normalization(op: Op, x: Axes, *statistics: Axes) -> list[Axes]:
    """Scale, bias, mean and variance belong to the channels; inference form only."""
    if op.attribute("training_mode", 0):
        raise Barrier("BatchNormalization in training mode")
    channels = x[1] if len(x) > 1 else x[0]
    for (axis,) in statistics:
        op.unify(channels, axis)
    op.zeros(factors=[1], terms=[2])
    op.divides_by(4)
    return [x]


@rule("InstanceNormalization")
def instance_normalization(op: Op, x: Axes, scale: Axes, b: Axes) -> list[Axes]:
    """Statistics over everything behind the channels."""
    op.unify(x[1], scale[0])
    op.unify(x[1], b[0])
    for axis in x[2:]:
        op.reduces(0, axis, "instance statistics")
    op.zeros(factors=[1], terms=[2])
    return [x]


@rule("GroupNormalization")
def group_normalization(op: Op, x: Axes, scale: Axes, bias: Axes) -> list[Axes]:
    """Channels are ``groups x each``; scale and bias per group before opset 21, per channel since."""
    groups = op.attribute("num_groups")
    outer, inner = Atom(groups), Atom(x[1].size // groups)
    op.unify(x[1], product(outer, inner))
    for (axis,) in (scale, bias):
        op.unify(axis, outer if op.opset < 21 else x[1])
    for axis in (inner, *x[2:]):
        op.reduces(0, axis, "group statistics")
    op.resize_attribute("num_groups", outer)
    op.zeros(factors=[1], terms=[2])
    return [x]


@rule("LayerNormalization")
def layer_normalization(op: Op, x: Axes, scale: Axes, b: Axes | None = None) -> list[Axes]:
    """Mean and variance over all axes from ``axis`` on; the mean of what stays is not that of the whole."""
    first = op.attribute("axis", -1) % len(x)
    op.broadcast(x, scale, *([b] if b is not None else []))
    for axis in x[first:]:
        op.reduces(0, axis, "layer statistics")
    op.zeros(factors=[1], terms=[2])
    statistics = [*x[:first], *(op.fixed(1, "") for _ in x[first:])]
    return [x, *([list(statistics)] * (len(op.node.outputs) - 1))]


@rule("RMSNormalization", "SimplifiedLayerNormalization")
def rms_normalization(op: Op, x: Axes, scale: Axes) -> list[Axes]:
    """Mean square over all axes from ``axis`` on; exact with ``scale * sqrt(D/K)`` and ``epsilon * D/K``."""
    first = op.attribute("axis", -1) % len(x)
    op.broadcast(x, scale)
    for axis in x[first:]:
        op.reduces(0, axis, "mean square", exact_on_zeros=True)
    op.emit(lambda emitter: keep_mean_square(emitter, x[first:], scale_input=1))
    op.zeros(factors=[0, 1])
    statistics = [*x[:first], *(op.fixed(1, "") for _ in x[first:])]
    return [x, *([list(statistics)] * (len(op.node.outputs) - 1))]


def keep_mean_square(emitter: Emitter, axes: list[Axis], scale_input: int, epsilon: float = 1e-5) -> None:
    """Make the mean square over what is left of ``axes`` equal to that of the whole, the rest being zero.

    ``epsilon`` is the attribute's default.
    """
    ratio = 1.0
    for axis in axes:
        ratio *= axis.size / emitter.size(axis)
    if ratio != 1.0:
        emitter.node.attrs["epsilon"] = float(emitter.op.attribute("epsilon", epsilon) * ratio)
        emitter.scale_input(scale_input, ratio**0.5)


@rule("LRN")
def lrn(op: Op, x: Axes) -> list[Axes]:
    """Each channel is divided by a statistic of its neighbours."""
    op.pin(x[1], "normalised over neighbouring channels")
    return [x]


@rule("LpNormalization")
def lp_normalization(op: Op, x: Axes) -> list[Axes]:
    """Divided by a sum of powers over one axis."""
    op.reduces(0, x[op.attribute("axis", -1)], "norm", exact_on_zeros=True)
    op.zeros(factors=[0])
    return [x]


@rule("MeanVarianceNormalization")
def mean_variance_normalization(op: Op, x: Axes) -> list[Axes]:
    """Mean and variance over ``axes``, without an epsilon: a masked channel would become NaN, so all stay."""
    op.pin(x, "divided by a variance that is zero where channels are masked")
    return [x]
