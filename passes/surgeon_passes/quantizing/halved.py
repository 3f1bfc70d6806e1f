"""Integers of 4 bits in the file, two to a byte; onnxruntime makes 8-bit ones of them once, when it loads the model.

Its kernels then are those of a model with 8-bit weights. A Cast from 4 bits takes opset 21 and onnxruntime 1.23.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper

from surgeon.errors import GateError, UnsupportedModelError
from surgeon.graph.sessions import run, session
from surgeon_passes.quantizing.blocks import pack
from surgeon_passes.quantizing.nodes import free_name, set_nodes
from surgeon_passes.quantizing.prepare import raise_opset

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Any

    from numpy.typing import NDArray

OPSET = 21  # the first whose Cast reads 4 bits
_IR = 10  # the first of such files
_LOW, _HIGH = -8, 7


def halved(model: onnx.ModelProto, names: Collection[str]) -> tuple[onnx.ModelProto, list[str]]:
    """Store 8-bit weights whose integers fit into 4 bits with half of the bytes.

    Args:
        model: A quantized model; it stays as it is.
        names: Initializers to look at; those with other integers stay.

    Returns:
        The model, and the names of what is stored so. A Cast has the name of its weight.

    Raises:
        GateError: The onnx package cannot convert the model to the opset it takes.
    """
    fitting = [
        entry.name
        for entry in model.graph.initializer
        if entry.name in names and entry.data_type == onnx.TensorProto.INT8 and _fits(entry)
    ]
    if not fitting:
        return model, []
    result = onnx.ModelProto()
    result.CopyFrom(raise_opset(model, OPSET))
    result.ir_version = max(result.ir_version, _IR)
    if not model.graph.value_info:  # which the converter adds
        del result.graph.value_info[:]
    taken = {entry.name for entry in result.graph.initializer}
    taken |= {name for node in result.graph.node for name in (node.name, *node.input, *node.output)}
    casts = []
    for entry in result.graph.initializer:
        if entry.name in fitting:
            stored = free_name(f"{entry.name}4", taken)
            casts.append(
                onnx.helper.make_node("Cast", [stored], [entry.name], stored, to=onnx.TensorProto.INT8)
            )
            steps = (numpy_helper.to_array(entry).ravel().astype(np.int16) & 15).astype(np.uint8)
            entry.name, entry.data_type = stored, onnx.TensorProto.INT4
            entry.ClearField("int32_data")
            entry.raw_data = pack(steps, 4).tobytes()
    set_nodes(result.graph, [*casts, *result.graph.node])
    return result, fitting


def why_not(model: onnx.ModelProto) -> str | None:
    """Why weights cannot be stored so here, before anything depends on it; None if they can."""
    value = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT8, [2])
    stored = onnx.helper.make_tensor("w", onnx.TensorProto.INT4, [2], bytes(1), raw=True)
    cast = onnx.helper.make_node("Cast", ["w"], ["y"], to=onnx.TensorProto.INT8)
    graph = onnx.helper.make_graph([cast], "g", [], [value], [stored])
    opset = onnx.helper.make_opsetid("", OPSET)
    try:
        session(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=_IR))
        raise_opset(model, OPSET)
    except (GateError, UnsupportedModelError) as error:
        return error.message
    return None


def same_outputs(one: onnx.ModelProto, other: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]]) -> bool:
    """Whether two models make the very same of a sample."""
    first, second = (run(session(model), feeds) for model in (one, other))
    return all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(first, second, strict=True)
    )


def _fits(entry: onnx.TensorProto) -> bool:
    values = numpy_helper.to_array(entry)
    return bool(values.size) and bool(values.min() >= _LOW) and bool(values.max() <= _HIGH)
