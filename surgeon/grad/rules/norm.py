"""Normalizations; see Ioffe and Szegedy, arXiv 1502.03167, and Ba, Kiros and Hinton, arXiv 1607.06450."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from surgeon.grad.registry import derivative

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surgeon.grad.step import Step
    from surgeon.grad.tape import Value

    Gradients: TypeAlias = Sequence[Value | None]

EPSILON = 1e-5  # of operators that onnxruntime runs without a schema
PER_CHANNEL = 21  # the opset from which GroupNormalization scales channels, and not groups


class Normal(NamedTuple):
    """A tensor divided by its spread along some axes, and the inverse of the spread; centred before or not."""

    values: Value
    inverse: Value
    axes: Sequence[int]
    centred: bool

    def back(self, gradient: Value) -> Value:
        """From the gradient with respect to the values that with respect to what was normalised."""
        along = self.values * (gradient * self.values).mean(self.axes, keepdims=True)
        if self.centred:
            along += gradient.mean(self.axes, keepdims=True)
        return (gradient - along) * self.inverse


def _normal(x: Value, axes: Sequence[int], epsilon: float, *, centred: bool = True) -> Normal:
    if centred:
        x -= x.mean(axes, keepdims=True)
    inverse = 1.0 / x.tape.op("Sqrt", (x * x).mean(axes, keepdims=True) + epsilon)
    return Normal(x * inverse, inverse, axes, centred)


def _others(op: Step) -> list[int]:
    """All axes but that of the channels."""
    return [0, *range(2, len(op.dims(0)))]


@derivative("BatchNormalization", parameters=(1, 2))
def batch_normalization(op: Step, x: Value, scale: Value, b: Value, mean: Value, var: Value) -> Gradients:
    """With given statistics: y = (x − mean) scale / √(var + ε) + b."""
    if op.attribute("training_mode") or any(tensor.name for tensor in op.node.outputs[1:]):
        op.stop("it is in training mode")
    if op.attribute("spatial", 1) == 0:
        op.stop("every place has a scale of its own")
    axes = _others(op)
    inverse = 1.0 / op.tape.op("Sqrt", var + float(op.attribute("epsilon")))
    slope = scale * inverse
    summed = op.dy().sum(axes)
    correlated = (op.dy() * (x - mean.unsqueeze(*axes))).sum(axes) * inverse
    by_var = correlated * slope * inverse * -0.5
    return op.dy() * slope.unsqueeze(*axes), correlated, summed, -summed * slope, by_var


@derivative("LayerNormalization", parameters=(1, 2))
def layer_normalization(op: Step, x: Value, scale: Value, b: Value | None = None) -> Gradients:
    """Over all axes from ``axis`` on; https://onnx.ai/onnx/operators/onnx__LayerNormalization.html."""
    return _layer(op, x, scale, centred=True)


@derivative("RMSNormalization", "SimplifiedLayerNormalization", parameters=(1,))
def rms_normalization(op: Step, x: Value, scale: Value) -> Gradients:
    """The same about zero; Zhang and Sennrich, arXiv 1910.07467."""
    return _layer(op, x, scale, centred=False)


def _layer(op: Step, x: Value, scale: Value, *, centred: bool) -> Gradients:
    if any(found is not None for found in op.arriving[1:]):
        op.stop("the loss depends on its statistics")
    rank = len(op.dims(0))
    axes = range(int(op.attribute("axis", -1)) % rank, rank)
    normal = _normal(x, axes, float(op.attribute("epsilon", EPSILON)), centred=centred)
    by_scale = op.unbroadcast(op.dy() * normal.values, 1)
    return normal.back(op.dy() * scale), by_scale, op.unbroadcast(op.dy(), 2) if op.has(2) else None


@derivative("InstanceNormalization", parameters=(1, 2))
def instance_normalization(op: Step, x: Value, scale: Value, b: Value) -> Gradients:
    """Over the places of every channel."""
    axes = _others(op)
    normal = _normal(x, axes[1:], float(op.attribute("epsilon")))
    by_scale = (op.dy() * normal.values).sum(axes)
    return normal.back(op.dy() * scale.unsqueeze(*axes)), by_scale, op.dy().sum(axes)


@derivative("GroupNormalization", since=18, parameters=(1, 2))
def group_normalization(op: Step, x: Value, scale: Value, bias: Value) -> Gradients:
    """Over the places and channels of every group; Wu and He, arXiv 1803.08494."""
    axes, groups = _others(op), int(op.attribute("num_groups"))
    size = op.dims(0)[1] // groups
    normal = _normal(x.reshape([0, groups, -1]), [2], float(op.attribute("epsilon")))
    by_scale = (op.dy() * normal.values.reshape(x.shape())).sum(axes)
    by_bias = op.dy().sum(axes)
    if op.opset < PER_CHANNEL:
        scale = op.tape.op("Expand", scale.unsqueeze(1), op.tape.integers([groups, size])).reshape([-1])
        by_scale, by_bias = (each.reshape([groups, size]).sum([1]) for each in (by_scale, by_bias))
    gradient = (op.dy() * scale.unsqueeze(*axes)).reshape([0, groups, -1])
    return normal.back(gradient).reshape(x.shape()), by_scale, by_bias


@derivative("MeanVarianceNormalization", since=9)
def mean_variance_normalization(op: Step, x: Value) -> Gradients:
    """Over the given axes, without a scale."""
    return (_normal(x, [int(axis) for axis in op.attribute("axes")], 0.0).back(op.dy()),)


@derivative("LpNormalization")
def lp_normalization(op: Step, x: Value) -> Gradients:
    """Division by the sum of absolute values, or by the root of the sum of squares, along an axis."""
    axis = [int(op.attribute("axis")) % len(op.dims(0))]
    first = op.attribute("p") == 1
    along = op.tape.op("Sign", x) if first else op.y()
    powers = op.tape.op("Abs", x) if first else x * x
    total = powers.sum(axis, keepdims=True)
    norm = total if first else op.tape.op("Sqrt", total)
    inverse = op.tape.where(norm > 0, 1.0 / norm, 0.0)
    return ((op.dy() - along * (op.dy() * op.y()).sum(axis, keepdims=True)) * inverse,)


@derivative("LRN")
def local_response_normalization(op: Step, x: Value) -> Gradients:
    """Of y = x / sᵝ, where s = bias + α/size Σ x² over neighbouring channels."""
    alpha, beta, size = float(op.attribute("alpha")), float(op.attribute("beta")), int(op.attribute("size"))
    before, after = (size - 1) // 2, size // 2
    power = _neighbours(op, x * x, before, after) * (alpha / size) + float(op.attribute("bias"))
    spread = _neighbours(op, op.dy() * op.y() / power, after, before)
    return (op.dy() / power**beta - x * spread * (2 * alpha * beta / size),)


def _neighbours(op: Step, value: Value, before: int, after: int) -> Value:
    """The sum over so many channels before and after each."""
    rank, channels = len(op.dims(0)), op.dims(0)[1]
    padded = value.pad([0, before, *[0] * (rank - 2)], [0, after, *[0] * (rank - 2)])
    return op.tape.total([padded.slice([1], [k], [k + channels]) for k in range(before + after + 1)])
