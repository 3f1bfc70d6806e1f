"""Datasets: re-iterable, streaming batches of model inputs, with labels that metrics and gradients see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from surgeon.errors import DataError, UnsupportedModelError, UsageError
from surgeon.stats import chunks, sources
from surgeon.stats.chunks import Array, Chunk, Feeds, Input, InputLike, Notes, inputs_of

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs
    import onnxruntime as ort

__all__ = [
    "Array",
    "Batch",
    "Chunk",
    "Dataset",
    "Feeds",
    "Input",
    "from_chunks",
    "graph_inputs",
    "open_data",
    "runnable",
]

Batch = tuple[Feeds, Array | None]
DEFAULT_BATCH = 32


@dataclass
class _Origin:
    """A source of samples and what was learnt about it; shared by all the selections made from it."""

    read: Callable[[], Iterator[Chunk]]
    count: int | None = None
    labelled: bool | None = None
    augment: sources.Augment | None = None
    notes: Notes = field(default_factory=Notes)


class Dataset:
    """Batches of feeds that can be read any number of times, each time from the start.

    Iterating yields ``(feeds, labels)``; ``labels`` is None without labels. Only one chunk of the source is
    in memory at a time. Made by :func:`open_data`, :func:`from_arrays` and
    :func:`~surgeon.stats.synthetic.synthetic_dataset`.

    Attributes:
        name: Where the data come from, for messages.
        inputs: The model inputs that every batch feeds.
        batch: Samples per batch; what the model accepts when its first dimension is fixed.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence[Input],
        origin: _Origin,
        *,
        batch: int = DEFAULT_BATCH,
        selection: _Selection | None = None,
    ) -> None:
        self.name, self.inputs = name, tuple(inputs)
        self._origin, self._selection = origin, selection or _Selection()
        self._layout = chunks.layout_of(self.inputs, batch)
        self.batch = self._layout.batch
        self._count: int | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What was adapted so far to make the data fit, for example a cast; one sentence each."""
        return self._origin.notes.texts

    @property
    def count(self) -> int | None:
        """The number of samples; None as long as data of unknown length were not read to their end."""
        if self._count is None and self._origin.count is not None:
            self._count = self._selection.size(self._origin.count)
        return self._count

    @property
    def augment(self) -> sources.Augment | None:
        """What varies samples to learn from: the function ``augment`` of a data file, or None."""
        return self._origin.augment

    @property
    def has_labels(self) -> bool:
        """Whether samples come with labels (looks at the first chunk)."""
        if self._origin.labelled is None:
            next(self._numbered(), None)
        return bool(self._origin.labelled)

    def total(self) -> int:
        """Returns the number of samples, reading the source once where its length is unknown."""
        if self.count is None:
            for _ in self._numbered():
                pass
        return self.count or 0

    def __iter__(self) -> Iterator[Batch]:
        """Yields batches; raises DataError where the source does not fit the model or is empty."""
        picked = (self._selection.apply(chunk, start) for chunk, start in self._numbered())
        limited = chunks.limit((chunk for chunk in picked if chunk.size), self._selection.limit)
        seen = 0
        for chunk in chunks.rebatch(limited, self._layout, self._origin.notes):
            seen += 1 if self._layout.whole else chunk.size
            yield chunk.feeds, chunk.labels
        if not seen:
            raise DataError(self._why_empty(), where=self.name)
        self._count = seen if self._count is None else self._count

    def take(self, count: int) -> Dataset:
        """Returns the first ``count`` samples (or all, where there are fewer)."""
        if count < 1:
            raise DataError(f"cannot take {count} samples", where=self.name)
        limit = self._selection.limit
        return self._select(replace(self._selection, limit=count if limit is None else min(limit, count)))

    def split(self, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
        """Splits into (rest, held-out) at random, the same way for the same seed.

        Args:
            fraction: Share of the samples that is held out; at least one sample stays on either side.
            seed: Seed of the choice.

        Raises:
            UsageError: The fraction is not between 0 and 1.
            DataError: There are fewer than two samples.
        """
        if not 0.0 < fraction < 1.0:
            raise UsageError(f"the held-out share has to be between 0 and 1, not {fraction}")
        for _ in () if self._origin.count is not None else self._numbered():
            pass
        members = self._selection.members(self._origin.count or 0)
        if len(members) < 2:
            raise DataError("one sample cannot be split", where=self.name, hint="give --eval its own data")
        held = min(max(round(len(members) * fraction), 1), len(members) - 1)
        order = np.random.default_rng(seed).permutation(members)
        return (
            self._select(_Selection(frozenset(order[held:].tolist()))),
            self._select(_Selection(frozenset(order[:held].tolist()))),
        )

    def rebatched(self, batch: int) -> Dataset:
        """Returns the same samples in batches of ``batch``, where the model's inputs leave that open."""
        return Dataset(self.name, self.inputs, self._origin, batch=batch, selection=self._selection)

    def _select(self, selection: _Selection) -> Dataset:
        return Dataset(self.name, self.inputs, self._origin, batch=self.batch, selection=selection)

    def _numbered(self) -> Iterator[tuple[Chunk, int]]:
        """Yields checked chunks with the number of their first sample; knows the source's length at its end."""
        start = 0
        for raw in self._origin.read():
            chunk = chunks.fit(raw, self.inputs, self._layout, self._origin.notes, self.name)
            labelled = chunk.labels is not None
            if self._origin.labelled not in (None, labelled):
                raise DataError("some samples have labels and others have none", where=self.name)
            self._origin.labelled = labelled
            yield chunk, start
            start += chunk.size
        self._origin.count = start

    def _why_empty(self) -> str:
        if self._origin.count and self._layout.fixed:
            return f"the model takes {self.batch} samples at a time, there are {self._origin.count}"
        return "there are no samples"


