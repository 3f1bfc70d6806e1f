"""How a cut is spread over steps: the schedules of TensorFlow Model Optimization, as shares of the whole cut.

https://www.tensorflow.org/model_optimization/api_docs/python/tfmot/sparsity/keras/PolynomialDecay
"""

from __future__ import annotations

from dataclasses import dataclass

from surgeon.errors import UsageError


def check_schedule(initial: float, power: float, where: str) -> None:
    """Refuse what makes no schedule.

    Args:
        initial: As of `PolynomialDecay`.
        power: The same.
        where: The name of the pass.

    Raises:
        UsageError: The share lies outside [0, 1), or the power is not above 0.
    """
    if not 0 <= initial < 1:
        raise UsageError(f"must lie in [0, 1), got {initial}", where=f"{where}.initial")
    if not power > 0:
        raise UsageError(f"must be above 0, got {power}", where=f"{where}.power")


@dataclass(frozen=True)
class ConstantSparsity:
    """The whole cut in the first step, and nothing but refits after it."""

    def shares(self, steps: int) -> list[float]:
        """Which part of the cut has been made after each step, the last one 1."""
        return [1.0] * steps


@dataclass(frozen=True)
class PolynomialDecay:
    """``final + (initial - final) * (1 - t)^power`` after the part t of the steps, with final = 1.

    Attributes:
        initial: The share that the first step starts from.
        power: Larger for more in the first steps; 1 for equal ones.
    """

    initial: float = 0.0
    power: float = 3.0

    def shares(self, steps: int) -> list[float]:
        """Which part of the cut has been made after each step, the last one 1."""
        return [1 + (self.initial - 1) * (1 - (k + 1) / steps) ** self.power for k in range(steps)]
