"""Half precision: weights and arithmetic in float16, the model's inputs and outputs as they were."""

from __future__ import annotations

from collections.abc import Collection

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16


def to_half(model: onnx.ModelProto, kept: Collection[str]) -> onnx.ModelProto:
    """Returns the model with float16 inside; values beyond its range become the largest float16.

    Args:
        model: A float32 model whose nodes have unique names.
        kept: Names of nodes that stay float32.
    """
    converted: onnx.ModelProto = convert_float_to_float16(
        model, keep_io_types=True, node_block_list=sorted(kept)
    )
    return converted
