"""What rounding to 8 bits will cost, foretold from ranges and weights, for any choice of factors.

Rounding with a step d makes an error of variance d²/12. That of an activation goes through the weights that read it,
that of a weight through what it is multiplied with; both are taken relative to what their operator puts out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.scaling.fields import values_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from surgeon.ops import Op
    from surgeon.scaling.classes import Class
    from surgeon.scaling.fields import Demand, Scaling
    from surgeon.scaling.ranges import Range

    Array = NDArray[Any]

LEVELS = 255.0  # of an activation
HALF = 127.0  # steps from zero to the largest weight
TINY = 1e-30


@dataclass(frozen=True)
class Weight:
    """A linear operator's weight, its taps summed up: arrays that broadcast to ``[a, b]``.

    Attributes:
        before, after: The factors of the channels that an element multiplies and adds to.
        energy: Sum of squares over the taps, ``[a, b]``.
        largest: The largest magnitude over the taps, ``[a, b]``.
        square: Mean square of what the element multiplies.
        columns: Which channel it adds to.
        taps: How many numbers an element stands for.
        output: Mean square of all outputs together, as far as inputs are independent of each other.
    """

    before: Array
    after: Array
    energy: Array
    largest: Array
    square: Array
    columns: Array
    taps: int
    output: float

    @staticmethod
    def of(demand: Demand, ranges: Mapping[str, Range]) -> Weight:
        """Reads a weight."""
        values = values_of(demand).astype(np.float32)
        flat = values.reshape(*values.shape[:2], -1)
        energy, largest = np.einsum("abk,abk->ab", flat, flat), np.abs(flat).max(axis=2)
        known = ranges[demand.op.node.inputs[0].name].square.ravel()
        before, after, rows, columns = (
            each.reshape(each.shape[:2])
            for each in (demand.over, demand.times, demand.rows, demand.columns)
            if each is not None
        )
        square = known[rows] if known.size > 1 else known.reshape(1, 1)
        output = max(float((energy * square).sum()), TINY)
        return Weight(before, after, energy, largest, square, columns, flat.shape[2], output)

    def by_row(self, values: Array, size: int) -> Array:
        """Sums over all elements that multiply the same channel: ``[size]``, by its factor."""
        return np.bincount(_spread(self.before, values), values.ravel(), minlength=size)

    def steps(self, factors: Array, *, per_channel: bool) -> Array:
        """The step of each element's grid, in units of the weight as it will be; broadcastable."""
        largest = self.largest * (factors[self.after] / factors[self.before])
        if not per_channel:
            return np.full((1, 1), largest.max(initial=0.0) / HALF)
        alone = [axis for axis in (0, 1) if self.columns.shape[axis] == 1]
        if alone:  # a column is a slice
            return np.asarray(largest.max(axis=alone[0], keepdims=True) / HALF)
        found = np.zeros(int(self.columns.max()) + 1)
        np.maximum.at(found, _spread(self.columns, largest), largest.ravel())
        return np.asarray(found[self.columns] / HALF)

    def errors(self, factors: Array, *, per_channel: bool) -> Array:
        """The variance that rounding the weight adds through each element, in units of the output as it was: ``[a, b]``."""
        back = factors[self.before] / factors[self.after]
        each = (self.steps(factors, per_channel=per_channel) * back) ** 2 * (self.square * (self.taps / 12))
        return np.broadcast_to(each, self.energy.shape)


def _spread(labels: Array, values: Array) -> Array:
    return np.broadcast_to(labels, values.shape).ravel()


