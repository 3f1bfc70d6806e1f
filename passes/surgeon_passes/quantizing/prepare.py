"""Getting a model ready to be quantized: nodes with names, a sufficient opset, and what onnxruntime fuses by itself."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx
import onnxruntime as ort

from surgeon.errors import GateError
from surgeon.graph.sessions import RUNTIME_ERRORS

QDQ_OPSET = 13  # the first whose DequantizeLinear has an axis, for scales per channel
_SILENT = 4


def name_nodes(model: onnx.ModelProto) -> None:
    """Gives every node of the main graph a name of its own; onnxruntime's quantizer addresses them by name."""
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
        while node.name in taken:
            node.name += "_"
        taken.add(node.name)


def raise_opset(model: onnx.ModelProto, least: int) -> onnx.ModelProto:
    """Returns the model in an opset of at least ``least``.

    Raises:
        GateError: The onnx package cannot convert it.
    """
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), least)
    if version >= least:
        return model
    try:
        converted = onnx.version_converter.convert_version(model, least)
        onnx.checker.check_model(converted)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise GateError(
            f"cannot be converted from opset {version} to the opset {least} that quantization needs: "
            f"{str(error).strip().splitlines()[0]}",
            hint="export the model again with a newer opset",
        ) from error
    restore_interface(converted, model)  # the converter guesses shapes
    converted.ir_version = max(model.ir_version, 7)
    return converted


def fuse(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Returns the model after onnxruntime's basic rewrites (BatchNorm into Conv, MatMul and Add into Gemm, …).

    Its constant folding fails on some exporters' graphs; then the rewrites are done without it, or not at all.
    Graph inputs, outputs and their symbolic dimensions stay as they were.
    """
    source, target = folder / "before.onnx", folder / "fused.onnx"
    onnx.save(model, str(source))
    domains = {node.domain for node in model.graph.node}
    for disabled in ([], ["ConstantFolding"]):
        if not _rewrite(source, target, disabled):
            continue
        fused = onnx.load(str(target))
        if {node.domain for node in fused.graph.node} <= domains:
            restore_interface(fused, model)
            strip_opsets(fused)
            fused.ir_version = model.ir_version
            return fused
    return model


def strip_opsets(model: onnx.ModelProto) -> None:
    """Drops the imports of operator sets that no node uses; onnxruntime adds all it knows."""
    used = {"", *_domains(model.graph)}
    kept = [
        entry for entry in model.opset_import if ("" if entry.domain == "ai.onnx" else entry.domain) in used
    ]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _domains(graph: onnx.GraphProto) -> Collection[str]:
    found = set()
    for node in graph.node:
        found.add("" if node.domain == "ai.onnx" else node.domain)
        for attribute in node.attribute:
            for body in [attribute.g, *attribute.graphs]:
                found.update(_domains(body))
    return found


def _rewrite(source: Path, target: Path, disabled: list[str]) -> bool:
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.intra_op_num_threads = 1
    try:
        ort.InferenceSession(
            str(source), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
        )
    except RUNTIME_ERRORS:  # the model is used as it was
        return False
    return target.exists()


def restore_interface(model: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Declares graph inputs and outputs as ``original`` does, symbolic dimensions included."""
    for ours, theirs in (
        (model.graph.input, original.graph.input),
        (model.graph.output, original.graph.output),
    ):
        del ours[:]
        ours.extend(theirs)
