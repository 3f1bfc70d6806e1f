"""Operators on integers: each input comes with its scale and zero point, and the zero point stands for zero.

Scales and zero points of one value, or one per row or column of the weight, belong to that axis. A dynamic range runs
over the whole tensor; it always includes zero, so that removing what is zero leaves it as it was.
"""

from __future__ import annotations

from surgeon.axes import Atom, Axis, Concat, product
from surgeon.ops.attention import heads_of, scored
from surgeon.ops.contrib_attention import project
from surgeon.ops.conv import convolve
from surgeon.ops.linear import multiply_and_add, multiply_matrices
from surgeon.ops.op import Axes, Op
from surgeon.ops.operator import Barrier
from surgeon.ops.quant import scale_linear
from surgeon.ops.registry import rule

DOMAIN = "com.microsoft"

rule("QuantizeLinear", "DequantizeLinear", domain=DOMAIN)(scale_linear)


def scaled(op: Op, index: int, axis: Axis, place: int, *parameters: tuple[int, Axes | None]) -> None:
    """Scales and zero points of input ``index`` lie along its axis number ``place``, or there is one of each.

    Args:
        op: The operator.
        index: The quantized input.
        axis: Its axis.
        place: The number of that axis.
        parameters: Input number and axes of the scale and then of the zero point.
    """
    for _, axes in parameters:
        for each in axes or ():
            if each.size != 1:
                op.unify(each, axis)
    op.quantized(index, parameters[-1][0], place, scale=parameters[0][0] if len(parameters) > 1 else None)
    op.facts.divisors += tuple(k for k, _ in parameters)


@rule("QLinearConv")
@rule("QLinearConv", domain=DOMAIN)
def qlinear_conv(
    op: Op,
    x: Axes,
    x_scale: Axes,
    x_zero_point: Axes,
    w: Axes,
    w_scale: Axes,
    w_zero_point: Axes,
    y_scale: Axes,
    y_zero_point: Axes,
    b: Axes | None = None,
) -> list[Axes]:
    """A convolution; with ``channels_last`` the weight is still laid out as usual."""
    del y_scale, y_zero_point
    last = bool(op.attribute("channels_last", 0))
    data = _channels_first(x, last)
    ((batch, channels, *spatial),) = convolve(op, data, w, b, (0, 3, 8), channels_last=last)
    scaled(op, 0, x[0], 0, (1, x_scale), (2, x_zero_point))
    scaled(op, 3, channels, 0, (4, w_scale), (5, w_zero_point))
    if b is not None:
        op.quantized(8)
    return [[batch, *spatial, channels] if last else [batch, channels, *spatial]]


def _channels_first(x: Axes, last: bool) -> Axes:
    return [x[0], x[-1], *x[1:-1]] if last else x


@rule("ConvInteger")
def conv_integer(
    op: Op, x: Axes, w: Axes, x_zero_point: Axes | None = None, w_zero_point: Axes | None = None
) -> list[Axes]:
    """A convolution without scales."""
    result = convolve(op, x, w, None, (0, 1, 4))
    scaled(op, 0, x[0], 0, (2, x_zero_point))
    scaled(op, 1, w[0], 0, (3, w_zero_point))
    return result


@rule("QLinearMatMul")
def qlinear_matmul(
    op: Op,
    a: Axes,
    a_scale: Axes,
    a_zero_point: Axes,
    b: Axes,
    b_scale: Axes,
    b_zero_point: Axes,
    *_output: Axes,
) -> list[Axes]:
    """A product; a may be scaled per row, b per column."""
    result = multiply_matrices(op, a, b, (0, 3))
    _rows_and_columns(op, (0, a, 1, a_scale, 2, a_zero_point), (3, b, 4, b_scale, 5, b_zero_point))
    return result


Scaled = tuple[int, Axes, int, "Axes | None", int, "Axes | None"]


def _rows_and_columns(op: Op, left: Scaled, right: Scaled) -> None:
    """Scales and zero points of both factors: per row of the left, per column of the right one, or one."""
    for (index, axes, scale, scales, zero, zeros), place in ((left, -2), (right, -1)):
        for parameter in (scales, zeros):
            if parameter and any(each.size not in (1, axes[place].size) for each in parameter):
                raise Barrier("scales of several axes")
        scaled(op, index, axes[place if len(axes) > 1 else -1], place, (scale, scales), (zero, zeros))


@rule("MatMulInteger")
def matmul_integer(
    op: Op, a: Axes, b: Axes, a_zero_point: Axes | None = None, b_zero_point: Axes | None = None
) -> list[Axes]:
    """A product without scales."""
    result = multiply_matrices(op, a, b)
    scaled(op, 0, a[-2 if len(a) > 1 else -1], -2, (2, a_zero_point))
    scaled(op, 1, b[-1], -1, (3, b_zero_point))
    return result