@dataclass(frozen=True)
class _Selection:
    """Which samples of the source belong to a dataset: members (None: all), then the first ``limit``."""

    chosen: frozenset[int] | None = None
    limit: int | None = None

    def members(self, total: int) -> Array:
        """Returns the numbers of the chosen samples out of ``total``."""
        everyone = np.arange(total) if self.chosen is None else np.array(sorted(self.chosen), np.int64)
        return everyone[: self.limit].astype(np.int64)

    def size(self, total: int) -> int:
        """Returns how many samples are chosen out of ``total``."""
        size = total if self.chosen is None else len(self.chosen)
        return size if self.limit is None else min(size, self.limit)

    def apply(self, chunk: Chunk, start: int) -> Chunk:
        """Returns the chosen samples of a chunk whose first sample is number ``start``."""
        if self.chosen is None:
            return chunk
        kept = [index for index in range(chunk.size) if start + index in self.chosen]
        return chunk if len(kept) == chunk.size else chunk.pick(np.array(kept, np.int64))


def open_data(
    spec: str | Path,
    inputs: Sequence[InputLike],
    preprocess: str | None = None,
    *,
    batch: int = DEFAULT_BATCH,
) -> Dataset:
    """Opens calibration or evaluation data for a model.

    Args:
        spec: A ``.npz`` file (arrays named as the inputs, first axis = samples, optional ``labels``), a folder
            of ``.npy`` files (named as the inputs, or one per sample), a folder of images, or
            ``file.py[:name]`` (a callable that yields dicts of arrays, optional key ``labels``).
        inputs: The model's inputs: name, dtype, shape (a string or None for a dynamic dimension).
        preprocess: How images become arrays, for example ``size=224,mean=0.5:0.5:0.5,scale=255``.
        batch: Samples per batch where the model leaves it open.

    Raises:
        DataError: The data cannot be read or do not fit the inputs.
        UsageError: The spec or the preprocessing is not understood.
    """
    known = inputs_of(inputs)
    source = sources.open_source(str(spec), known, preprocess)
    dataset = Dataset(
        str(spec), known, _Origin(source.read, source.count, augment=source.augment), batch=batch
    )
    next(iter(dataset), None)  # what does not fit is said now, not in the middle of a run
    return dataset


def from_chunks(
    name: str, inputs: Sequence[Input], read: Callable[[], Iterator[Chunk]], batch: int = DEFAULT_BATCH
) -> Dataset:
    """Makes a dataset of anything that can be read again and again.

    Args:
        name: Where the data come from, for messages.
        inputs: The model's inputs.
        read: Yields the chunks, from the start at each call.
        batch: Samples per batch where the model leaves it open.
    """
    return Dataset(name, inputs, _Origin(read), batch=batch)


def runnable(dataset: Dataset, runner: ort.InferenceSession) -> Dataset:
    """Returns the dataset in batches that the model really takes.

    Exporters declare the batch dynamic and then write a reshape with the 1 they traced: such a model gets one
    sample at a time.

    Raises:
        DataError: The data do not fit the model.
        UnsupportedModelError: The model does not run.
    """
    from surgeon.graph import sessions

    feeds, _ = next(iter(dataset))
    try:
        sessions.run(runner, feeds)
    except (DataError, UnsupportedModelError):
        single = dataset.rebatched(1)
        if single.batch == dataset.batch:
            raise
        sessions.run(runner, next(iter(single))[0])
        return single
    return dataset


def graph_inputs(graph: gs.Graph) -> list[Input]:
    """Returns the inputs of a graph as data have to fit them."""
    inputs = []
    for variable in graph.inputs:
        shape = tuple(_dimension(size) for size in variable.shape or ())
        inputs.append(Input(variable.name, np.dtype(variable.dtype or np.float32), shape))
    return inputs


def _dimension(size: object) -> int | str | None:
    """Dimensions without a size are None; exporters also write 0 or -1 for them."""
    if isinstance(size, str):
        return size or None
    return int(size) if isinstance(size, int) and size > 0 else None
