"""Made-up calibration data that look to a network as much as possible like what it was trained on.

Images are dead leaves, in whichever of the usual ranges of pixel values suits the network best; token ids are uniform,
other floats normal. Every sixth batch is of another family (noise for images), and where batches are held out it is
those: what is fitted to one family has to help on the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.errors import SurgeonError, UnsupportedModelError
from surgeon.graph.probe import dimension_key, open_dimensions
from surgeon.probes import index_bounds, sequence_lengths
from surgeon.stats.chunks import Chunk
from surgeon.stats.data import Dataset, from_chunks, graph_inputs
from surgeon.stats.leaves import coloured_noise, dead_leaves
from surgeon.stats.moments import Judge, best_of
from surgeon.stats.synthetic import synthetic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from surgeon.analysis import Analysis
    from surgeon.stats.chunks import Feeds, Input

    Array = NDArray[Any]

BATCHES, EVERY = 12, 6
MOST_SAMPLES = 192
COLOURS, SMALLEST = 4, 12  # an image has at most so many channels, and at least such sides


@dataclass(frozen=True)
class Range:
    """How pixels are given to a network: mean, deviation, least and greatest value."""

    name: str
    mean: float
    deviation: float
    least: float
    most: float

    def of(self, pictures: Array) -> Array:
        """Pictures of mean 0 and deviation 1 in this range."""
        return np.clip(pictures * self.deviation + self.mean, self.least, self.most)


RANGES = (
    Range("standardised", 0.0, 1.0, -2.2, 2.7),
    Range("-1..1", -0.1, 0.54, -1.0, 1.0),
    Range("0..1", 0.45, 0.27, 0.0, 1.0),
    Range("0..255", 115.0, 69.0, 0.0, 255.0),
    Range("0..255, centred", 0.0, 69.0, -120.0, 140.0),
)


@dataclass(frozen=True)
class Matched:
    """Made-up data, and what they are for the report."""

    data: Dataset
    facts: dict[str, object]


def matched_dataset(
    analysis: Analysis, seed: int, *, threads: int = 1, samples: int = MOST_SAMPLES
) -> Matched:
    """Make data for a graph and try them.

    Args:
        analysis: The graph.
        seed: Seed of all values.
        threads: Threads for onnxruntime.
        samples: About how many are wanted.

    Raises:
        SurgeonError: Nothing can be made up for an input, or the graph does not run on it or gives no numbers.
    """
    judge = Judge(analysis, threads)
    batch = max(1, samples // BATCHES)
    problem: SurgeonError | None = None
    for size in dict.fromkeys((batch, 1)):  # some graphs that declare the batch open only take one sample
        maker = _Maker(analysis, seed, size)
        try:
            scores = [judge.unlikeliness(maker.feeds(0, each)) for each in maker.ranges]
        except SurgeonError as error:
            problem = error
            continue
        if not np.isfinite(scores).any():
            raise UnsupportedModelError("is not finite on made-up inputs", where=analysis.graph.name or "")
        chosen = maker.ranges[best_of(scores, known=bool(judge.known))]
        return Matched(maker.dataset(chosen, batch * BATCHES), maker.facts(chosen, scores, judge))
    raise problem or UnsupportedModelError("does not run on made-up inputs")


class _Maker:
    """Makes batches for the inputs of a graph."""

    def __init__(self, analysis: Analysis, seed: int, batch: int) -> None:
        self.seed = seed
        self.inputs = graph_inputs(analysis.graph)
        open_ones = open_dimensions(analysis.graph)
        self.sizes = dict(analysis.shapes.probe)
        self.sizes |= {key: batch for key, found in open_ones.items() if found.kind == "batch"}
        lengths = sequence_lengths(analysis).items()
        self.bounds = {**index_bounds(analysis), **{name: (1, longest + 1) for name, longest in lengths}}
        self.named = [
            entry._replace(
                shape=tuple(
                    size if isinstance(size, int) else dimension_key(entry.name, k, size)
                    for k, size in enumerate(entry.shape)
                )
            )
            for entry in self.inputs
        ]
        whole = synthetic(self.named, seed, sizes=self.sizes, bounds=self.bounds)
        self.batch = max((len(each) for each in whole.values() if each.ndim), default=1)
        self.images = {name for name, each in whole.items() if _layout(each) is not None}
        self.ranges = RANGES if self.images else RANGES[:1]

    def feeds(self, number: int, range_: Range) -> Feeds:
        """One batch."""
        seed = self.seed * 1_000_003 + number
        feeds = synthetic(self.named, seed, sizes=self.sizes, bounds=self.bounds)
        for position, name in enumerate(feeds):
            if name in self.images:
                values = feeds[name]
                family = coloured_noise if number % EVERY == EVERY - 1 else dead_leaves
                feeds[name] = range_.of(_pictures(values, family, seed, position)).astype(values.dtype)
            elif number % EVERY == EVERY - 1 and feeds[name].dtype.kind == "f":
                feeds[name] = _running(feeds[name])
        return feeds

    def dataset(self, range_: Range, samples: int) -> Dataset:
        """All batches, made again whenever they are read."""
        wanted = min(MOST_SAMPLES, max(BATCHES, -(-samples // self.batch)))

        def read() -> Iterator[Chunk]:
            for number in range(wanted):
                yield Chunk(self.feeds(number, range_))

        return from_chunks("synthetic data", self.inputs, read, self.batch)

    def facts(self, chosen: Range, scores: list[float], judge: Judge) -> dict[str, object]:
        """What was made, for the report."""
        kinds: dict[str, object] = {
            entry.name: f"dead leaves, {chosen.name}" if entry.name in self.images else _kind(entry)
            for entry in self.inputs
        }
        tried = {
            each.name: float(f"{score:.4g}")
            for each, score in zip(self.ranges, scores, strict=True)
            if np.isfinite(score)
        }
        by = "batch normalization" if judge.known else "offsets of channels"
        return {"inputs": kinds, "judged_by": by, "unlikeliness": tried}


def _kind(entry: Input) -> str:
    return {"f": "normal", "b": "true"}.get(entry.dtype.kind, "uniform")


def _layout(values: Array) -> int | None:
    """Which axis of images holds the colours; None for what is no batch of images."""
    if values.ndim != 4 or values.dtype.kind != "f":
        return None
    for axis, sides in ((1, values.shape[2:]), (3, values.shape[1:3])):
        if values.shape[axis] <= COLOURS and min(sides) >= SMALLEST:
            return axis
    return None


def _pictures(values: Array, family: Any, seed: int, position: int) -> Array:
    last = _layout(values) == 3
    shape = np.moveaxis(values, 3, 1).shape if last else values.shape
    made: Array = family(shape[0], shape[1:], np.random.default_rng([seed, position, 7]))
    return np.moveaxis(made, 1, 3) if last else made


def _running(values: Array) -> Array:
    """White noise summed up along the last axis, of the same deviation: slow signals."""
    if values.ndim < 2:
        return values
    total = np.cumsum(values, axis=-1)
    return np.asarray(total / max(float(total.std()), 1e-6), values.dtype)
