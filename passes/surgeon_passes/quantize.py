"""The pass ``quantize``: weights and arithmetic with 8 bits, or half precision, through onnxruntime's quantizer."""

from __future__ import annotations

import copy
import fnmatch
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from surgeon.errors import GateError, UsageError
from surgeon.passes import Pass

if TYPE_CHECKING:
    import onnx

    from surgeon.passes import Context, Graph
    from surgeon_passes.quantizing.choose import Choice

_BLOCKS = (16, 32, 64, 128, 256)  # the sizes MatMulNBits has kernels for
_LARGEST = 2**31 - 1  # bytes; onnxruntime's quantizer works on one protobuf message


@dataclass(frozen=True)
class Quantize(Pass):
    """Post-training quantization.

    Attributes:
        mode: static (8-bit weights and activations, scales from data), dynamic (8-bit weights, activation scales
            at run time), weights (weights with few bits, activations as they were), fp16 (half precision inside),
            or auto: static with data; without, dynamic where that reaches half of the weights and otherwise static
            with made-up inputs. What has no 8-bit kernel keeps its arithmetic in auto, and 8-bit weights in the file.
        calibration: How static mode finds the range of an activation: minmax, percentile (99.999 %) or entropy.
        per_channel: One scale per output channel of a weight instead of one for all.
        activation: Type of 8-bit activations: uint8 (asymmetric), int8 (symmetric), or auto, which is what this
            processor is faster with.
        bits: Bits of the weights of matrix products and embeddings in mode weights; others take 8.
        block: How many of these weights share a scale.
        symmetric: Whether zero is the middle of every block's range.
        samples: Calibration samples used at most.
        rounding: How static mode rounds weights: gptq (each makes up for what others lose, as in the pass of that name) or
            nearest.
        correct_bias: Whether static mode lets biases make up for mean errors, as the pass of that name does.
        memory: Megabytes of activations held in memory for these two, per model; the rest goes to temporary files.
        exclude: Nodes with a node or tensor name that matches one of these patterns stay float.
    """

    name: ClassVar[str] = "quantize"
    requires: ClassVar[frozenset[str]] = frozenset({"float"})
    ensures: ClassVar[frozenset[str]] = frozenset({"qdq"})
    removes: ClassVar[frozenset[str]] = frozenset({"float", "prunable"})

    mode: Literal["auto", "static", "dynamic", "weights", "fp16"] = "auto"
    calibration: Literal["minmax", "percentile", "entropy"] = "minmax"
    per_channel: bool = True
    activation: Literal["auto", "uint8", "int8"] = "auto"
    bits: Literal[4, 8] = 8
    block: int = 32
    symmetric: bool = False
    samples: int = 512
    rounding: Literal["nearest", "gptq"] = "gptq"
    correct_bias: bool = True
    memory: int = 2048
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option in ("samples", "memory"):
            if getattr(self, option) < 1:
                raise UsageError(
                    f"must be at least 1, got {getattr(self, option)}", where=f"quantize.{option}"
                )
        if self.block not in _BLOCKS:
            known = ", ".join(map(str, _BLOCKS))
            raise UsageError(f"must be one of {known}, got {self.block}", where="quantize.block")

    def run(self, graph: Graph, context: Context) -> Graph:
        """Returns the quantized graph; raises GateError where nothing can be quantized."""
        from surgeon.graph.load import from_model
        from surgeon.graph.save import to_model
        from surgeon.graph.source import source_of

        with tempfile.TemporaryDirectory(prefix="surgeon-quantize-") as folder, _quiet():
            model = self._quantized(to_model(graph), context, Path(folder))
        result = from_model(model)
        result.surgeon_source = source_of(graph) or source_of(result)
        return result

    def _quantized(self, model: onnx.ModelProto, context: Context, folder: Path) -> onnx.ModelProto:
        from surgeon.graph.load import from_model
        from surgeon.graph.sessions import session
        from surgeon_passes.quantizing import prepare
        from surgeon_passes.quantizing.compact import compact

        if model.ByteSize() > _LARGEST:
            raise GateError("models over 2 GB cannot be quantized", where="pass quantize", hint="prune first")
        prepare.name_nodes(model)
        if self.mode == "fp16":
            return self._half(model, context, folder)
        model = prepare.raise_opset(model, prepare.QDQ_OPSET)
        if not (self.exclude or context.exclude):  # patterns mean the names from before fusing
            model = prepare.fuse(model, folder)
            prepare.name_nodes(model)
        known = {*_names(model)}
        mode, choice = self._choose(model, context)
        prepare.untie(model, choice.weighted)
        context.unrounded = from_model(model)
        if mode == "static":
            result = self._static(model, choice, context, folder)
        elif mode == "dynamic":
            result = self._dynamic(model, choice, folder)
        else:
            result = copy.deepcopy(model)
        if self.mode == "auto" and mode != "dynamic":
            result = self._recurrent(model, result, choice, context, folder)
        stored = self._stored(result, choice, context) if self.mode in ("auto", "weights") else {}
        if not choice.weighted and not stored:
            raise GateError("nothing can be quantized", where="pass quantize", hint=_reasons(choice))
        prepare.sort_nodes(result)
        compact(result, known)
        prepare.strip_opsets(result)
        prepare.restore_interface(result, model)
        session(result)
        _record(mode, choice, stored, context)
        return result

    def _stored(self, model: onnx.ModelProto, choice: Choice, context: Context) -> dict[str, str]:
        """Stores weights that are still floats with few bits; returns whose become floats at loading: name to operator."""
        from surgeon_passes.quantizing.weights import Storage, store_weights

        storage = Storage(self.bits if self.mode == "weights" else 8, self.block, self.symmetric)
        found = store_weights(model, lambda name: self._excluded(name, context), storage)
        choice.left.update(found.left)
        for name in {**found.kernels, **found.folded}:
            choice.left.pop(name, None)
        choice.weighted.update(found.kernels)
        return found.folded

    def _recurrent(
        self, model: onnx.ModelProto, result: onnx.ModelProto, choice: Choice, context: Context, folder: Path
    ) -> onnx.ModelProto:
        """Gives the LSTMs that a quantized ``model`` still has their dynamic 8-bit kernel: it is the faster one."""
        from surgeon_passes.quantizing.choose import Choice, choose

        found = choose(model, lambda name: self._excluded(name, context), static=False).weighted
        layers = {name: operator for name, operator in found.items() if operator == "LSTM"}
        if not layers:
            return result
        for name, operator in layers.items():
            choice.left.pop(name, None)
            choice.weighted[name] = operator
        return self._dynamic(result, Choice(nodes=list(layers)), folder)

    def _dynamic(self, model: onnx.ModelProto, choice: Choice, folder: Path) -> onnx.ModelProto:
        from surgeon_passes.quantizing.dynamic import quantize_dynamic
        from surgeon_passes.quantizing.processor import this_processor

        reduce = this_processor().reduce_range
        return quantize_dynamic(model, choice, folder, per_channel=self.per_channel, reduce_range=reduce)

    def _static(
        self, model: onnx.ModelProto, choice: Choice, context: Context, folder: Path
    ) -> onnx.ModelProto:
        from surgeon_passes.quantizing import values
        from surgeon_passes.quantizing.processor import this_processor
        from surgeon_passes.quantizing.static import Static

        numbers = this_processor()
        static = Static.calibrated(
            model,
            choice,
            context.calibration().take(self.samples),
            folder,
            calibration=self.calibration,
            per_channel=self.per_channel,
            activation=numbers.activation if self.activation == "auto" else self.activation,
            reduce_range=numbers.reduce_range,
            threads=context.threads,
        )
        context.record["samples"] = static.samples
        return values.improved(
            static.build(choice),
            model,
            context,
            rounding=self.rounding,
            correct_bias=self.correct_bias,
            samples=self.samples,
            memory=self.memory,
        )

    def _choose(self, model: onnx.ModelProto, context: Context) -> tuple[str, Choice]:
        """Returns the mode and the operators; without data, dynamic as long as it reaches half of the weights."""
        from surgeon_passes.quantizing.choose import Choice, choose

        def excluded(name: str) -> bool:
            return self._excluded(name, context)

        if self.mode == "weights":
            return "weights", Choice()
        if self.mode == "dynamic" or (self.mode == "auto" and context.data is None):
            choice = choose(model, excluded, static=False)
            if self.mode == "dynamic" or choice.reached(model) >= 0.5:
                return "dynamic", choice
        choice = choose(model, excluded, static=True)
        return "weights" if self.mode == "auto" and not choice.weighted else "static", choice

    def _half(self, model: onnx.ModelProto, context: Context, folder: Path) -> onnx.ModelProto:
        from surgeon_passes.quantizing.half import to_half
        from surgeon_passes.quantizing.prepare import restore_interface

        kept = {
            node.name
            for node in model.graph.node
            if any(self._excluded(name, context) for name in (node.name, *node.input, *node.output) if name)
        }
        if not any(entry.data_type == 1 for entry in model.graph.initializer):
            raise GateError("there are no float32 weights", where="pass quantize")
        result = to_half(model, kept, folder)
        restore_interface(result, model)
        context.record["mode"] = "fp16"
        context.record["left_float"] = [
            {"node": node.name, "operator": node.op_type, "reason": "excluded"}
            for node in model.graph.node
            if node.name in kept
        ]
        return result

    def _excluded(self, name: str, context: Context) -> bool:
        return context.excluded(name) or any(fnmatch.fnmatchcase(name, each) for each in self.exclude)