@rule("MatMulInteger16", domain=DOMAIN)
def matmul_integer16(op: Op, a: Axes, b: Axes) -> list[Axes]:
    """A product of integers whose zero is zero."""
    op.quantized(0)
    op.quantized(1)
    return multiply_matrices(op, a, b)


@rule("MatMulIntegerToFloat", domain=DOMAIN)
def matmul_integer_to_float(
    op: Op,
    a: Axes,
    b: Axes,
    a_scale: Axes,
    b_scale: Axes,
    a_zero_point: Axes | None = None,
    b_zero_point: Axes | None = None,
    bias: Axes | None = None,
) -> list[Axes]:
    """A product, scaled back, with a bias."""
    result = multiply_matrices(op, a, b)
    _rows_and_columns(op, (0, a, 2, a_scale, 4, a_zero_point), (1, b, 3, b_scale, 5, b_zero_point))
    return _with_bias(op, result, bias, 6)


@rule("DynamicQuantizeMatMul", domain=DOMAIN)
def dynamic_quantize_matmul(
    op: Op,
    a: Axes,
    b: Axes,
    b_scale: Axes,
    b_zero_point: Axes | None = None,
    bias: Axes | None = None,
) -> list[Axes]:
    """The same, with the left factor quantized on the way."""
    result = multiply_matrices(op, a, b)
    ranged(op, 0, a)
    scaled(op, 1, b[-1], -1, (2, b_scale), (3, b_zero_point))
    return _with_bias(op, result, bias, 4)


def _with_bias(op: Op, result: list[Axes], bias: Axes | None, place: int) -> list[Axes]:
    if bias is not None:
        op.unify(bias[-1], result[0][-1])
    op.zeros(factors=[0, 1], terms=[place])
    return result


def ranged(op: Op, index: int, axes: Axes) -> None:
    """The range of an input is measured while the model runs."""
    for axis in axes:
        op.reduces(index, axis, "dynamic range", exact_on_zeros=True)


@rule("DynamicQuantizeLinear")
def dynamic_quantize_linear(op: Op, x: Axes) -> list[Axes]:
    """The tensor in 8 bits, its scale and its zero point."""
    ranged(op, 0, x)
    op.zeros(factors=[0], output=0)
    return [x, [], []]


@rule("QGemm", domain=DOMAIN)
def qgemm(
    op: Op,
    a: Axes,
    a_scale: Axes,
    a_zero_point: Axes,
    b: Axes,
    b_scale: Axes,
    b_zero_point: Axes,
    c: Axes | None = None,
    *_output: Axes | None,
) -> list[Axes]:
    """A Gemm; b may be scaled per column."""
    result = multiply_and_add(op, a, b, c, (0, 3, 6))
    scaled(op, 0, a[0], 0, (1, a_scale), (2, a_zero_point))
    scaled(op, 3, result[0][1], 0 if op.attribute("transB", 0) else 1, (4, b_scale), (5, b_zero_point))
    if c is not None:
        op.quantized(6)
    return result


@rule("QLinearAdd", domain=DOMAIN)
def qlinear_add(op: Op, *inputs: Axes | None) -> list[Axes]:
    """A sum that broadcasts."""
    op.zeros(terms=[0, 3])
    return _two(op, inputs)


@rule("QLinearMul", domain=DOMAIN)
def qlinear_mul(op: Op, *inputs: Axes | None) -> list[Axes]:
    """A product of elements that broadcasts."""
    op.zeros(factors=[0, 3])
    return _two(op, inputs)


def _two(op: Op, inputs: tuple[Axes | None, ...]) -> list[Axes]:
    op.quantized(0, 2, scale=1)
    op.quantized(3, 5, scale=4)
    return [op.broadcast(inputs[0] or [], inputs[3] or [])]


@rule("QLinearWhere", domain=DOMAIN)
def qlinear_where(op: Op, condition: Axes, x: Axes, xs: Axes, xz: Axes, y: Axes, *_rest: Axes) -> list[Axes]:
    """One of two alternatives."""
    del xs, xz
    op.quantized(1, 3, scale=2)
    op.quantized(4, 6, scale=5)
    op.zeros(terms=[1, 4])
    return [op.broadcast(condition, x, y)]


@rule("QLinearConcat", domain=DOMAIN)
def qlinear_concat(op: Op, y_scale: Axes, y_zero_point: Axes, *triples: Axes) -> list[Axes]:
    """Sizes add along ``axis``; tensors come with their scale and zero point."""
    del y_scale, y_zero_point
    tensors = triples[::3]
    axis = op.attribute("axis") % len(tensors[0])
    result = list(tensors[0])
    for other in tensors[1:]:
        for k, (left, right) in enumerate(zip(result, other, strict=True)):
            if k != axis:
                op.unify(left, right)
    result[axis] = Concat([axes[axis] for axes in tensors])
    for place in range(2, len(op.node.inputs), 3):
        op.quantized(place, place + 2, scale=place + 1)
    op.zeros(parts=True)
    return [result]


