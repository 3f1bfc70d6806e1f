"""What a metric says of single samples, and how sure a difference between two models is, paired by sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


SURE = 0.999  # that more units would say the same


@dataclass(frozen=True)
class Scores:
    """What a metric came to, and what it is made of.

    Attributes:
        value: The sum over the sums divided by the sum over the weights; the mean of these over classes that occur.
        sums: Per unit and class. A unit is a sample where the metric has a value for each, otherwise a batch.
        weights: Per unit and class.
    """

    value: float
    sums: Array
    weights: Array

    @property
    def units(self) -> int:
        """How many samples or batches there are."""
        return len(self.sums)

    @property
    def decides(self) -> bool:
        """Whether every unit is right or wrong: one value each, 0 or 1."""
        return self.sums.shape[1] == 1 and bool(((self.sums == 0) | (self.sums == 1)).all())

    def first(self, units: int) -> Scores:
        """What the first units alone say."""
        if units >= self.units:
            return self
        return Scores.of(self.sums[:units], self.weights[:units])

    @staticmethod
    def of(sums: Array, weights: Array) -> Scores:
        """Scores of some units; not a number where no class occurs in them."""
        total, weight = sums.sum(axis=0), weights.sum(axis=0)
        there = weight > 0
        return Scores(float((total[there] / weight[there]).mean()) if there.any() else np.nan, sums, weights)

    def without_each(self) -> Array:
        """The metric of all units but one, for each one.

        Returns:
            One value per unit.
        """
        sums = self.sums.sum(axis=0) - self.sums
        weights = self.weights.sum(axis=0) - self.weights
        there = weights > 1e-9 * self.weights.sum(axis=0)  # what occurs in that unit only is left out with it
        shares = np.divide(sums, weights, out=np.zeros_like(sums), where=there)
        return np.asarray(shares.sum(axis=1) / np.maximum(there.sum(axis=1), 1))


def largest_loss(before: Scores, after: Scores, confidence: float, *, higher_is_better: bool) -> float | None:
    """The upper end of a one-sided confidence interval for the loss, paired by unit.

    The variance is that of the delete-one jackknife (Efron and Stein, 1981), which for a mean is the usual one. Where
    every unit is right or wrong, half a unit is added to each cell of the two-by-two table (Agresti and Min, 2005), since
    no differences among few samples do not mean that there are none. Quantiles are Student's.

    Args:
        before: The scores of the original.
        after: Those of the candidate, on the same data.
        confidence: The chance with which the loss is at most what is returned; at 0.5, the loss that was measured.
        higher_is_better: Whether a drop is a loss.

    Returns:
        None where there are fewer than two units, the two were not measured on the same, or what was measured is no
        number.
    """
    from scipy.special import stdtrit

    if not _comparable(before, after):
        return None
    units = before.units
    loss = before.value - after.value if higher_is_better else after.value - before.value
    if before.decides and after.decides:
        differing = float(np.abs(before.sums - after.sums).sum())
        variance = (differing + 1 - (units * loss) ** 2 / (units + 2)) / (units + 2) ** 2
    else:
        differences = before.without_each() - after.without_each()
        variance = (units - 1) / units * float(np.square(differences - differences.mean()).sum())
    return float(loss + stdtrit(units - 1, confidence) * np.sqrt(max(variance, 0.0)))


def decided(before: Scores, after: Scores, most: float, *, higher_is_better: bool) -> bool:
    """Whether a sample of the units says already on which side of ``most`` the loss is.

    Args:
        before: The scores of the original.
        after: Those of the candidate, on the same data.
        most: The largest loss that is accepted.
        higher_is_better: Whether a drop is a loss.
    """
    high = largest_loss(before, after, SURE, higher_is_better=higher_is_better)
    if high is None:
        return False
    loss = before.value - after.value if higher_is_better else after.value - before.value
    return high <= most or 2 * loss - high > most


def least_loss(before: Scores, after: Scores, confidence: float) -> float | None:
    """What :func:`largest_loss` would be if no unit differed: more than nothing where units are right or wrong.

    Returns:
        None where that function returns None.
    """
    if not _comparable(before, after):
        return None
    if not (before.decides and after.decides):
        return 0.0
    return largest_loss(before, before, confidence, higher_is_better=True)


def _comparable(before: Scores, after: Scores) -> bool:
    units = before.units
    return units > 1 and after.units == units and bool(np.isfinite([before.value, after.value]).all())
