"""Quantization: scales and zero points belong to the axis they scale."""

from __future__ import annotations

from surgeon.axes import Atom, product
from surgeon.ops.op import Axes, Op
from surgeon.ops.registry import rule


@rule("QuantizeLinear", "DequantizeLinear")
def scale_linear(op: Op, x: Axes, scale: Axes, zero_point: Axes | None = None) -> list[Axes]:
    """Per tensor, per axis (1-D scale) or per block of an axis (scale of the same rank)."""
    block = op.attribute("block_size", 0)
    for parameter in (scale, zero_point):
        if parameter is None or not parameter or all(axis.size == 1 for axis in parameter):
            continue
        axis = op.attribute("axis", 1) % len(x)
        if block:
            _unify_blocks(op, x, parameter, axis)
        else:
            op.unify(parameter[0], x[axis])
    op.divides_by(1, 2)
    if op.node.op == "DequantizeLinear":
        op.quantized(0, 2, op.attribute("axis", 1), scale=1)
    op.zeros(factors=[0])
    return [x]


def _unify_blocks(op: Op, x: Axes, parameter: Axes, axis: int) -> None:
    for k, (whole, part) in enumerate(zip(x, parameter, strict=True)):
        if k != axis:
            op.unify(whole, part)
    inner = x[axis].size // parameter[axis].size
    blocks = Atom(parameter[axis].size)
    op.unify(parameter[axis], blocks)
    op.unify(x[axis], product(blocks, op.fixed(inner, "quantization block")))