def _record(mode: str, choice: Choice, stored: dict[str, str], context: Context) -> None:
    context.record["mode"] = mode
    context.record["quantized"] = _counts(choice.weighted)
    context.record["stored"] = _counts(stored)
    context.record["left_float"] = [
        {"node": name, "operator": operator, "reason": reason}
        for name, (operator, reason) in choice.left.items()
    ]
    convolutions = sum(operator.startswith("Conv") for operator, _ in choice.left.values())
    if mode == "dynamic" and convolutions:
        context.warn(f"{convolutions} convolutions stay float: quantizing them takes --data")


def _counts(operators: dict[str, str]) -> dict[str, int]:
    """How many nodes there are of each operator."""
    return dict(sorted(Counter(operators.values()).items()))


def _names(model: onnx.ModelProto) -> Iterator[str]:
    for node in model.graph.node:
        yield node.name
        yield from node.input
        yield from node.output


def _reasons(choice: Choice) -> str:
    if not choice.left:
        return "the model has no convolutions, matrix products or embeddings with constant weights"
    name, (operator, reason) = next(iter(choice.left.items()))
    more = f", and {len(choice.left) - 1} more" if len(choice.left) > 1 else ""
    return f"{operator} {name}: {reason}{more}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps onnxruntime's quantizer from logging advice about the intermediate files it is given."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
