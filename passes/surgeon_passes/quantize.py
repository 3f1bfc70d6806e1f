"""The pass ``quantize``: weights and arithmetic with 8 bits, or half precision, through onnxruntime's quantizer."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from surgeon.errors import DataError, GateError, UnsupportedModelError, UsageError
from surgeon.judge import OFFERS
from surgeon.passes import Pass
from surgeon_passes.training.excluded import excluded_by

if TYPE_CHECKING:
    import onnx

    from surgeon.passes import Context, Graph
    from surgeon.stats.data import Dataset
    from surgeon_passes.quantizing.choose import Choice
    from surgeon_passes.quantizing.control import Spend
    from surgeon_passes.quantizing.maker import Made, Maker

_BLOCKS = (16, 32, 64, 128, 256)  # the sizes MatMulNBits has kernels for
_STEPS = "steps before quantizing that help"  # where the run keeps them
_STATIC = ("calibration", "percentile", "activation", "rounding", "narrow")  # options of static mode alone
_LARGEST = 2**31 - 1  # bytes; onnxruntime's quantizer works on one protobuf message


@dataclass(frozen=True)
class Quantize(Pass):
    """Post-training quantization.

    Attributes:
        mode: static (8-bit weights and activations, scales from data), dynamic (8-bit weights, activation scales
            at run time), weights (weights with few bits, activations as they were), fp16 (half precision inside),
            or auto: static with data; without, dynamic where that reaches half of the weights and otherwise static
            with made-up inputs. What has no 8-bit kernel keeps its arithmetic in auto, and 8-bit weights in the file.
        calibration: How static mode finds the range of an activation: minmax, moving-average, percentile, entropy, mse,
            or auto: for each activation the one of these that changes least what comes out of the operators behind.
        percentile: Per cent of an activation's values that its range covers, with percentile.
        per_channel: One scale per output channel of a weight instead of one for all.
        activation: Type of 8-bit activations: uint8 (asymmetric), int8 (symmetric), or auto, which is what this
            processor is faster with.
        bits: Bits of the weights of matrix products and embeddings in mode weights; others take 8.
        block: How many of these weights share a scale.
        symmetric: Whether zero is the middle of every block's range.
        samples: Calibration samples used at most.
        equalize: Whether channels are equalized first, as the pass ``equalize`` does. By default static mode tries it, and
            keeps it where the quantized model is closer to the float one on held-out calibration samples.
        smooth: The same for what the pass ``smooth`` does.
        max_drop: The largest accepted loss of the metric: as many operators stay float as that takes; by default the
            run's ``--max-drop``.
        rounding: How static mode rounds weights: nearest, gptq (each makes up for what others lose, as in the pass of that
            name), or learned: that first, then as in the pass learn_rounding.
        correct_bias: Whether static mode lets biases make up for mean errors, as the pass of that name does.
        memory: Megabytes of activations held in memory for these two, per model; the rest goes to temporary files.
        exclude: Nodes with a node or tensor name that matches one of these patterns stay float.
        guard: Leave operators in float where 8 bits do not pay on this machine, by measurement: those that are not faster,
            and in static mode the few that make much of the error and save little time; what is chosen then depends on the
            machine.
        narrow: Whether static mode spends what is left of ``max_drop`` on weights of 4 bits, which take half of the bytes in
            the file; by default where `prune` looks for the smallest model within the same budget.
    """

    name: ClassVar[str] = "quantize"
    requires: ClassVar[frozenset[str]] = frozenset({"float"})
    ensures: ClassVar[frozenset[str]] = frozenset({"qdq"})
    removes: ClassVar[frozenset[str]] = frozenset({"float", "prunable"})

    mode: Literal["auto", "static", "dynamic", "weights", "fp16"] = "auto"
    calibration: Literal["auto", "minmax", "moving-average", "percentile", "entropy", "mse"] = "auto"
    percentile: float = 99.999
    per_channel: bool = True
    activation: Literal["auto", "uint8", "int8"] = "auto"
    bits: Literal[4, 8] = 8
    block: int = 32
    symmetric: bool = False
    samples: int = 512
    equalize: bool | None = None
    smooth: bool | None = None
    max_drop: float | None = None
    rounding: Literal["nearest", "gptq", "learned"] = "nearest"
    correct_bias: bool = True
    memory: int = 2048
    exclude: tuple[str, ...] = ()
    guard: bool = True
    narrow: bool | None = None

    def __post_init__(self) -> None:
        for option in ("samples", "memory"):
            value = getattr(self, option)
            if value < 1:
                raise UsageError(f"must be at least 1, got {value}", where=f"quantize.{option}")
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise UsageError(f"must lie in [0, 1], got {self.max_drop}", where="quantize.max_drop")
        if self.mode == "fp16" and self.max_drop is not None:
            raise UsageError(
                "has no operators to choose from", where="quantize.max_drop", hint="leave out mode=fp16"
            )
        for option in _STATIC if self.mode not in ("auto", "static") else ():
            if self.changed_options().get(option):
                raise UsageError(f"takes static mode, not {self.mode}", where=f"quantize.{option}")
        for option in ("equalize", "smooth") if self.mode in ("weights", "fp16") else ():
            if getattr(self, option):
                raise UsageError(f"takes 8-bit arithmetic, not mode={self.mode}", where=f"quantize.{option}")
        if self.mode in ("weights", "fp16") and not self.per_channel:
            raise UsageError(f"takes 8-bit arithmetic, not mode={self.mode}", where="quantize.per_channel")
        if self.bits == 4 and self.mode != "weights":
            raise UsageError(f"takes mode=weights, not {self.mode}", where="quantize.bits")
        if self.block not in _BLOCKS:
            known = ", ".join(map(str, _BLOCKS))
            raise UsageError(f"must be one of {known}, got {self.block}", where="quantize.block")
        if not 50 < self.percentile <= 100:
            raise UsageError(
                f"must be over 50 and at most 100, got {self.percentile}", where="quantize.percentile"
            )

    def check_names(self, known: Collection[str]) -> None:
        """Nodes without names get some when it runs, and a report may name these: `run` checks `exclude`."""

    def if_slow(self) -> str:
        """Says which option would have been faster."""
        if self.mode == "weights" and self.bits == 8:
            return "quantize.mode=auto reads stored weights as floats where their kernels are slower"
        if self.guard or self.mode in ("weights", "fp16"):  # nothing is left out there
            return ""
        return "quantize.guard=true leaves slow operators in float"

    def run(self, graph: Graph, context: Context) -> Graph:
        """Returns the quantized graph; raises GateError where nothing can be quantized."""
        from surgeon.graph.canonical import without_decided
        from surgeon.graph.load import from_model
        from surgeon.graph.save import to_model
        from surgeon.graph.source import source_of
        from surgeon.names import names_known
        from surgeon.stats.promises import noted
        from surgeon_passes.quantizing.widen import widened

        wide = graph if self.mode == "fp16" else widened(graph)
        if wide is not graph:
            context.record["widened"] = True
        if to_model(wide).ByteSize() > _LARGEST:
            raise GateError("models over 2 GB cannot be quantized", where="pass quantize", hint="prune first")
        with tempfile.TemporaryDirectory(prefix="surgeon-quantize-") as folder, _quiet():
            decided = without_decided(wide, excluded_by(context, self.exclude))
            scaled = self._with_steps(decided, context, Path(folder))
            model = self._quantized(to_model(scaled), names_known(graph, context.kept), context, Path(folder))
        if kept := noted(scaled if self.mode == "fp16" else context.unrounded):
            context.record["kept"] = kept
        result = from_model(model)
        result.surgeon_source = source_of(graph) or source_of(result)
        return result

    def _quantized(
        self, model: onnx.ModelProto, known: set[str], context: Context, folder: Path
    ) -> onnx.ModelProto:
        from surgeon.graph.load import from_model
        from surgeon.graph.sessions import session
        from surgeon_passes.quantizing import kernels, prepare
        from surgeon_passes.quantizing.control import Mixes, within_budget
        from surgeon_passes.quantizing.guarded import Guarded, guarded

        if self.mode == "fp16":
            prepare.name_nodes(model)
        else:
            model = prepare.prepared(model, excluded_by(context, self.exclude), folder)
        if not context.trial:
            super().check_names({*known, *prepare.names(model)})
        if self.mode == "fp16":
            return self._half(model, context, folder)
        if self.narrow and self._budget(context)[0] is None:
            raise UsageError(
                "spends what a budget leaves",
                where="quantize.narrow",
                hint="give --max-drop or quantize.max_drop",
            )
        maker = self._maker(model, context, folder)
        timed = self.guard and not context.trial  # what is tried is not timed
        found = guarded(maker, context) if timed else Guarded()
        context.unrounded = from_model(maker.model)
        mixes = Mixes(maker, found.stay, self._improving(maker, context), found.bare, found.folded)
        made = within_budget(mixes, context, *self._budget(context), spend=self._spending(maker, context))
        if not made.choice.weighted and not made.stored:
            hint = f"{_reasons(made.choice)}; a run without quantize keeps what its other passes make"
            raise GateError("nothing can be quantized", where="pass quantize", hint=hint)
        session(made.model)
        _record(maker.mode, made, context)
        context.record.update(kernels.count(made.model))
        return made.model

    def _with_steps(self, graph: Graph, context: Context, folder: Path) -> Graph:
        """The graph after `equalize` and `smooth`, where they are wanted or help; facts of both go into the record."""
        from surgeon.graph.save import to_model
        from surgeon_passes.equalize import Equalize
        from surgeon_passes.quantizing.maker import mode_of
        from surgeon_passes.quantizing.prepare import name_nodes, prepared
        from surgeon_passes.quantizing.trial import Step, take_steps
        from surgeon_passes.smooth import Smooth

        if self.mode in ("weights", "fp16") or (self.equalize is False and self.smooth is False):
            return graph
        excluded, model = excluded_by(context, self.exclude), to_model(graph)
        name_nodes(model)
        mode, choice = mode_of(model, self, excluded, dataless=context.data is None)
        tried = mode == "static" and bool(choice.weighted)
        # a pass before this has tried them on its candidates
        known: dict[str, bool] = context.kept.get(_STEPS, {})
        equalize, smooth = known.get("equalize", self.equalize), known.get("smooth", self.smooth)
        steps = [
            Step(Equalize(self.per_channel, exclude=self.exclude), equalize, tried),
            Step(Smooth(None, self.per_channel, exclude=self.exclude), smooth, tried),
        ]

        def quantized(candidate: Graph, data: Dataset) -> onnx.ModelProto:
            trial = replace(context, data=data, record={})
            maker = self._maker(prepared(to_model(candidate), excluded, folder), trial, folder)
            return maker.draft(maker.whole)

        result, facts = take_steps(graph, steps, quantized, context, self.samples)
        context.record.update(facts)
        context.kept[_STEPS] = {name: bool(each["kept"]) for name, each in facts.items()}
        return result

    def _maker(self, model: onnx.ModelProto, context: Context, folder: Path) -> Maker:
        from surgeon_passes.quantizing.maker import Maker

        maker = Maker(
            model,
            self,
            excluded_by(context, self.exclude),
            lambda: context.calibration().take(self.samples),
            folder,
            dataless=context.data is None,
            threads=context.threads,
        )
        if maker.static is not None:
            found = maker.static.calibration
            context.record["samples"] = found.samples
            context.record["calibration"] = found.facts()
            for note in found.notes:
                context.warn(note)
        return maker

    def _improving(self, maker: Maker, context: Context) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
        """What gives a quantized model better weights and biases; nothing in modes without constant scales."""
        from surgeon_passes.quantizing.values import improved

        if maker.static is None:
            return lambda model: model
        return lambda model: improved(
            model,
            maker.model,
            context,
            rounding=self.rounding,
            correct_bias=self.correct_bias,
            samples=self.samples,
            memory=self.memory,
        )

    def _budget(self, context: Context) -> tuple[float | None, str]:
        """What may be lost, and the option that says so."""
        if self.max_drop is not None:
            return self.max_drop, "quantize.max_drop"
        return context.max_drop, "--max-drop"

    def _spending(self, maker: Maker, context: Context) -> Spend | None:
        """How weights get fewer bits where the budget allows; None where they are to keep theirs."""
        from surgeon_passes.quantizing.halved import why_not
        from surgeon_passes.quantizing.spending import Spending

        shared = context.trial or OFFERS in context.kept
        if not (shared if self.narrow is None else self.narrow):
            return None
        why = "only static mode has such" if maker.static is None else why_not(maker.model)
        if why is not None:
            context.warn(f"no weights get 4 bits: {why}")
            return None
        return partial(Spending, context=context, memory=self.memory, samples=self.samples)

    def finish(self, graph: Graph, context: Context) -> Graph:
        """Returns ``graph`` with two weights of 4 bits in a byte, where `narrow` found any."""
        from surgeon_passes.quantizing.spending import NARROW

        if names := context.kept.get(NARROW):
            return self._halved(graph, names, context)
        return graph

    def _halved(self, graph: Graph, names: tuple[str, ...], context: Context) -> Graph:
        from surgeon.graph.load import from_model
        from surgeon.graph.save import to_model
        from surgeon.graph.source import source_of
        from surgeon.measure import one_sample
        from surgeon.narrow import narrowed
        from surgeon_passes.quantizing.halved import halved, same_outputs

        model = to_model(graph)
        changed = context.plan.interface if context.plan is not None else {}
        try:
            stored, done = halved(model, names)
            same = same_outputs(model, stored, narrowed(one_sample(context), changed))
        except (DataError, GateError, UnsupportedModelError) as error:
            context.warn(f"weights of 4 bits take a byte each in the file: {error.message}")
            return graph
        if not same:
            context.warn(
                "weights of 4 bits take a byte each in the file: stored otherwise the outputs differ"
            )
        if same and (lost := sorted(set(names) - set(done))):
            context.warn(
                f"weights of 4 bits that a later pass has changed keep a byte each: {', '.join(lost)}"
            )
        taken = same and stored.ByteSize() < model.ByteSize()
        context.record["halved"] = done if taken else []
        if not taken:
            return graph
        result = from_model(stored)
        result.surgeon_source = source_of(graph) or source_of(result)
        return result

    def _half(self, model: onnx.ModelProto, context: Context, folder: Path) -> onnx.ModelProto:
        from surgeon_passes.quantizing.half import beyond_range, to_half
        from surgeon_passes.quantizing.prepare import names_of, restore_interface

        excluded = excluded_by(context, self.exclude)
        kept = {
            node.name: (node.op_type, "excluded")
            for node in model.graph.node
            if any(map(excluded, names_of(node)))
        }
        if not any(entry.data_type == 1 for entry in model.graph.initializer):
            raise GateError("there are no float32 weights", where="pass quantize")
        half = to_half(model, kept, folder)
        if beyond := beyond_range(model, {*kept, *half.left}):
            name, largest = next(iter(beyond.items()))
            more = f" and {len(beyond) - 1} more constants hold" if len(beyond) > 1 else " holds"
            context.warn(
                f"{name}{more} numbers beyond float16, up to {largest:g}, which become 65504: quantize.exclude keeps in float32 "
                "what it names"
            )
        restore_interface(half.model, model)
        context.record["mode"] = "fp16"
        context.record["left_float"] = [
            {"node": name, "operator": operator, "reason": reason}
            for name, (operator, reason) in {**half.left, **kept}.items()
        ]
        return half.model


def _record(mode: str, made: Made, context: Context) -> None:
    context.record["mode"] = mode
    context.record["quantized"] = _counts(made.choice.weighted)
    context.record["stored"] = _counts(made.stored)
    context.record["left_float"] = [
        {"node": name, "operator": operator, "reason": reason}
        for name, (operator, reason) in made.choice.left.items()
    ]
    speed: dict[str, Any] = context.record.get("speed", {})  # type: ignore[assignment]  # JSON facts
    for each in speed.get("spared", ()):
        each["weights"] = _weights(each["node"], made)
    convolutions = sum(operator.startswith("Conv") for operator, _ in made.choice.left.values())
    if mode == "dynamic" and convolutions:
        context.warn(f"{convolutions} convolutions stay float: quantizing them takes --data")


def _weights(node: str, made: Made) -> str:
    """How the weights of an operator without static 8 bits are stored."""
    if node in made.choice.weighted:
        return "blocks"
    return "stored" if node in made.stored else "float"


def _counts(operators: dict[str, str]) -> dict[str, int]:
    """How many nodes there are of each operator."""
    return dict(sorted(Counter(operators.values()).items()))


def _reasons(choice: Choice) -> str:
    if not choice.left:
        return "the model has no convolutions, matrix products or embeddings with constant weights that are large enough"
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
