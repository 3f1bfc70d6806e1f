"""Makes quantized models of one float model, with this or that operator left in float, as often as needed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from surgeon_passes.quantizing import prepare
from surgeon_passes.quantizing.choose import Choice, choose
from surgeon_passes.quantizing.compact import compact
from surgeon_passes.quantizing.dynamic import quantize_dynamic
from surgeon_passes.quantizing.processor import this_processor
from surgeon_passes.quantizing.static import Static
from surgeon_passes.quantizing.weights import Storage, store_weights

if TYPE_CHECKING:
    import onnx

    from surgeon.stats.data import Dataset
    from surgeon_passes.quantize import Quantize

NOTHING_STAYS: Mapping[str, str] = MappingProxyType({})


@dataclass
class Made:
    """A quantized model.

    Attributes:
        model: The model.
        choice: Its operators with kernels for few bits, and why others have none.
        stored: Operators that compute in float with weights of few bits, by name.
    """

    model: onnx.ModelProto
    choice: Choice
    stored: dict[str, str] = field(default_factory=dict)


class Maker:
    """Quantizes a prepared model; ranges of activations are found once.

    Attributes:
        model: The prepared float model.
        mode: static, dynamic or weights.
        whole: Everything that can get a kernel for few bits.
        static: The ranges, in static mode.

    Args:
        model: The prepared model.
        options: Those of the pass.
        excluded: Whether a node or tensor name is to be left alone.
        data: Calibration samples, asked for in static mode only; None without any: then auto prefers dynamic mode.
        folder: A temporary folder.
        threads: Threads for onnxruntime.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        options: Quantize,
        excluded: Callable[[str], bool],
        data: Callable[[], Dataset],
        folder: Path,
        *,
        dataless: bool,
        threads: int,
    ) -> None:
        self.model, self.options, self.excluded, self.folder = model, options, excluded, folder
        self.mode, self.whole = mode_of(model, options, excluded, dataless=dataless)
        self.static: Static | None = None
        prepare.untie(model, self.whole.weighted)
        if self.mode == "static":
            self.static = self._calibrated(data(), threads)
            self.whole = self.static.possible(self.whole)

    def choose(self, stay: Mapping[str, str] = NOTHING_STAYS) -> Choice:
        """What gets a kernel for few bits when some nodes, by name, stay float, and why these do."""
        if self.mode == "weights":
            return Choice(left=dict(self.whole.left))  # why none of them has a kernel
        found = choose(self.model, self.excluded, static=self.mode == "static", stay=stay)
        return found if self.static is None else self.static.possible(found)

    def draft(self, choice: Choice) -> onnx.ModelProto:
        """The model with kernels for few bits alone."""
        if not choice.nodes:  # to onnxruntime's quantizers none means all
            return copy.deepcopy(self.model)
        return self._dynamic(self.model, choice) if self.static is None else self.static.build(choice)

    def recurrent(self, stay: Mapping[str, str] = NOTHING_STAYS) -> Choice:
        """The LSTMs that get their dynamic 8-bit kernel beside static arithmetic, as auto gives it, and why others do not."""
        if self.options.mode != "auto" or self.mode == "dynamic":
            return Choice()
        found = choose(self.model, self.excluded, static=False, stay=stay)
        layers = {name: operator for name, operator in found.weighted.items() if operator == "LSTM"}
        left = {name: why for name, why in found.left.items() if why[0] == "LSTM"}
        return Choice(list(layers), layers, left)

    def with_recurrent(self, model: onnx.ModelProto, layers: Choice) -> onnx.ModelProto:
        """A draft with the dynamic kernels of these LSTMs; where there are none, the draft itself."""
        return self._dynamic(model, Choice(nodes=layers.nodes)) if layers.nodes else model

    def finished(
        self,
        model: onnx.ModelProto,
        choice: Choice,
        stay: Mapping[str, str],
        bare: Collection[str] = (),
        folded: Collection[str] = (),
    ) -> Made:
        """A draft with few bits for what is left, and without ballast.

        Args:
            model: The draft.
            choice: What it was made of.
            stay: Nodes that compute in float, and why.
            bare: Those of them whose weights stay float in the file as well; in mode weights all of them.
            folded: Operators, by type, that read stored weights as floats though they have a kernel for few bits.
        """
        made = Made(model, choice)
        self._add_recurrent(made, stay)
        if self.options.mode in ("auto", "weights"):
            self._store(made, stay, stay if self.options.mode == "weights" else bare, folded)
        prepare.sort_nodes(made.model)
        compact(made.model, set(prepare.names(self.model)))
        prepare.strip_opsets(made.model)
        prepare.restore_interface(made.model, self.model)
        return made

    def _calibrated(self, data: Dataset, threads: int) -> Static:
        numbers = this_processor()
        return Static.calibrated(
            self.model,
            self.whole,
            data,
            self.folder,
            calibration=self.options.calibration,
            percentile=self.options.percentile,
            per_channel=self.options.per_channel,
            activation=numbers.activation if self.options.activation == "auto" else self.options.activation,
            reduce_range=numbers.reduce_range,
            threads=threads,
        )

    def _dynamic(self, model: onnx.ModelProto, choice: Choice) -> onnx.ModelProto:
        reduce = this_processor().reduce_range
        return quantize_dynamic(
            model, choice, self.folder, per_channel=self.options.per_channel, reduce_range=reduce
        )

    def _add_recurrent(self, made: Made, stay: Mapping[str, str]) -> None:
        layers = self.recurrent(stay)
        made.choice.left.update(layers.left)
        for name, operator in layers.weighted.items():
            made.choice.left.pop(name, None)
            made.choice.weighted[name] = operator
        made.model = self.with_recurrent(made.model, layers)

    def _store(
        self, made: Made, stay: Mapping[str, str], bare: Collection[str], folded: Collection[str]
    ) -> None:
        """Stores weights that are still floats with few bits."""
        options = self.options
        bits = options.bits if options.mode == "weights" else 8
        storage = Storage(bits, options.block, options.symmetric, folded)
        found = store_weights(made.model, lambda name: name in bare or self.excluded(name), storage)
        for name, (operator, reason) in found.left.items():
            made.choice.left[name] = (operator, stay[name] if name in bare else reason)
        wanted = (
            found.folded if options.mode == "weights" else {}
        )  # elsewhere that they compute in float has a reason
        for name in {**found.kernels, **wanted}:
            made.choice.left.pop(name, None)
        made.choice.weighted.update(found.kernels)
        made.stored = found.folded


def mode_of(
    model: onnx.ModelProto, options: Quantize, excluded: Callable[[str], bool], *, dataless: bool
) -> tuple[str, Choice]:
    """The mode and the operators; auto without data is dynamic as long as that reaches half of the weights."""
    if options.mode == "weights":
        return "weights", Choice()
    if options.mode == "dynamic" or (options.mode == "auto" and dataless):
        choice = choose(model, excluded, static=False)
        if options.mode == "dynamic" or choice.reached(model) >= 0.5:
            return "dynamic", choice
    choice = choose(model, excluded, static=True)
    return "weights" if options.mode == "auto" and not choice.weighted else "static", choice
