"""The weights of a model as numbers to rank by: narrow and quantized types become floats."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from surgeon.graph.weights import peek

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from surgeon.quantized import Meaning

NARROW = ("int8", "uint8", "int4", "uint4", "int2", "uint2", "int16", "uint16")


def as_numbers(constant: gs.Constant, meanings: Mapping[str, Meaning]) -> NDArray[np.floating] | None:
    """The values as floats, dequantized where it is known what they mean; None for what is no weight."""
    values = peek(constant)
    if values.dtype.kind == "f":
        return values
    name = values.dtype.name
    if name in NARROW:
        known = meanings.get(constant.name)
        return values.astype(np.float32) if known is None else known.numbers(values)
    if name == "bfloat16" or name.startswith("float"):  # types numpy does not count as floats
        return values.astype(np.float32)
    return None