class Noise:
    """What rounding costs around one class, as a function of its factors."""

    def __init__(
        self,
        chosen: Class,
        scaling: Scaling,
        ranges: Mapping[str, Range],
        weights: Mapping[int, Weight],
        *,
        per_channel: bool,
    ) -> None:
        self.labels, self.per_channel = chosen.labels, per_channel
        self.readers = [weights[id(each)] for each in chosen.readers]
        gains = gains_of(chosen, scaling, weights)
        self.rounded = [
            (scaling.labels[name].ravel(), ranges[name], gains[name])
            for name in chosen.tensors
            if name in ranges
        ]
        self.written = [(weights[id(each)], gains[each.op.node.outputs[0].name]) for each in chosen.writers]

    def __call__(self, factors: Array) -> float:
        """The sum of all relative errors that depend on this class; ``factors`` are those of all classes."""
        total = 0.0
        for labels, found, gain in self.rounded:
            mine = factors[labels]
            high, low = (found.high.ravel() * mine).max(), (found.low.ravel() * mine).min()
            step = (max(high, 0.0) - min(low, 0.0)) / LEVELS
            total += step**2 / 12 * float((gain[labels] / mine**2).sum())
        for each in self.readers:
            total += float(each.errors(factors, per_channel=self.per_channel).sum()) / each.output
        for each, gain in () if self.per_channel else self.written:
            total += float((each.errors(factors, per_channel=False) * gain[each.after]).sum())
        return float(total)

    def spread(self, factors: Array) -> float:
        """How uneven channels are: the largest range divided by the (geometric) mean of all, over what is rounded."""
        worst = 1.0
        for labels, found, _ in self.rounded:
            size = (np.maximum(found.high, -found.low).ravel() * factors[labels])[
                np.isin(labels, self.labels)
            ]
            size = size[size > 0]
            if size.size:
                worst = max(worst, float(size.max() / np.exp(np.log(size).mean())))
        return worst

    def magnitudes(self, factors: Array) -> tuple[Array, Array]:
        """How large channels are, in activations and in the weights that read them: ``[channels]`` each, at most 1."""
        size, weight = np.zeros(len(factors)), np.zeros(len(factors))
        for labels, found, _ in self.rounded:
            here = np.maximum(found.high, -found.low).ravel() * factors[labels]
            np.maximum.at(size, labels, here / max(here.max(), TINY))
        for each in self.readers:
            here = each.largest / factors[each.before]
            along = [axis for axis in (0, 1) if each.before.shape[axis] == 1]
            rows = here.max(axis=along[0], keepdims=True) if along else here
            np.maximum.at(weight, _spread(each.before, rows), rows.ravel() / max(here.max(), TINY))
        return size[self.labels], weight[self.labels]


def gains_of(chosen: Class, scaling: Scaling, weights: Mapping[int, Weight]) -> dict[str, Array]:
    """What noise of variance one in a channel of a tensor adds to the relative errors of the weights behind it.

    Operators in between pass it on; averages over n places divide it by n.

    Returns:
        ``[factors]`` for each tensor of the class; zero for channels that are not of the class.
    """
    inside = set(chosen.tensors)
    found = {name: np.zeros(scaling.size) for name in chosen.tensors}
    mine = np.zeros(scaling.size, bool)
    mine[chosen.labels] = True
    reading = {id(each.op): weights[id(each)] for each in chosen.readers}
    for op in reversed(scaling.analysis.ops):
        inputs = dict.fromkeys(tensor.name for tensor in op.node.inputs if tensor.name in inside)
        if id(op) in reading and inputs:
            weight, gain = reading[id(op)], found[op.node.inputs[0].name]
            gain += weight.by_row(weight.energy / weight.output, scaling.size) * mine
            continue
        for result in op.node.outputs:
            if result.name in inside:
                for name in inputs:
                    found[name] += found[result.name] * _kept(op)
    return found


def _kept(op: Op) -> float:
    """The part of the noise of its input that an operator puts out."""
    if op.node.op not in ("GlobalAveragePool", "ReduceMean", "AveragePool"):
        return 1.0
    if op.node.op == "AveragePool":
        return float(1.0 / math.prod(op.attribute("kernel_shape")))
    return float(math.prod(op.out_dims()) / max(math.prod(op.dims(0)), 1))
