"""Numbers to integers and back, at constant scales and at scales measured while the model runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from surgeon.graph.weights import peek
from surgeon_passes.dequantizing.numbers import is_small, numbers_of, rounded
from surgeon_passes.dequantizing.registry import dequantizes
from surgeon_passes.dequantizing.writer import Later, Steps

if TYPE_CHECKING:
    from surgeon_passes.dequantizing.writer import Given, Writer

MICROSOFT = "com.microsoft"


@dequantizes("QuantizeLinear")
@dequantizes("QuantizeLinear", domain=MICROSOFT)
def quantize_linear(writer: Writer, given: Given) -> bool:
    """Numbers stay what they are, within the range; constants are rounded once and for all."""
    x, scale, zero = writer.plain(given[0]), given[1], given.optional(2)
    axis, block = given.attributes.get("axis", 1), given.attributes.get("block_size", 0)
    kind = given.attributes.get("output_dtype", 0)
    if zero is None and kind:
        zero = writer.constant(np.zeros((), onnx.helper.tensor_dtype_to_np_dtype(kind)))
    small = is_small(np.uint8 if zero is None else zero.dtype)
    known = all(isinstance(each, gs.Constant) for each in (x, scale, zero) if each is not None)
    if known and small and not block:
        zeros = None if zero is None else peek(zero)
        steps = rounded(peek(x), peek(scale), zeros, axis, np.uint8 if zero is None else zero.dtype)
        numbers = writer.constant(numbers_of(steps, peek(scale), zeros, axis), f"{x.name}_float")
        writer.steps[given.outputs[0].name] = Steps(numbers, scale, zero, axis)
    else:
        writer.state(given.outputs[0], x, scale, zero, axis)
    return True


@dequantizes("DequantizeLinear")
@dequantizes("DequantizeLinear", domain=MICROSOFT)
def dequantize_linear(writer: Writer, given: Given) -> bool:
    """Whoever reads the result reads the numbers."""
    axis, block = given.attributes.get("axis", 1), given.attributes.get("block_size", 0)
    writer.same(given.outputs[0], writer.number(given[0], given[1], given.optional(2), axis, block))
    return True


@dequantizes("DynamicQuantizeLinear")
def dynamic_quantize_linear(writer: Writer, given: Given) -> bool:
    """Numbers stay what they are: a measured range holds all of them. Nothing else may read the scale."""
    integers, scale, zero = given.outputs
    writer.steps[integers.name] = Steps(writer.plain(given[0]), scale, zero, 1)

    def refuse(_writer: Writer) -> gs.Tensor:
        raise given.unsupported(
            "its scale is read by an operator that does not apply it to a product of integers"
        )

    writer.later[scale.name] = writer.later[zero.name] = Later(refuse)
    return True
