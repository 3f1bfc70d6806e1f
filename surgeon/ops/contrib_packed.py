"""Weights packed into blocks, and mixtures of experts (com.microsoft).

What is removed of a packed weight vanishes through its scales, which are zeroed like any other float.
"""

from __future__ import annotations

from surgeon.axes import Atom, Axis, Concat, product
from surgeon.ops.emit import Emitter
from surgeon.ops.op import Axes, Op
from surgeon.ops.operator import Barrier
from surgeon.ops.registry import rule

DOMAIN = "com.microsoft"


def blocks_of(op: Op, size: int, block: int, why: str) -> tuple[Axis, Axis]:
    """An axis in whole blocks: how many there are, and the axis; where they do not fit, it stays whole."""
    count = -(-size // block)
    if size % block:
        return op.fixed(count, why), op.fixed(size, why)
    blocks = Atom(count)
    return blocks, product(blocks, op.fixed(block, why))


@rule("MatMulNBits", domain=DOMAIN)
def matmul_n_bits(
    op: Op,
    a: Axes,
    b: Axes,
    scales: Axes,
    zero_points: Axes | None = None,
    g_idx: Axes | None = None,
    bias: Axes | None = None,
) -> list[Axes]:
    """The weight is ``[N, blocks, bytes]``: columns are free, of the inner axis whole blocks are."""
    if g_idx is not None:
        raise Barrier("rows of the weight are in another order")
    columns = Atom(op.attribute("N"))
    blocks, inner = blocks_of(op, op.attribute("K"), op.attribute("block_size"), "quantization block")
    op.unify(a[-1], inner)
    op.unify(b[0], columns)
    op.unify(b[1], blocks)
    op.pin(b[2], "packed values")
    _per_block(op, scales, columns, blocks, 1)
    if zero_points is not None:
        packed = op.shapes.dtypes.get(op.node.inputs[3].name) == op.shapes.dtypes.get(op.node.inputs[1].name)
        _per_block(op, zero_points, columns, blocks, 8 // op.attribute("bits", 4) if packed else 1)
    if bias is not None:
        op.unify(bias[0], columns)
    op.contract(1, blocks)
    op.multiply(op.out_refs(), [inner])
    op.zeros(factors=[0, 2], terms=[5])
    op.resize_attribute("N", columns)
    op.resize_attribute("K", inner)
    return [[*a[:-1], columns]]


def _per_block(op: Op, values: Axes, columns: Axis, blocks: Axis, per_byte: int) -> None:
    """One value for each block of each column, flat or not; several of them may share a byte."""
    if per_byte > 1:
        shared, whole = blocks_of(op, blocks.size, per_byte, "zero points that share a byte")
        op.unify(blocks, whole)
        blocks = shared
    if len(values) == 1:
        op.unify(values[0], product(columns, blocks))
    else:
        op.unify(values[0], columns)
        op.unify(values[1], blocks)


@rule("MatMulBnb4", domain=DOMAIN)
def matmul_bnb4(op: Op, a: Axes, b: Axes, absmax: Axes) -> list[Axes]:
    """Blocks run across rows of the weight, so that nothing can be taken out of it."""
    op.pin((a[-1], *b, *absmax), "quantization blocks across rows")
    op.multiply(op.out_refs(), op.refs(0, [len(a) - 1]))
    return [[*a[:-1], op.fixed_output("quantization blocks across rows")[-1]]]


@rule("GatherBlockQuantized", domain=DOMAIN)
def gather_block_quantized(
    op: Op, data: Axes, indices: Axes, scales: Axes, zero_points: Axes | None = None
) -> list[Axes]:
    """Rows are looked up; along ``quantize_axis`` whole blocks are free, the last axis may be packed."""
    rank = len(data)
    looked_up = op.attribute("gather_axis", 0) % rank
    quantized = op.attribute("quantize_axis", 1) % rank
    sizes = op.out_dims()
    op.pin((data[looked_up], scales[looked_up]), "looked up by index")
    result: Axes = []
    for k in range(rank):
        if k == looked_up:
            result += indices
            continue
        size = sizes[k if k < looked_up else k + len(indices) - 1]
        if k != quantized:
            free: Axis = Atom(size) if size == data[k].size else op.fixed(size, "packed values")
            op.unify(scales[k], free)
        else:
            per_block = op.attribute("block_size", 128) or size
            blocks, free = blocks_of(op, size, per_block, "quantization block")
            op.unify(scales[k], blocks)
        if size == data[k].size:
            op.unify(data[k], free)
        elif k == quantized and size % per_block == 0:
            op.unify(data[k], product(blocks, op.fixed(data[k].size // blocks.size, "packed values")))
        else:
            op.pin((data[k], free), "packed values")
        result.append(free)
    _zero_points(op, zero_points, scales, looked_up)
    op.zeros(factors=[2])
    return [result]


def _zero_points(op: Op, zero_points: Axes | None, scales: Axes, looked_up: int) -> None:
    for k, axis in enumerate(zero_points or ()):
        if k == looked_up:
            op.pin(axis, "looked up by index")
        elif axis.size == scales[k].size:
            op.unify(axis, scales[k])
        else:
            op.pin((axis, scales[k]), "zero points that share a byte")


@rule("MoE", domain=DOMAIN)
def mixture_of_experts(
    op: Op,
    x: Axes,
    router_probs: Axes,
    fc1_weights: Axes,
    fc1_bias: Axes | None,
    fc2_weights: Axes,
    fc2_bias: Axes | None = None,
    fc3_weights: Axes | None = None,
    fc3_bias: Axes | None = None,
) -> list[Axes]:
    """Experts are rows of the first axis of each weight; each has hidden units of its own, cut alike."""
    hidden, experts, units = x[-1], Atom(fc1_weights[0].size), Atom(fc2_weights[2].size)
    first = _fused(op, units, fc1_weights[1].size)
    for weights, rows, columns in (
        (fc1_weights, first, hidden),
        (fc2_weights, hidden, units),
        (fc3_weights, units, hidden),
    ):
        for axis, known in zip(weights or (), (experts, rows, columns), strict=False):
            op.unify(axis, known)
    for bias, rows in ((fc1_bias, first), (fc2_bias, hidden), (fc3_bias, units)):
        for axis, known in zip(bias or (), (experts, rows), strict=False):
            op.unify(axis, known)
    _route(op, router_probs, experts, units)
    op.contract(2, hidden)
    op.contract(4, units)
    for rows, columns in ((first, hidden), (hidden, units), *([(units, hidden)] if fc3_weights else [])):
        op.multiply(op.refs(0, range(len(x) - 1)), [op.fixed(op.attribute("k", 1), ""), rows, columns])
    op.zeros(factors=[4], terms=[5])
    return [list(x)]


def _fused(op: Op, units: Axis, rows: int) -> Axis:
    """Rows of the first weight: the units, or (SwiGLU) gates and units, next to each other or side by side."""
    if rows == units.size:
        return units
    if op.attribute("swiglu_fusion", 0) == 1:
        return product(units, op.fixed(2, "gate and unit"))
    return Concat((units, units))


def _route(op: Op, router_probs: Axes, experts: Axis, units: Axis) -> None:
    """Without an expert others are chosen, which no masking of weights can show: experts are cut only when asked for."""
    op.unify(router_probs[-1], experts)
    op.pin(router_probs[:-1], "positions")
    op.reduces(1, experts, "the choice of experts")
    op.kind("expert", experts)
    op.kind("hidden", units)
    op.emit(lambda emitter: _emit_choice(emitter, experts))


def _emit_choice(emitter: Emitter, experts: Axis) -> None:
    """No more experts are chosen than there are."""
    left = emitter.size(experts)
    if emitter.op.attribute("k", 1) > left:
        emitter.node.attrs["k"] = left


@rule("QMoE", domain=DOMAIN)
def quantized_mixture_of_experts(
    op: Op,
    x: Axes,
    router_probs: Axes,
    fc1_weights: Axes,
    fc1_scales: Axes | None,
    fc1_bias: Axes | None,
    fc2_weights: Axes,
    fc2_scales: Axes | None = None,
    fc2_bias: Axes | None = None,
    *rest: Axes | None,
) -> list[Axes]:
    """The same with packed weights: hidden units go in whole bytes or blocks, the hidden axis stays."""
    if any(axes is not None for axes in rest) or op.attribute("quant_type", "int") != "int":
        raise Barrier("a third weight, zero points or another number format")
    op.pin(x[-1], "packed values")
    packed = fc2_weights[2].size
    per_byte = 8 // op.attribute("fc2_expert_weight_bits", op.attribute("expert_weight_bits", 4))
    block = max(op.attribute("block_size", 0), per_byte)
    if packed * per_byte % block:
        raise Barrier("hidden units that do not fit their blocks")
    experts, blocks = Atom(fc1_weights[0].size), Atom(packed * per_byte // block)
    units = product(blocks, op.fixed(block, "packed values"))
    rows = _fused(op, units, fc1_weights[1].size)
    for axes in (fc1_weights, fc1_scales, fc1_bias, fc2_weights, fc2_scales, fc2_bias):
        if axes is not None:
            op.unify(axes[0], experts)
    for axes in (fc1_weights, fc1_scales, fc1_bias):
        if axes is not None:
            op.unify(axes[1], rows)
            op.pin(axes[2:], "packed values")
    op.unify(fc2_weights[2], product(blocks, op.fixed(block // per_byte, "packed values")))
    for axis in (fc2_scales or ())[2:]:
        op.unify(axis, blocks)
    for axes in (fc2_weights, fc2_scales, fc2_bias):
        op.pin((axes or ())[1:2], "packed values")
    _route(op, router_probs, experts, units)
    op.contract(5, blocks)
    for left, right in ((rows, x[-1]), (x[-1], units)):
        op.multiply(op.refs(0, range(len(x) - 1)), [op.fixed(op.attribute("k", 1), ""), left, right])
    return [list(x)]
