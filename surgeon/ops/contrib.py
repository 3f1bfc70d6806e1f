"""What onnxruntime fuses (com.microsoft): activations with their bias, norms with their sum, products with an activation."""

from __future__ import annotations

from surgeon.axes import Atom, Axis, Concat, product
from surgeon.ops.conv import convolve
from surgeon.ops.linear import multiply_and_add, multiply_matrices
from surgeon.ops.norm import keep_mean_square
from surgeon.ops.op import Axes, Op
from surgeon.ops.operator import Barrier
from surgeon.ops.pool import pad
from surgeon.ops.registry import rule
from surgeon.ops.scatter import gather_nd
from surgeon.ops.select import trilu

DOMAIN = "com.microsoft"
SKIP_EPSILON = 1e-12
# activations that onnxruntime fuses, and that are zero at zero
THROUGH_ZERO = ("", "Relu", "LeakyRelu", "Tanh", "Gelu", "FastGelu", "HardSwish", "Elu", "Selu")

# standard operators under another name
rule("Trilu", domain=DOMAIN)(trilu)
rule("GatherND", domain=DOMAIN)(gather_nd)
rule("Pad", domain=DOMAIN)(pad)


@rule("Gelu", "QuickGelu", "ScaledSiLU", domain=DOMAIN)
def activation(op: Op, x: Axes, *_scale: Axes | None) -> list[Axes]:
    """One function of each element, zero at zero."""
    op.zeros(factors=[0])
    return [x]


@rule("FastGelu", "BiasGelu", "BiasAdd", domain=DOMAIN)
def biased_activation(op: Op, x: Axes, bias: Axes | None = None, skip: Axes | None = None) -> list[Axes]:
    """A bias per channel comes first, and perhaps a sum."""
    op.zeros(terms=[0, 1, 2])
    return [op.broadcast(*(axes for axes in (x, bias, skip) if axes is not None))]


@rule("GatedAdd", domain=DOMAIN)
def gated_add(op: Op, x: Axes, y: Axes, gate: Axes) -> list[Axes]:
    """``x + y * gate``."""
    op.zeros(terms=[0, 1])
    return [op.broadcast(x, y, gate)]


