"""Half precision: weights and arithmetic in float16, the model's inputs and outputs as they were."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from surgeon.errors import GateError

_LOAD = """
import sys, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""


def to_half(model: onnx.ModelProto, kept: Collection[str], folder: Path) -> onnx.ModelProto:
    """Returns the model with float16 inside; values beyond its range become the largest float16.

    onnxruntime's layout optimizer crashes — the process, not an exception — on some float16 convolutions and
    transpositions, so the result is first loaded by a process of its own; where that dies, these stay float32.

    Args:
        model: A float32 model whose nodes have unique names.
        kept: Names of nodes that stay float32.
        folder: A temporary folder.

    Raises:
        GateError: onnxruntime does not load the result any way.
    """
    convolutions, transpositions = ["Conv", "ConvTranspose"], ["Transpose"]
    for blocked in ([], transpositions, convolutions, [*convolutions, *transpositions]):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        half: onnx.ModelProto = convert_float_to_float16(
            copy,
            keep_io_types=True,
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, *blocked],
            node_block_list=sorted(kept),
        )
        del half.graph.value_info[:]
        path = folder / "half.onnx"
        onnx.save(half, str(path))
        command = [sys.executable, "-c", _LOAD, str(path)]
        if not subprocess.run(command, capture_output=True, check=False).returncode:  # noqa: S603  # our own code
            return half
    raise GateError("onnxruntime does not load this model in half precision", where="pass quantize")
