"""Fitting weights that promise something: zeros stay zero, and few values stay these values.

See `surgeon.stats.promises`. Closed-form fits take the best weights among those that are zero where they have to be, and
of those the nearest that are values of the table, as the matrix of the regression measures nearness. Training moves
what is one value together, and zeros not at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.grad.ties import Tie
from surgeon.graph.weights import peek
from surgeon.refit.constrained import Unconstrained, fit_constrained
from surgeon.refit.fit import fit
from surgeon.refit.pattern import Few
from surgeon.refit.support import with_bias
from surgeon.refit.table import SWEEPS, Keeping, Table, table_of
from surgeon.refit.twins import Twins
from surgeon.stats.grid import grid_of, integers_of
from surgeon.stats.matrices import taps_of, weights_of
from surgeon.stats.promises import channels_of, promise_of, promises_of
from surgeon.stats.weight import weight_chain, weight_values

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from surgeon.reference import Reference
    from surgeon.refit.constrained import Constrained, Constraint
    from surgeon.refit.fit import Effort, Fit, Sample
    from surgeon.refit.rounding import Allowed
    from surgeon.stats.linear import Linear
    from surgeon.stats.promises import Promise

    Array = NDArray[Any]
    Matrix = NDArray[np.float64]
    Flags = NDArray[np.bool_]

CHANNELS = (2, 4, 8, 16, 32)  # that are counted together
USUAL = 0.5  # of such channels have as many weights as a pattern allows, or it is none


@dataclass(frozen=True)
class Kept:
    """What a product's weights keep.

    Attributes:
        support: Where they may differ from zero, ``[groups, inputs, outputs]``; None for everywhere.
        table: The values they may have, ascending, the last one repeated, ``[groups or 1, outputs or 1, values]``; None for any.
        pattern: How many of some input channels next to one another differ from zero at most; None for any.
        taps: Weights of each input channel and output.
    """

    support: Flags | None
    table: Matrix | None
    pattern: Few | None = None
    taps: int = 1

    @staticmethod
    def of(promise: Promise, now: Array) -> Kept:
        """The zeros and values that weights have now.

        Args:
            promise: Of the weights these were made of.
            now: ``[groups, inputs, outputs]``.
        """
        support = np.asarray(now != 0) if promise.zeros else None
        table = None if not promise.sharing else table_of(now, per_channel=promise.sharing == "channel")
        return Kept(support, table)

    @property
    def places(self) -> Flags | None:
        """The support with the bias as last row, which is free."""
        return None if self.support is None else with_bias(self.support)

    def patterned(self, weights: Matrix, importance: Matrix) -> tuple[Kept, Matrix]:
        """The same where the pattern holds, of which a cut of input channels may leave nothing, and the weights with its zeros.

        Args:
            weights: ``[groups, inputs + 1, outputs]``, the bias last.
            importance: Of the inputs, ``[groups, inputs]``.
        """
        if self.pattern is None or self.support is None:
            return self, weights
        scores = np.abs(weights[:, :-1]) * importance[:, :, None]
        groups, inputs, outputs = scores.shape
        split = scores.reshape(groups, inputs // self.taps, self.taps, outputs)
        support = self.support & self.pattern.kept(split, 0.0).reshape(scores.shape)
        return replace(self, support=support), np.where(with_bias(support), weights, 0.0)

    def constraint(
        self, inner: Allowed | None = None, *, ordered: bool = True, sweeps: int = SWEEPS
    ) -> Keeping:
        """The constraint on the weights.

        Args:
            inner: What else they may be, such as numbers of a grid, None for anything; not asked where there is a table.
            ordered: Whether the inputs with the largest mean square come first.
            sweeps: How often all weights are visited again.
        """
        allowed = inner if self.table is None else Table(self.table)
        return Keeping(allowed, self.support, ordered=ordered, sweeps=sweeps)


@dataclass
class Promised:
    """What the weights of a graph's products promise; each is looked at once, when it is asked for."""

    _known: dict[tuple[str, int], tuple[Promise | None, Few | None]] = field(default_factory=dict)

    def of(self, view: Linear) -> Promise | None:
        """What the weight of a product promises; None for nothing."""
        return self._looked_at(view)[0]

    def kept(self, view: Linear, weights: Matrix) -> Kept | None:
        """What present weights ``[groups, inputs + 1, outputs]``, the bias last, keep; None for nothing."""
        promise, pattern = self._looked_at(view)
        if promise is None:
            return None
        taps = taps_of(view.op.node, view.weight)
        return replace(Kept.of(promise, weights[:, :-1]), pattern=pattern, taps=taps)

    def _looked_at(self, view: Linear) -> tuple[Promise | None, Few | None]:
        key, node = (str(view.op.node.outputs[0].name), view.weight), view.op.node
        if key not in self._known:
            matrices = view.matrices(node, weight_values(node.inputs[view.weight]))
            promise = promise_of(matrices)
            zeros = promise is not None and promise.zeros
            pattern = pattern_of(matrices != 0, taps_of(node, view.weight)) if zeros else None
            self._known[key] = promise, pattern
        return self._known[key]

    def places(self, view: Linear, weights: Matrix) -> Flags | None:
        """Where these weights may differ from zero; None for everywhere."""
        kept = self.kept(view, weights)
        return None if kept is None else kept.places

    def share(self, *views: Linear) -> bool:
        """Whether the weights of any of these products have few values."""
        promises = [self.of(view) for view in views]
        return any(each is not None and each.sharing for each in promises)