@rule("QLinearLeakyRelu", domain=DOMAIN)
def qlinear_leaky_relu(op: Op, x: Axes, *_parameters: Axes | None) -> list[Axes]:
    """One function of each element, zero at zero."""
    op.zeros(factors=[0])
    return [x]


@rule("QLinearSigmoid", domain=DOMAIN)
def qlinear_sigmoid(op: Op, x: Axes, *_parameters: Axes | None) -> list[Axes]:
    """One function of each element, not zero at zero."""
    del op
    return [x]


@rule("QLinearSoftmax", domain=DOMAIN)
def qlinear_softmax(op: Op, x: Axes, *_parameters: Axes | None) -> list[Axes]:
    """A distribution over one axis; as of opset 12 over all axes from ``axis`` on."""
    axis = op.attribute("axis", -1) % len(x)
    op.pin(x[axis] if op.attribute("opset") >= 13 else x[axis:], "softmax axis")
    return [x]


@rule("QLinearAveragePool", "QLinearGlobalAveragePool", domain=DOMAIN)
def qlinear_pool(op: Op, x: Axes, *_parameters: Axes | None) -> list[Axes]:
    """Windows slide over all but batch and channels, which may be last."""
    place = len(x) - 1 if op.attribute("channels_last", 0) else 1
    op.pin((axis for k, axis in enumerate(x) if k not in (0, place)), "spatial extent")
    op.zeros(factors=[0])
    out = op.fixed_output("spatial extent")
    return [[axis if k in (0, place) else out[k] for k, axis in enumerate(x)]]


@rule("DynamicQuantizeLSTM", domain=DOMAIN)
def dynamic_quantize_lstm(
    op: Op,
    x: Axes,
    w: Axes,
    r: Axes,
    b: Axes | None = None,
    sequence_lens: Axes | None = None,
    initial_h: Axes | None = None,
    initial_c: Axes | None = None,
    p: Axes | None = None,
    *parameters: Axes,
) -> list[Axes]:
    """An LSTM whose weights are transposed: ``[directions, in, gates x hidden]``."""
    hidden = Atom(r[1].size)
    gates = product(op.fixed(4, "gates"), hidden)
    op.pin((x[0], w[0], r[0], *(sequence_lens or ())), "sequence and directions")
    op.unify(w[1], x[2])
    op.unify(r[1], hidden)
    for axis in (w[2], r[2], *(axes[1] for axes in parameters if len(axes) > 1)):
        op.unify(axis, gates)
    for vector, count in ((b, 8), (p, 3)):
        if vector is not None:
            op.unify(vector[1], product(op.fixed(count, "gates"), hidden))
    directions = op.fixed(w[0].size, "directions")
    last = [directions, x[1], hidden]
    for state in (initial_h, initial_c):
        for axis, known in zip(state or (), last, strict=False):
            op.unify(axis, known)
    ranged(op, 0, x)
    for index, zero_point in ((1, 9), (2, 11)):
        op.quantized(index, zero_point, 2, scale=zero_point - 1)
    op.divides_by(8, 9, 10, 11)
    op.contract(1, w[1])
    op.contract(2, r[1])
    for index in (1, 2):
        op.multiply(op.refs(0, [0, 1]), op.refs(index))
    op.kind("hidden", hidden)
    op.resize_attribute("hidden_size", hidden)
    op.zeros(factors=[1], terms=[3, 5, 6])
    return [[x[0], directions, x[1], hidden], last, list(last)][: len(op.node.outputs)]


@rule("QAttention", domain=DOMAIN)
def qattention(
    op: Op,
    x: Axes,
    weight: Axes,
    bias: Axes,
    input_scale: Axes,
    weight_scale: Axes,
    mask_index: Axes | None = None,
    input_zero_point: Axes | None = None,
    weight_zero_point: Axes | None = None,
    past: Axes | None = None,
) -> list[Axes]:
    """Attention with its projection; queries, keys and values have one size."""
    del input_scale, input_zero_point
    count = op.attribute("num_heads")
    if weight[1].size % (3 * count):
        raise Barrier(f"{weight[1].size} columns do not fit {count} heads")
    size = weight[1].size // 3 // count
    dim: Axis = op.fixed(size, "rotary positions") if op.attribute("do_rotary", 0) else Atom(size)
    heads = heads_of(op, count, count, dim, dim)
    op.resize_attribute("num_heads", heads.query)
    op.pin(mask_index or (), "positions")
    outputs = project(op, heads, x, weight, (bias, weight_scale, weight_zero_point), past)
    op.quantized(0, 6, scale=3)
    op.quantized(1, 7, 1, scale=4)
    op.divides_by(3, 4, 6, 7)
    op.zeros(terms=[1, 2], output=0)
    lengths = [op.refs(0, [1]), *([op.refs(8, [3])] if past is not None else [])]
    scored(op, heads, op.refs(0, [0, 1]), lengths)
    return outputs
