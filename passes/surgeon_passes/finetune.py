"""The pass ``finetune``: labelled training, on its own or between cuts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from surgeon.errors import UsageError
from surgeon.passes import Pass

if TYPE_CHECKING:
    from surgeon.passes import Context, Graph


@dataclass(frozen=True)
class Finetune(Pass):
    """Training with labels, by gradients that onnxruntime computes.

    Whole numbers as labels are learned by cross entropy, others by their squared error. The model stays as it was unless
    held-out samples are better off. BatchNorm that is not folded is trained in its inference form: its scale and bias
    learn, its mean and variance stay.

    Attributes:
        steps: Steps of the optimizer at most.
        batch: Samples per step.
        rate: The largest learning rate.
        schedule: How it changes: cosine, one_cycle or constant.
        decay: Weight decay of matrices and kernels.
        patience: Training ends after so many evaluations, of twenty, without a better one.
        memory: Megabytes for the activations of a step; samples that do not fit run one part after the other.
        checkpoint: A file to take the training up from, written after every evaluation.
        exclude: Weights whose name, or whose operator's, matches one of these patterns stay as they are.
    """

    name: ClassVar[str] = "finetune"
    requires: ClassVar[frozenset[str]] = frozenset({"float"})

    steps: int = 1000
    batch: int = 64
    rate: float = 3e-4
    schedule: Literal["cosine", "one_cycle", "constant"] = "cosine"
    decay: float = 0.0
    patience: int = 6
    memory: int = 2048
    checkpoint: str | None = None
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option in ("steps", "batch", "patience"):
            if getattr(self, option) < 1:
                raise UsageError(
                    f"must be at least 1, got {getattr(self, option)}", where=f"finetune.{option}"
                )
        if self.memory < 1:
            raise UsageError(f"must be at least 1, got {self.memory}", where="finetune.memory")
        if not self.rate > 0:
            raise UsageError(f"must be above 0, got {self.rate}", where="finetune.rate")
        if not self.decay >= 0:
            raise UsageError(f"must not be negative, got {self.decay}", where="finetune.decay")

    def run(self, graph: Graph, context: Context) -> Graph:
        """Train ``graph``; raises DataError without labels that fit an output."""
        from surgeon_passes.training.whole import Setting, learn

        setting = Setting.of(graph, context, labelled=True)
        return learn(self, graph, context, setting, setting.cross_entropy)
