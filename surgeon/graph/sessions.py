"""Models running in onnxruntime: quiet, deterministic sessions and taps on intermediate tensors."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as native

from surgeon.errors import DataError, UnsupportedModelError
from surgeon.graph.halves import CRASHING, is_half, survives

Array = NDArray[Any]

#: Everything onnxruntime raises; its classes have no common base of their own.
RUNTIME_ERRORS = (
    native.EPFail,
    native.EngineError,
    native.Fail,
    native.InvalidArgument,
    native.InvalidGraph,
    native.InvalidProtobuf,
    native.ModelLoaded,
    native.NoModel,
    native.NoSuchFile,
    native.NotImplemented,
    native.RuntimeException,
    RuntimeError,
    ValueError,
)
MANY_NODES = 2000  # above, time for planning matters more than memory of activations
_FATAL_ONLY = 4
_LARGEST_MESSAGE = 2**31 - 1  # bytes protobuf can hold in one message
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : (\w+) : ")


def session(
    model: onnx.ModelProto | bytes | Path,
    *,
    threads: int = 1,
    optimize: bool = True,
    frugal: bool = False,
    reuse: bool = True,
    integers: bool = True,
    timed: bool = False,
) -> ort.InferenceSession:
    """Opens a model on the CPU, silently and deterministically.

    Args:
        model: The model, its serialized bytes, or the path of its file (needed for external data).
        threads: Threads inside an operator. Idle threads sleep instead of spinning, so that two sessions
            can be compared on a busy machine.
        optimize: Whether onnxruntime may fuse and fold; without it, every tensor stays observable as written.
        frugal: Whether memory matters more than time: external data are used where they are mapped, instead of being
            packed for the kernels, and memory of activations is given back.
        reuse: Whether activations may take each other's place in memory. Planning that takes onnxruntime time that
            grows with the square of the number of nodes.
        integers: Whether onnxruntime may compute in integers what QuantizeLinear and DequantizeLinear round; it looks
            for that in gradients too, where it does not find its way.
        timed: Whether time matters, so that nothing is switched off that users have, unless onnxruntime dies of it.

    Raises:
        UnsupportedModelError: onnxruntime cannot load the model; the message is its first line.
    """
    ort.set_default_logger_severity(_FATAL_ONLY)
    chosen = session_options(threads, optimize=optimize, frugal=frugal, reuse=reuse)
    if not integers:
        chosen.add_session_config_entry("session.disable_quant_qdq", "1")
    where = str(model) if isinstance(model, Path) else None
    try:
        return open_with(model, chosen, timed=timed)
    except RUNTIME_ERRORS as error:
        raise UnsupportedModelError(
            f"onnxruntime cannot load the model: {first_line(error)}",
            where=where,
            hint="the model has to load in onnxruntime before and after surgery",
        ) from error


def run(
    runner: ort.InferenceSession, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
) -> list[Array]:
    """Runs a session and returns its outputs, all of them unless some are named.

    Feeds that are not inputs of the model are ignored, so that one set of feeds serves a model and its
    optimized copy.

    Raises:
        DataError: The feeds do not fit the model's inputs.
        UnsupportedModelError: The model fails while it runs.
    """
    names = [argument.name for argument in runner.get_inputs()]
    missing = [name for name in names if name not in feeds]
    if missing:
        raise DataError(
            f"the model's input has no data: {', '.join(missing)}", hint=f"given: {', '.join(sorted(feeds))}"
        )
    try:
        results: list[Array] = runner.run(outputs, {name: feeds[name] for name in names})
    except native.InvalidArgument as error:
        raise DataError(f"the data do not fit the model: {first_line(error)}") from error
    except RUNTIME_ERRORS as error:
        raise UnsupportedModelError(f"onnxruntime cannot run the model: {first_line(error)}") from error
    return results


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Returns a copy of the model whose outputs are followed by the intermediate tensors ``names``.

    Names that are outputs already are not repeated; onnxruntime infers the types of the others.

    Raises:
        UnsupportedModelError: No node of the main graph computes one of the tensors.
    """
    computed = {output for node in model.graph.node for output in node.output}
    computed |= {argument.name for argument in model.graph.input}
    unknown = [name for name in names if name not in computed]
    if unknown:
        raise UnsupportedModelError(f"no node computes the tensor {unknown[0]!r}")
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    present = {output.name for output in model.graph.output}
    for name in dict.fromkeys(names):
        if name not in present:
            tapped.graph.output.add(name=name)
    return tapped


def first_line(error: BaseException) -> str:
    """Returns what an onnxruntime exception says first, without its code."""
    lines = str(error).strip().splitlines()
    return _PREFIX.sub("", lines[0]).strip() if lines else type(error).__name__


def session_options(
    threads: int, *, optimize: bool = True, frugal: bool = False, reuse: bool = True
) -> ort.SessionOptions:
    """Returns what `session` opens a model with, for who has to set more."""
    chosen = ort.SessionOptions()
    chosen.log_severity_level = _FATAL_ONLY
    chosen.intra_op_num_threads = threads
    chosen.inter_op_num_threads = 1
    chosen.use_deterministic_compute = True
    chosen.add_session_config_entry("session.intra_op.allow_spinning", "0")
    chosen.add_session_config_entry("session.inter_op.allow_spinning", "0")
    chosen.enable_mem_reuse = reuse
    if frugal:
        chosen.enable_cpu_mem_arena = chosen.enable_mem_pattern = False
        chosen.add_session_config_entry("session.disable_prepacking", "1")
    if not optimize:
        chosen.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return chosen


def open_with(
    model: onnx.ModelProto | bytes | Path, options: ort.SessionOptions, *, timed: bool = False
) -> ort.InferenceSession:
    """Opens a model on the CPU as `session` does, with options of one's own.

    Raises:
        RUNTIME_ERRORS: onnxruntime cannot load it.
    """
    without = [CRASHING] if is_half(model) and not (timed and survives(model)) else []
    if isinstance(model, onnx.ModelProto) and model.ByteSize() > _LARGEST_MESSAGE:
        with tempfile.TemporaryDirectory(prefix="surgeon-") as folder:
            path = Path(folder) / "model.onnx"
            copy = onnx.ModelProto()
            copy.CopyFrom(model)  # saving with external data rewrites the initializers it is given
            onnx.save(copy, str(path), save_as_external_data=True, location="weights")
            return _open(str(path), options, without)
    if isinstance(model, onnx.ModelProto):
        return _open(model.SerializeToString(), options, without)
    return _open(str(model) if isinstance(model, Path) else model, options, without)


def _open(model: str | bytes, options: ort.SessionOptions, without: list[str]) -> ort.InferenceSession:
    return ort.InferenceSession(
        model, options, providers=["CPUExecutionProvider"], disabled_optimizers=without
    )
