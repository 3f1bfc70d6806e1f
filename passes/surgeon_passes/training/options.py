"""The options that end-to-end training passes share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from surgeon.errors import UsageError
from surgeon.passes import Pass


@dataclass(frozen=True)
class EndToEnd(Pass):
    """A pass that trains a whole model.

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

    requires: ClassVar[frozenset[str]] = frozenset({"float"})
    learns: ClassVar[bool] = True

    steps: int = 1000
    batch: int = 64
    rate: float = 1e-4
    schedule: Literal["cosine", "one_cycle", "constant"] = "cosine"
    decay: float = 0.0
    patience: int = 10
    memory: int = 2048
    checkpoint: str | None = None
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.at_least_one("steps", "batch", "patience", "memory")
        if not self.rate > 0:
            raise UsageError(f"must be above 0, got {self.rate}", where=f"{self.name}.rate")
        self.not_negative("decay")

    def at_least_one(self, *options: str) -> None:
        """Refuse less than one.

        Raises:
            UsageError: One of the options is less.
        """
        for option in options:
            if getattr(self, option) < 1:
                value = getattr(self, option)
                raise UsageError(f"must be at least 1, got {value}", where=f"{self.name}.{option}")

    def not_negative(self, *options: str) -> None:
        """Refuse less than nothing.

        Raises:
            UsageError: One of the options is negative.
        """
        for option in options:
            if not getattr(self, option) >= 0:
                value = getattr(self, option)
                raise UsageError(f"must not be negative, got {value}", where=f"{self.name}.{option}")
