"""The options that end-to-end training passes share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from surgeon.errors import UsageError
from surgeon.passes import Pass

if TYPE_CHECKING:
    from surgeon.grad.train import Course
    from surgeon.passes import Context

EVALUATIONS = 20


@dataclass(frozen=True)
class Training(Pass):
    """A pass that trains a whole model.

    Attributes:
        steps: Steps of the optimizer at most.
        batch: Samples per step.
        rate: The largest learning rate.
        schedule: How it changes: cosine, one_cycle or constant.
        optimizer: adam, or sgd: stochastic gradient descent with a momentum of 0.9, which wants a larger rate.
        clip: The largest norm of all gradients together; by default any.
        patience: Training ends after so many evaluations, of twenty, without a better one.
        memory: Megabytes for the activations of a step; samples that do not fit run one part after the other.
        checkpoint: A file to take the training up from, written after every evaluation.
        exclude: Weights whose name, or whose operator's, matches one of these patterns stay as they are.
    """

    learns: ClassVar[bool] = True
    trains: ClassVar[bool] = True

    steps: int = 1000
    batch: int = 64
    rate: float = 1e-4
    schedule: Literal["cosine", "one_cycle", "constant"] = "cosine"
    optimizer: Literal["adam", "sgd"] = "adam"
    clip: float | None = None
    patience: int = 10
    memory: int = 2048
    checkpoint: str | None = None
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.at_least_one("steps", "batch", "patience", "memory")
        if not self.rate > 0:
            raise UsageError(f"must be above 0, got {self.rate}", where=f"{self.name}.rate")
        if self.clip is not None and not self.clip > 0:
            raise UsageError(f"must be above 0, got {self.clip}", where=f"{self.name}.clip")

    def course(self, context: Context, number: int = 0) -> Course:
        """How to train.

        Args:
            context: Of the run.
            number: Tells rounds of training apart.
        """
        from surgeon.grad.train import Course

        return Course(
            self.steps,
            self.batch,
            self.rate,
            self.schedule,
            self.optimizer,
            clip=self.clip,
            evaluations=EVALUATIONS,
            patience=self.patience,
            seed=context.seed_for(self.name) + number,
            split=context.seed_for("held out"),
        )

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


@dataclass(frozen=True)
class EndToEnd(Training):
    """A pass that trains a whole model of floats.

    Attributes:
        decay: Weight decay of matrices and kernels.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"float"})

    decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.not_negative("decay")

    def course(self, context: Context, number: int = 0) -> Course:
        """How to train; see `Training.course`."""
        return replace(super().course(context, number), decay=self.decay)
