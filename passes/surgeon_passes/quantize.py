"""The pass ``quantize``: weights and arithmetic with 8 bits, or half precision, through onnxruntime's quantizer."""

from __future__ import annotations

import fnmatch
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from surgeon.errors import DataError, GateError, UnsupportedModelError, UsageError
from surgeon.passes import Pass

if TYPE_CHECKING:
    import onnx

    from surgeon.passes import Context, Graph
    from surgeon_passes.quantizing.choose import Choice

_LARGEST = 2**31 - 1  # bytes; onnxruntime's quantizer works on one protobuf message


@dataclass(frozen=True)
class Quantize(Pass):
    """Post-training quantization.

    Attributes:
        mode: static (8-bit weights and activations, scales from data), dynamic (8-bit weights, activation scales
            at run time), fp16 (half precision inside), or auto: static with data; without, dynamic where that
            reaches half of the weights and otherwise static with made-up inputs.
        calibration: How static mode finds the range of an activation: minmax, percentile (99.999 %) or entropy.
        per_channel: One scale per output channel of a weight instead of one for all.
        activation: Type of 8-bit activations: uint8 (asymmetric) or int8 (symmetric).
        samples: Calibration samples used at most.
        exclude: Nodes with a node or tensor name that matches one of these patterns stay float.
        guard: Leave operators in float where 8 bits do not pay on this machine, by measurement; what is chosen then
            depends on the machine.
    """

    name: ClassVar[str] = "quantize"
    requires: ClassVar[frozenset[str]] = frozenset({"float"})
    ensures: ClassVar[frozenset[str]] = frozenset({"qdq"})
    removes: ClassVar[frozenset[str]] = frozenset({"float", "prunable"})

    mode: Literal["auto", "static", "dynamic", "fp16"] = "auto"
    calibration: Literal["minmax", "percentile", "entropy"] = "minmax"
    per_channel: bool = True
    activation: Literal["uint8", "int8"] = "uint8"
    samples: int = 512
    exclude: tuple[str, ...] = ()
    guard: bool = True

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UsageError(f"must be at least 1, got {self.samples}", where="quantize.samples")

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
        from surgeon.graph.sessions import session
        from surgeon_passes.quantizing import kernels, prepare
        from surgeon_passes.quantizing.compact import compact

        if model.ByteSize() > _LARGEST:
            raise GateError("models over 2 GB cannot be quantized", where="pass quantize", hint="prune first")
        prepare.name_nodes(model)
        if self.mode == "fp16":
            return self._half(model, context, folder)
        model = prepare.raise_opset(model, prepare.QDQ_OPSET)
        model = self._fused(model, context, folder)
        known = {*_names(model)}
        mode, choice = self._choose(model, context)
        if not choice.weighted:
            raise GateError("nothing can be quantized", where="pass quantize", hint=_reasons(choice))
        build = self._builder(mode, model, choice, context, folder)
        if self.guard:
            choice = self._guarded(mode, model, choice, build, context)
        result = build(choice)
        compact(result, known)
        prepare.strip_opsets(result)
        prepare.restore_interface(result, model)
        session(result)
        _record(mode, choice, context)
        context.record.update(kernels.count(result))
        return result

    def _fused(self, model: onnx.ModelProto, context: Context, folder: Path) -> onnx.ModelProto:
        """Lets onnxruntime fuse what it fuses, unless a pattern means something that would be gone then."""
        from surgeon_passes.quantizing import prepare

        fused = prepare.fuse(model, folder)
        prepare.name_nodes(fused)
        left = set(_names(fused))
        lost = any(name not in left and self._excluded(name, context) for name in _names(model) if name)
        return model if lost else fused

    def _builder(
        self, mode: str, model: onnx.ModelProto, choice: Choice, context: Context, folder: Path
    ) -> Callable[[Choice], onnx.ModelProto]:
        """Returns what makes a quantized model of a choice; ranges are found here, once."""
        from surgeon_passes.quantizing.dynamic import quantize_dynamic
        from surgeon_passes.quantizing.static import Static

        if mode == "dynamic":
            return lambda each: quantize_dynamic(model, each, folder, per_channel=self.per_channel)

        static = Static.calibrated(
            model,
            choice,
            context.calibration().take(self.samples),
            folder,
            calibration=self.calibration,
            per_channel=self.per_channel,
            activation=self.activation,
            threads=context.threads,
        )
        context.record["samples"] = static.samples
        return static.build

    def _guarded(
        self,
        mode: str,
        model: onnx.ModelProto,
        choice: Choice,
        build: Callable[[Choice], onnx.ModelProto],
        context: Context,
    ) -> Choice:
        """Returns what of a choice pays on this machine."""
        from surgeon.measure import one_sample
        from surgeon_passes.quantizing.choose import choose
        from surgeon_passes.quantizing.speed import guard

        def rechoose(stay: Mapping[str, str]) -> Choice:
            static = mode == "static"
            return choose(model, lambda name: self._excluded(name, context), static=static, stay=stay)

        try:
            with context.progress("measure 8-bit operators"):
                verdict = guard(
                    model, choice, rechoose, build, one_sample(context), conversions=mode == "static"
                )
        except (DataError, UnsupportedModelError) as error:
            context.warn(f"nothing stays float for speed, which could not be measured: {error.message}")
            return choice
        context.record["speed"] = verdict.facts()
        return verdict.taken.choice

    def _choose(self, model: onnx.ModelProto, context: Context) -> tuple[str, Choice]:
        """Returns the mode and the operators; without data, dynamic as long as it reaches half of the weights."""
        from surgeon_passes.quantizing.choose import choose

        def excluded(name: str) -> bool:
            return self._excluded(name, context)

        if self.mode == "dynamic" or (self.mode == "auto" and context.data is None):
            choice = choose(model, excluded, static=False)
            if self.mode == "dynamic" or choice.reached(model) >= 0.5:
                return "dynamic", choice
        return "static", choose(model, excluded, static=True)

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


def _record(mode: str, choice: Choice, context: Context) -> None:
    counts: dict[str, int] = {}
    for operator in choice.weighted.values():
        counts[operator] = counts.get(operator, 0) + 1
    context.record["mode"] = mode
    context.record["quantized"] = dict(sorted(counts.items()))
    context.record["left_float"] = [
        {"node": name, "operator": operator, "reason": reason}
        for name, (operator, reason) in choice.left.items()
    ]
    convolutions = sum(operator.startswith("Conv") for operator, _ in choice.left.values())
    if mode == "dynamic" and convolutions:
        context.warn(f"{convolutions} convolutions stay float: quantizing them takes --data")


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
