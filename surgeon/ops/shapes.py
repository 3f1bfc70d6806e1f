"""Shape arithmetic: operators that read or write sizes. Reading a size does not pin it: constants are re-evaluated."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.ops.op import Axes, Op
from surgeon.ops.registry import rule


@rule("Shape", "Size")
def shape(op: Op, data: Axes) -> list[Axes]:
    """The sizes of the input, computed while the model runs."""
    del data
    return [op.fixed_output("number of axes")]


@rule("ConstantOfShape")
def constant_of_shape(op: Op, input: Axes) -> list[Axes]:  # noqa: A002 - named as ONNX names it
    """A constant tensor; its axes are whatever it is used with."""
    op.pin(input, "a shape")
    out = [
        op.fixed(size, "dynamic") if dynamic or size == 1 else op.free(size)
        for size, dynamic in zip(op.out_dims(), op.out_dynamic(), strict=True)
    ]
    op.resize_input(0, out)
    value = op.attribute("value")
    op.zeros(always=value is None or not np.any(value.values if isinstance(value, gs.Constant) else value))
    return [out]


@rule("Range")
def range_(op: Op, start: Axes, limit: Axes, delta: Axes) -> list[Axes]:
    """Consecutive numbers; which ones matters."""
    del start, limit, delta
    return [op.fixed_output("consecutive numbers")]