@rule("BiasSplitGelu", domain=DOMAIN)
def bias_split_gelu(op: Op, x: Axes, bias: Axes) -> list[Axes]:
    """The left half of the channels times the activated right half."""
    half = Atom(x[-1].size // 2)
    op.unify(x[-1], bias[0])
    op.unify(x[-1], Concat((half, half)))
    op.zeros(terms=[0, 1])
    return [[*x[:-1], half]]


@rule("BiasDropout", domain=DOMAIN)
def bias_dropout(
    op: Op, data: Axes, bias: Axes, residual: Axes | None = None, *options: Axes | None
) -> list[Axes]:
    """A sum at inference; the mask has the same axes."""
    training = op.value(4) if len(options) > 1 and op.has(4) else False
    if training is None or bool(training):
        raise Barrier("dropout in training mode")
    result = op.broadcast(*(axes for axes in (data, bias, residual) if axes is not None))
    op.zeros(terms=[0, 1, 2])
    return [result] * len(op.node.outputs)


@rule("BiasSoftmax", domain=DOMAIN)
def bias_softmax(op: Op, data: Axes, bias: Axes) -> list[Axes]:
    """A distribution over all axes from ``axis`` on."""
    result = op.broadcast(data, bias)
    op.pin(result[op.attribute("axis", 1) % len(data) :], "softmax axis")
    return [result]


@rule("SkipLayerNormalization", domain=DOMAIN)
def skip_layer_normalization(
    op: Op,
    x: Axes,
    skip: Axes,
    gamma: Axes,
    beta: Axes | None = None,
    bias: Axes | None = None,
) -> list[Axes]:
    """A sum, and its mean and variance over the last axis."""
    return _skip_norm(op, [x, skip, bias], [gamma, beta], exact=False)


@rule("SkipSimplifiedLayerNormalization", domain=DOMAIN)
def skip_rms_normalization(
    op: Op,
    x: Axes,
    skip: Axes,
    gamma: Axes,
    bias: Axes | None = None,
) -> list[Axes]:
    """A sum, and its mean square over the last axis; exact with ``gamma * sqrt(D/K)`` and ``epsilon * D/K``."""
    op.emit(lambda emitter: keep_mean_square(emitter, x[-1:], 2, SKIP_EPSILON))
    return _skip_norm(op, [x, skip, bias], [gamma], exact=True)


def _skip_norm(op: Op, summed: list[Axes | None], affine: list[Axes | None], *, exact: bool) -> list[Axes]:
    x = op.broadcast(*(axes for axes in (*summed, *affine) if axes is not None))
    places = [0, 1, 3 if exact else 4]
    for place, axes in zip(places, summed, strict=True):
        if axes is not None:
            why = "mean square" if exact else "layer statistics"
            op.reduces(place, x[-1], why, exact_on_zeros=exact)
    if exact:
        op.zeros(factors=[2], output=0)
    else:
        op.zeros(factors=[2], terms=[3], output=0)
    op.zeros(terms=places, output=3)
    statistics: Axes = [*x[:-1], op.fixed(1, "")]
    return [x, statistics, list(statistics), list(x)][: len(op.node.outputs)]


@rule("EmbedLayerNormalization", domain=DOMAIN)
def embed_layer_normalization(
    op: Op,
    input_ids: Axes,
    segment_ids: Axes | None,
    word_embedding: Axes,
    position_embedding: Axes,
    segment_embedding: Axes | None,
    gamma: Axes,
    beta: Axes,
    *rest: Axes | None,
) -> list[Axes]:
    """Rows of two or three tables are looked up and summed; mean and variance over the hidden axis."""
    hidden = gamma[0]
    op.unify(hidden, beta[0])
    for place, table in ((2, word_embedding), (3, position_embedding), (4, segment_embedding)):
        if table is not None:
            op.pin(table[0], "looked up by index")
            op.unify(hidden, table[1])
            op.reduces(place, table[1], "layer statistics")
    for ids in (segment_ids, *rest):
        op.pin(ids or (), "positions")
    op.zeros(factors=[5], terms=[6], output=0)
    op.zeros(terms=[2, 3, 4], output=2)
    result = [*input_ids, hidden]
    return [result, input_ids[:1], list(result)][: len(op.node.outputs)]


@rule("GatedRMSNorm", domain=DOMAIN)
def gated_rms_norm(op: Op, x: Axes, scale: Axes, gate: Axes) -> list[Axes]:
    """Mean square over blocks of the last axis as long as the scale: ``heads x C``."""
    result = op.broadcast(x, gate)
    size = scale[0].size
    heads = Atom(result[-1].size // size)
    op.unify(result[-1], product(heads, scale[0]))
    op.reduces(0, scale[0], "mean square", exact_on_zeros=True)
    op.emit(lambda emitter: keep_mean_square(emitter, scale, 1))
    op.zeros(factors=[0, 1, 2])
    return [result]


@rule("GroupNorm", "SkipGroupNorm", domain=DOMAIN)
def group_norm(
    op: Op, x: Axes, gamma: Axes, beta: Axes, skip: Axes | None = None, bias: Axes | None = None
) -> list[Axes]:
    """Channels are ``groups x each``, last by default; a skip and its bias may be added first."""
    place = len(x) - 1 if op.attribute("channels_last", 1) else 1
    groups = op.attribute("groups")
    outer, inner = Atom(groups), Atom(x[place].size // groups)
    op.unify(x[place], product(outer, inner))
    for vector in (gamma, beta, bias):
        if vector is not None:
            op.unify(vector[0], x[place])
    if skip is not None:
        for axis, known in zip(skip, x if len(skip) == len(x) else (x[0], x[place]), strict=True):
            if axis.size != 1:
                op.unify(axis, known)
    for axis in (inner, *(axis for k, axis in enumerate(x) if k not in (0, place))):
        op.reduces(0, axis, "group statistics")
    op.resize_attribute("groups", outer)
    op.zeros(factors=[1], terms=[2], output=0)
    op.zeros(terms=[0, 3, 4], output=1)
    return [x, list(x)][: len(op.node.outputs)]


@rule("FusedConv", domain=DOMAIN)
def fused_conv(op: Op, x: Axes, w: Axes, b: Axes | None = None, z: Axes | None = None) -> list[Axes]:
    """A convolution, perhaps a sum, and an activation."""
    (result,) = convolve(op, x, w, b)
    if z is not None:
        result = op.broadcast(result, z)
    op.zeros(factors=[0, 1], terms=[2, 3])
    return _activated(op, [result])


@rule("NhwcConv", "NhwcFusedConv", domain=DOMAIN)
def nhwc_conv(op: Op, x: Axes, w: Axes, b: Axes | None = None, z: Axes | None = None) -> list[Axes]:
    """The same with channels last; the weight is laid out as usual."""
    ((batch, channels, *extents),) = convolve(op, [x[0], x[-1], *x[1:-1]], w, b, channels_last=True)
    result = [batch, *extents, channels]
    if z is not None:
        result = op.broadcast(result, z)
    op.zeros(factors=[0, 1], terms=[2, 3])
    return _activated(op, [result])


@rule("FusedGemm", domain=DOMAIN)
def fused_gemm(op: Op, a: Axes, b: Axes, c: Axes | None = None) -> list[Axes]:
    """A Gemm and an activation."""
    return _activated(op, multiply_and_add(op, a, b, c))


@rule("GemmFastGelu", domain=DOMAIN)
def gemm_fast_gelu(op: Op, x: Axes, w: Axes, bias: Axes | None = None) -> list[Axes]:
    """A product, a bias and an activation."""
    result = multiply_matrices(op, x, w)
    if bias is not None:
        op.unify(result[0][-1], bias[0])
    op.zeros(factors=[0, 1], terms=[2])
    return result


def _activated(op: Op, result: list[Axes]) -> list[Axes]:
    """What an activation leaves of the zeros before it."""
    name = op.attribute("activation", "")
    low, high = (op.attribute("activation_params") or [0.0, 0.0]) if name == "Clip" else (0.0, 0.0)
    if name not in (*THROUGH_ZERO, "Clip") or not low <= 0.0 <= high:
        op.facts.zeros = None
    return result


@rule("FusedMatMul", "TransposeMatMul", domain=DOMAIN)
def fused_matmul(op: Op, a: Axes, b: Axes) -> list[Axes]:
    """A product of matrices, either of them transposed; ``transBatch`` has the rows first of all."""
    left, right = _transposed(op, a, "A"), _transposed(op, b, "B")
    inner = a.index(left[-1])
    result = multiply_matrices(op, left, right)
    op.facts.macs = []
    op.multiply(op.out_refs(), op.refs(0, [inner]))
    return result


def _transposed(op: Op, axes: Axes, side: str) -> Axes:
    """As in the inference of shapes; vectors stay."""
    if len(axes) < 2:
        return axes
    if op.attribute(f"transBatch{side}", 0):
        axes = [*axes[1:-1], axes[0], axes[-1]]
    return [*axes[:-2], axes[-1], axes[-2]] if op.attribute(f"trans{side}", 0) else axes


@rule("NhwcMaxPool", domain=DOMAIN)
def nhwc_max_pool(op: Op, x: Axes) -> list[Axes]:
    """Windows slide over all but batch and channels, which are first and last."""
    op.pin(x[1:-1], "spatial extent")
    return [[x[0], *op.fixed_output("spatial extent")[1:-1], x[-1]]]


@rule("CausalConvWithState", domain=DOMAIN)
@rule("CausalConvWithState", since=27)
def causal_conv(
    op: Op,
    x: Axes,
    weight: Axes,
    bias: Axes | None = None,
    past_state: Axes | None = None,
) -> list[Axes]:
    """One filter a channel, over what came before."""
    if op.attribute("channels_last", 0) or op.attribute("state_window", 0) or op.attribute("ndim", 1) != 1:
        raise Barrier("channels last, a window of states, or more than one spatial axis")
    channels = x[1]
    op.unify(channels, weight[0])
    op.pin((*weight[1:], *x[2:]), "kernel taps")
    if bias is not None:
        op.unify(channels, bias[0])
    for axis, known in zip((past_state or ())[:2], x[:2], strict=False):
        op.unify(axis, known)
    op.multiply(op.out_refs(), op.refs(1, [2]))
    op.zeros(factors=[1], terms=[2], output=0)
    op.zeros(terms=[0, 3], output=1)
    op.carry(3, 1)
    state: list[Axis] = [*x[:2], op.fixed_output("kernel taps", 1)[2]] if len(op.node.outputs) > 1 else []
    return [x, state][: len(op.node.outputs)]


@rule("UnfoldTensor", domain=DOMAIN)
def unfold_tensor(op: Op, x: Axes) -> list[Axes]:
    """Windows of one axis become a last axis."""
    axis = op.attribute("dim", -1) % len(x)
    op.pin(x[axis], "cut in windows")
    windows = op.fixed_output("cut in windows")
    op.zeros(factors=[0])
    return [[*x[:axis], windows[axis], *x[axis + 1 :], windows[-1]]]


@rule("Inverse", domain=DOMAIN)
def inverse(op: Op, x: Axes) -> list[Axes]:
    """Matrices in the last two axes."""
    op.pin(x[-2:], "rows and columns of a matrix that is inverted")
    return [x]
