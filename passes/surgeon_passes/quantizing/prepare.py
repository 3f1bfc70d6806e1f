"""Getting a model ready to be quantized: nodes with names, a sufficient opset, what onnxruntime fuses by itself, plain Gemms."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import onnx
import onnxruntime as ort

from surgeon.errors import GateError
from surgeon.graph.sessions import RUNTIME_ERRORS
from surgeon_passes.quantizing.gemms import make_plain

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


def names(model: onnx.ModelProto) -> Iterator[str]:
    """Yields the names of nodes and of what they read and make, in bodies as well."""
    for node in model.graph.node:
        yield from names_of(node)


def names_of(node: onnx.NodeProto) -> Iterator[str]:
    """Yields the names of a node, of what it reads and makes, and of all that in its bodies."""
    yield from filter(None, (node.name, *node.input, *node.output))
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                yield from names_of(inner)


def prepared(model: onnx.ModelProto, excluded: Callable[[str], bool], folder: Path) -> onnx.ModelProto:
    """Returns the model with names, in a sufficient opset, fused unless a pattern means something that would be gone, and its Gemms plain.

    Args:
        model: The model; its nodes get names in place.
        excluded: Whether a node or tensor name is to be left alone.
        folder: A temporary folder.

    Raises:
        GateError: The onnx package cannot convert it.
    """
    name_nodes(model)
    model = raise_opset(model, QDQ_OPSET)
    fused = fuse(model, folder)
    name_nodes(fused)
    left = set(names(fused))
    lost = any(name not in left and excluded(name) for name in names(model))
    still = {tuple(node.output) for node in fused.graph.node if node.op_type == "If"}
    gone = [node for node in model.graph.node if node.op_type == "If" and tuple(node.output) not in still]
    lost |= any(excluded(name) for node in gone for name in names_of(node))
    result = model if lost else fused
    make_plain(result, excluded)
    return result


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


def untie(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Gives nodes that share a weight, but not the axis its scales lie along, a copy each.

    onnxruntime's quantizer rounds a weight once, by the scales of whoever comes first.

    Args:
        model: A model whose nodes have names; it is changed in place.
        names: The nodes that are going to be quantized.
    """
    weights = {entry.name: entry for entry in model.graph.initializer}
    seen: dict[str, dict[tuple[str, int], str]] = {}
    for node in model.graph.node:
        place = 0 if node.op_type == "Gather" else 1
        if node.name not in names or len(node.input) <= place or node.input[place] not in weights:
            continue
        name, known = node.input[place], seen.setdefault(node.input[place], {})
        key = _scaled_axis(node)
        if key not in known:
            known[key] = name if not known else f"{name}_of_{node.name}"
            if known[key] != name:
                copy = model.graph.initializer.add()
                copy.CopyFrom(weights[name])
                copy.name = known[key]
        node.input[place] = known[key]


def _scaled_axis(node: onnx.NodeProto) -> tuple[str, int]:
    """What tells apart nodes that need other scales of the same weight."""
    transposed = any(each.name == "transB" and each.i for each in node.attribute)
    kinds = {"Gather": ("rows", 0), "MatMul": ("columns", 1), "Gemm": ("columns", 0 if transposed else 1)}
    return kinds.get(node.op_type, (node.op_type, 0))


def sort_nodes(model: onnx.ModelProto) -> None:
    """Puts nodes behind what they read, inside their bodies too, of which onnxruntime's quantizer does not think."""
    nodes = list(model.graph.node)
    makers = {output: k for k, node in enumerate(nodes) for output in node.output if output}
    waiting = [{makers[name] for name in _read(node) if name in makers} for node in nodes]
    users: list[list[int]] = [[] for _ in nodes]
    for k, needed in enumerate(waiting):
        for maker in needed:
            users[maker].append(k)
    ready = [k for k, needed in enumerate(waiting) if not needed]
    heapq.heapify(ready)
    order = []
    while ready:
        order.append(heapq.heappop(ready))
        for user in users[order[-1]]:
            waiting[user].discard(order[-1])
            if not waiting[user]:
                heapq.heappush(ready, user)
    del model.graph.node[:]
    model.graph.node.extend(nodes[k] for k in order)


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """The names a node reads, and those its bodies mention."""
    yield from node.input
    for attribute in node.attribute:
        for body in [attribute.g, *attribute.graphs]:
            yield from (output.name for output in body.output)
            for inner in body.node:
                yield from _read(inner)


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
