"""Smoothing for one class: the factors with which the products that read it lose least to 8 bits, tried out on data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.graph import sessions
from surgeon.graph.save import to_model
from surgeon.scaling.fields import values_of
from surgeon.stats.data import runnable
from surgeon_passes.scaling.choose import candidate
from surgeon_passes.scaling.noise import HALF, LEVELS, TINY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from surgeon.scaling.classes import Class
    from surgeon.scaling.fields import Demand
    from surgeon.scaling.ranges import Range
    from surgeon.stats.data import Dataset

    Array = NDArray[Any]

ALPHAS = tuple(np.linspace(0.0, 1.0, 11).tolist())
PLACES = 256  # rows of a product's input that errors are measured on
PER_BATCH = 64


@dataclass(frozen=True)
class Product:
    """One matrix product that reads a class.

    Attributes:
        labels: The factor of every row of the weight, ``[inputs]``.
        weight: ``[inputs, outputs]``.
        rows: Inputs from data, ``[places, inputs]``.
        high, low: The range of every input, ``[inputs]``, over all data.
        target: What the product is in floats.
    """

    labels: Array
    weight: Array
    rows: Array
    high: Array
    low: Array
    target: Array

    @staticmethod
    def of(demand: Demand, rows: Array, found: Range) -> Product:
        """Reads a product; its input has its channels along the last axis."""
        values = values_of(demand).astype(np.float64)
        turned = bool(demand.op.attribute("transB", 0))
        values, labels = (
            (values.T if turned else values),
            np.broadcast_to(demand.over.ravel(), values.shape[turned]),
        )
        high, low = (np.broadcast_to(each.ravel(), (values.shape[0],)) for each in (found.high, found.low))
        return Product(labels, values, rows, high, low, rows @ values)

    def error(self, factors: Array, *, per_channel: bool) -> float:
        """The squared error of the product in 8 bits, relative to the product."""
        mine = factors[self.labels]
        high, low = max((self.high * mine).max(), 0.0), min((self.low * mine).min(), 0.0)
        step = max(high - low, TINY) / LEVELS
        zero = np.round(-low / step)
        rounded = (np.clip(np.round(self.rows * mine / step) + zero, 0, LEVELS) - zero) * step
        weight = self.weight / mine[:, None]
        largest = np.abs(weight).max(axis=0 if per_channel else None, initial=0.0)
        grid = np.maximum(largest, TINY) / HALF
        made = rounded @ (np.round(weight / grid) * grid)
        return float(((made - self.target) ** 2).sum() / max((self.target**2).sum(), TINY))


def samples_of(
    graph: gs.Graph, names: Sequence[str], data: Dataset, *, threads: int, seed: int
) -> dict[str, Array]:
    """Up to `PLACES` rows of tensors, ``[places, channels]`` along their last axis, drawn from all batches."""
    runner = sessions.session(sessions.with_outputs(to_model(graph), names), threads=threads)
    order = [output.name for output in runner.get_outputs()]
    random = np.random.default_rng(seed)
    found: dict[str, list[Array]] = {name: [] for name in names}
    for feeds, _ in runnable(data, runner):
        values = dict(zip(order, sessions.run(runner, feeds), strict=True))
        for name in names:
            rows = values[name].reshape(-1, values[name].shape[-1])
            picked = random.permutation(len(rows))[:PER_BATCH]
            found[name].append(rows[np.sort(picked)].astype(np.float64))
    result = {}
    for name, pieces in found.items():
        rows = np.concatenate(pieces)
        result[name] = rows[np.sort(random.permutation(len(rows))[:PLACES])]
    return result


def smoothed(
    each: Class, products: Sequence[Product], alphas: Iterable[float], size: int, *, per_channel: bool
) -> tuple[Array, float, float, float | None]:
    """Try strengths of smoothing.

    Args:
        each: The class.
        products: What reads it.
        alphas: Strengths to try.
        size: Number of all factors.
        per_channel: Whether weights have a scale per output.

    Returns:
        The factors of all classes, 1 for others; the mean error of the products before and after; and the strength, None
        where none was better than doing nothing.
    """
    range_, weight = _magnitudes(each, products, size)
    factors = np.ones(size)
    before = least = _error(products, factors, per_channel=per_channel)
    best, chosen = factors, None
    for alpha in alphas:
        trial = np.ones(size)
        trial[each.labels] = candidate(range_, weight, alpha, 1 - alpha)
        error = _error(products, trial, per_channel=per_channel)
        if error < least:
            least, best, chosen = error, trial, alpha
    return best, before, least, chosen


def _error(products: Sequence[Product], factors: Array, *, per_channel: bool) -> float:
    return float(np.mean([product.error(factors, per_channel=per_channel) for product in products]))


def _magnitudes(each: Class, products: Sequence[Product], size: int) -> tuple[Array, Array]:
    """The largest magnitude of every channel of the class, in activations and in weights: ``[channels]`` each."""
    activations, weights = np.zeros(size), np.zeros(size)
    for product in products:
        np.maximum.at(activations, product.labels, np.maximum(product.high, -product.low))
        np.maximum.at(weights, product.labels, np.abs(product.weight).max(axis=1))
    return activations[each.labels], weights[each.labels]


def products_of(each: Class, rows: Mapping[str, Array], ranges: Mapping[str, Range]) -> list[Product]:
    """The products that read a class."""
    return [
        Product.of(demand, rows[name], ranges[name])
        for demand in each.readers
        if (name := demand.op.node.inputs[0].name) in rows
    ]