def best(sample: Sample, start: Matrix, kept: Kept | None, effort: Effort) -> Fit | Constrained:
    """The best weights that keep what they have to, or ``start`` where nothing does better on held-out places.

    Args:
        sample: The places.
        start: The present weights with the bias as last row ``[groups, inputs + 1, outputs]``.
        kept: What they keep; None for nothing.
        effort: How much to try.
    """
    if kept is None:
        return fit(sample, start, effort)
    sizes = np.sqrt(np.square(sample.x[:, :, :-1], dtype=np.float64).mean(axis=1))
    kept, start = kept.patterned(start, sizes)
    if kept.table is None:
        return fit(sample, start, effort, kept.places)
    return fit_constrained(sample, start, start, kept.constraint(), effort)


def whatever_keeps(view: Linear) -> Constraint:
    """What the weights of a product may be where nothing else is asked of them: what they promise is kept."""
    node = view.op.node
    values = view.matrices(node, weight_values(node.inputs[view.weight]))
    promise = promise_of(values)
    return Unconstrained() if promise is None else Kept.of(promise, values).constraint()


def pattern_of(support: Flags, taps: int) -> Few | None:
    """So many of every so many input channels next to one another, where most of these have as many; None for no such pattern.

    Args:
        support: Where weights differ from zero, ``[groups, inputs, outputs]``.
        taps: Weights of each input channel and output.
    """
    groups, inputs, outputs = support.shape
    channels = inputs // taps
    found: list[Few] = []
    for m in CHANNELS:
        whole = channels // m * m
        if not whole:
            break
        split = support.reshape(groups, channels, taps, outputs)[:, :whole]
        counts = split.reshape(groups, -1, m, taps, outputs).sum(axis=2)
        n = int(counts.max())
        if 0 < n <= m / 2 and (counts == n).mean() >= USUAL:
            found.append(Few(n, m))
    return min(found, key=lambda each: each.n / each.m, default=None)


def lost_patterns(before: gs.Graph, after: gs.Graph) -> dict[str, Few]:
    """So many of every so many input channels that a cut has left nothing of: others are next to one another now.

    Args:
        before: The graph that was cut.
        after: What was made of it.

    Returns:
        By the name of the weight.
    """
    found, ours = {}, {weight.name: weight for weight in weights_of(after)}
    for weight in weights_of(before):
        other = ours.get(weight.name)
        if other is None or tuple(other.constant.shape) == tuple(weight.constant.shape):
            continue
        support = weight.matrices() != 0
        groups, channels, taps, outputs = support.shape
        pattern = pattern_of(support.reshape(groups, channels * taps, outputs), taps)
        if pattern is not None and not pattern.fits(other.matrices() != 0, 0.0):
            found[weight.name] = pattern
    return found


def ties_of(graph: gs.Graph) -> dict[str, Tie]:
    """What training keeps, by the names of the constants that weights are made of."""
    found = {}
    for name, (weight, promise) in promises_of(graph).items():
        stored = peek((weight_chain(weight.tensor) or [weight.tensor])[0])
        channels = channels_of(weight) if promise.sharing == "channel" else None
        found[name] = Tie.of(stored, channels, shared=bool(promise.sharing))
    return found


def of_originals(graph: gs.Graph, reference: Reference) -> dict[tuple[int, int], Promise]:
    """What weights of a changed graph, stored otherwise, have to keep: what those of the original promise.

    Returns:
        By the identity of an operator, and which of its inputs is the weight.
    """
    promised, found = Promised(), {}
    for twin in Twins.of(graph, reference).found:
        promise = promised.of(twin.original)
        if promise is not None:
            found[id(twin.node), twin.view.weight] = promise
    return found


def tie_of(view: Linear, tensor: gs.Tensor, promise: Promise) -> Tie:
    """What training keeps of a weight that is stored as integers, for numbers stored in their places.

    Args:
        view: The product whose weight it is.
        tensor: The weight, behind a DequantizeLinear.
        promise: Of the weight it was made of.
    """
    grid = grid_of(tensor)
    numbers = grid.numbers(integers_of(tensor))
    channels = None
    if promise.sharing == "channel":
        groups, inputs, outputs = view.matrices(view.op.node, numbers).shape
        columns = np.arange(groups * outputs).reshape(groups, 1, outputs)
        channels = view.weights(np.broadcast_to(columns, (groups, inputs, outputs)), numbers.shape)
    tie = Tie.of(numbers, channels, shared=bool(promise.sharing))
    stored = (weight_chain(tensor) or [tensor])[0]
    return tie.arranged(grid.places, tuple(stored.shape))
