"""The pass ``finetune``: labelled training, on its own or between cuts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from surgeon.errors import UsageError
from surgeon_passes.pruning.schedule import ConstantSparsity, PolynomialDecay, check_schedule
from surgeon_passes.training.options import EndToEnd

if TYPE_CHECKING:
    from surgeon.passes import Context, Graph


@dataclass(frozen=True)
class Finetune(EndToEnd):
    """Training with labels, by gradients that onnxruntime computes.

    Whole numbers as labels are learned by cross entropy, others by their squared error. The model stays as it was unless
    held-out samples are better off. BatchNorm that is not folded is trained in its inference form: its scale and bias
    learn, its mean and variance stay.

    With ``macs`` the model is also cut, in rounds: a little, then training, and so on (prune with its own options otherwise).

    Attributes:
        macs: Cut to at most this fraction of the multiply-accumulates; by default nothing is cut.
        rounds: Cuts, each followed by its share of the steps.
        cut: How the cut is spread over the rounds: polynomial, 1 - (1 - initial) * (1 - t)^power of it after the part t of
            the rounds (PolynomialDecay); constant, all of it in the first (ConstantSparsity).
        initial: The share of the cut that a polynomial schedule starts from.
        power: The power of a polynomial schedule: 1 for equal steps.
    """

    name: ClassVar[str] = "finetune"

    macs: float | None = None
    rounds: int = 4
    cut: Literal["polynomial", "constant"] = "polynomial"
    initial: float = 0.0
    power: float = 3.0

    def __post_init__(self) -> None:
        if self.macs is not None and not 0 < self.macs < 1:
            raise UsageError(f"must lie between 0 and 1, got {self.macs}", where="finetune.macs")
        if self.macs is not None and self.checkpoint is not None:
            raise UsageError("there are none of training between cuts", where="finetune.checkpoint")
        self.at_least_one("rounds")
        check_schedule(self.initial, self.power, "finetune")
        super().__post_init__()
        if self.macs is not None and self.steps < self.rounds:
            raise UsageError(
                f"must be at least as many as finetune.rounds ({self.rounds})", where="finetune.steps"
            )

    def run(self, graph: Graph, context: Context) -> Graph:
        """Train ``graph``.

        Raises:
            DataError: There are no labels that fit an output.
            GateError: The target of the cuts cannot be met.
        """
        from dataclasses import replace

        from surgeon_passes.training.whole import Setting, as_reference, learn

        setting = Setting.of(graph, context, labelled=True)
        if self.macs is None:
            return as_reference(learn(self, graph, context, setting, setting.cross_entropy), context)
        from surgeon_passes.training.rounds import cut_and_learn

        shares = self._schedule().shares(self.rounds)
        options = replace(self, macs=None, steps=self.steps // self.rounds)

        def train(smaller: Graph, number: int) -> Graph:
            return learn(options, smaller, context, setting, setting.cross_entropy, number=number)

        return as_reference(cut_and_learn(graph, context, self.macs, shares, self.exclude, train), context)

    def _schedule(self) -> ConstantSparsity | PolynomialDecay:
        return ConstantSparsity() if self.cut == "constant" else PolynomialDecay(self.initial, self.power)
