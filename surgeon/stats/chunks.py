"""Chunks of samples: checked against the model's inputs, cast where nothing is lost, cut into batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from surgeon.errors import DataError
from surgeon.suggest import did_you_mean

Array = NDArray[Any]
Feeds = dict[str, Array]


class Input(NamedTuple):
    """One input of a model; dynamic dimensions of ``shape`` are names or None."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join('?' if d is None else str(d) for d in self.shape)}]"


InputLike = Input | tuple[str, Any, Sequence[int | str | None]]


def inputs_of(entries: Sequence[InputLike]) -> list[Input]:
    """Returns inputs given as (name, dtype, shape) with what numpy makes of their dtypes."""
    return [Input(str(name), np.dtype(dtype), tuple(shape)) for name, dtype, shape in entries]


@dataclass(frozen=True)
class Chunk:
    """Some samples: every array, and the labels where there are any, has them along its first axis."""

    feeds: Feeds
    labels: Array | None = None

    @property
    def size(self) -> int:
        """The number of samples."""
        return len(next(iter(self.feeds.values())))

    def pick(self, index: Array | slice) -> Chunk:
        """Returns the samples at an index, as numpy understands it."""
        labels = None if self.labels is None else self.labels[index]
        # one element of a vector would be a numpy scalar, which onnxruntime refuses
        return Chunk({name: np.asarray(array[index]) for name, array in self.feeds.items()}, labels)

    def joined(self, other: Chunk) -> Chunk:
        """Returns these samples followed by those of a chunk of the same form."""
        labels = None
        if self.labels is not None and other.labels is not None:
            labels = np.concatenate([self.labels, other.labels])
        return Chunk({n: np.concatenate([a, other.feeds[n]]) for n, a in self.feeds.items()}, labels)

    def form(self) -> tuple[object, ...]:
        """Everything two chunks must have in common to be joined."""
        labels = None if self.labels is None else self.labels.shape[1:]
        return (*(array.shape[1:] for array in self.feeds.values()), labels)


@dataclass(frozen=True)
class Layout:
    """How samples become batches.

    Attributes:
        batch: Samples per batch.
        fixed: The model takes exactly that many, so a shorter last batch has to be left out.
        whole: A sample is one complete set of feeds, batch axis included, because the inputs have no batch
            axis in common (states, scalars).
    """

    batch: int
    fixed: bool = False
    whole: bool = False


@dataclass
class Notes:
    """Sentences worth telling the user, each once, in the order they came up."""

    _seen: dict[str, None] = field(default_factory=dict)

    def add(self, text: str) -> None:
        """Adds a sentence unless it is there."""
        self._seen.setdefault(text)

    @property
    def texts(self) -> tuple[str, ...]:
        """The sentences in order."""
        return tuple(self._seen)


def layout_of(inputs: Sequence[Input], batch: int) -> Layout:
    """Chooses the batch size that fits all inputs, ``batch`` where they leave it open."""
    sizes = {entry.shape[0] for entry in inputs if entry.shape and isinstance(entry.shape[0], int)}
    if len(sizes) > 1 or any(not entry.shape for entry in inputs) or _batch_lies_elsewhere(inputs):
        return Layout(1, fixed=True, whole=True)
    if sizes:
        return Layout(sizes.pop(), fixed=True)
    return Layout(max(batch, 1))


def _batch_lies_elsewhere(inputs: Sequence[Input]) -> bool:
    """Whether the first axis of one input is a later axis of another, as of a state ``[layers, batch, size]``."""
    opened = {entry.shape[0] for entry in inputs if isinstance(entry.shape[0], str)}
    stacked = [entry for entry in inputs if isinstance(entry.shape[0], int) and entry.shape[0] != 1]
    return any(not opened.isdisjoint(entry.shape[1:]) for entry in stacked)


def fit(chunk: Chunk, inputs: Sequence[Input], layout: Layout, notes: Notes, where: str) -> Chunk:
    """Returns the chunk with exactly the model's inputs, ranks and dtypes.

    Raises:
        DataError: A name, rank, fixed dimension, dtype or value does not fit.
    """
    _check_names(chunk, inputs, notes, where)
    arrays = {entry.name: _plain(chunk.feeds[entry.name], entry.name, where) for entry in inputs}
    labels = None if chunk.labels is None else _plain(chunk.labels, "labels", where)
    if layout.whole:
        arrays, labels = _stacked(arrays, labels, inputs)
    for entry in inputs:
        expected = ("samples", *entry.shape) if layout.whole else ("samples", *entry.shape[1:])
        _check_shape(arrays[entry.name], expected, entry, where)
        arrays[entry.name] = _cast(arrays[entry.name], entry, notes, where)
    sizes = {name: array.shape[0] for name, array in arrays.items()}
    if labels is not None:
        sizes["labels"] = labels.shape[0] if labels.ndim else -1
    if len(set(sizes.values())) > 1:
        raise DataError(
            f"different numbers of samples: {sizes}",
            where=where,
            hint="the first axis of every array counts the samples",
        )
    return Chunk(arrays, labels)


def limit(parts: Iterable[Chunk], count: int | None) -> Iterator[Chunk]:
    """Passes on the first ``count`` samples and stops reading there."""
    left = count
    for part in parts:
        if left is None:
            yield part
            continue
        yield part.pick(slice(0, left)) if part.size > left else part
        left -= part.size
        if left <= 0:
            return


def rebatch(parts: Iterable[Chunk], layout: Layout, notes: Notes) -> Iterator[Chunk]:
    """Cuts and joins chunks into batches; samples of different shapes never share one."""
    if layout.whole:
        for part in parts:
            for index in range(part.size):
                yield part.pick(np.array(index))
        return
    pending: Chunk | None = None
    for part in parts:
        chunk = part
        if pending is not None:
            if pending.form() == part.form():
                chunk = pending.joined(part)
            else:
                yield from _remainder(pending, layout, notes)
        full = chunk.size - chunk.size % layout.batch
        for start in range(0, full, layout.batch):
            yield chunk.pick(slice(start, start + layout.batch))
        pending = chunk.pick(slice(full, None)) if full < chunk.size else None
    yield from _remainder(pending, layout, notes)


def _remainder(pending: Chunk | None, layout: Layout, notes: Notes) -> Iterator[Chunk]:
    if pending is None:
        return
    if layout.fixed:
        notes.add(f"{pending.size} samples left out: the model takes exactly {layout.batch} at a time")
    else:
        yield pending


def _check_names(chunk: Chunk, inputs: Sequence[Input], notes: Notes, where: str) -> None:
    wanted = [entry.name for entry in inputs]
    missing = [name for name in wanted if name not in chunk.feeds]
    extra = [str(name) for name in chunk.feeds if name not in wanted]
    if missing:
        raise DataError(
            f"no array named {missing[0]!r}, an input of the model: {', '.join(map(str, inputs))}",
            where=where,
            hint=did_you_mean(missing[0], extra, what="the other arrays"),
        )
    if extra:
        notes.add(f"arrays that are no inputs of the model were ignored: {', '.join(sorted(extra))}")


def _plain(value: object, name: str, where: str) -> Array:
    array: Array = np.asarray(value)
    if array.dtype == object:
        raise DataError(f"{name!r} holds Python objects, not numbers", where=where, hint="save plain arrays")
    return array


def _stacked(arrays: Feeds, labels: Array | None, inputs: Sequence[Input]) -> tuple[Feeds, Array | None]:
    """Gives complete feeds their sample axis: one feed becomes a stack of one."""
    if all(_is_feed(arrays[entry.name], entry) for entry in inputs):
        single = {name: array[np.newaxis] for name, array in arrays.items()}
        return single, None if labels is None else np.atleast_1d(labels)[np.newaxis]
    stacked = {}
    for entry in inputs:
        array = arrays[entry.name]
        has_batch = bool(entry.shape) and (entry.shape[0] == 1 or not isinstance(entry.shape[0], int))
        stacked[entry.name] = array[:, np.newaxis] if array.ndim == len(entry.shape) and has_batch else array
    return stacked, None if labels is None or not labels.ndim else labels[:, np.newaxis]


def _is_feed(array: Array, entry: Input) -> bool:
    return array.ndim == len(entry.shape) and all(
        not isinstance(want, int) or have == want for have, want in zip(array.shape, entry.shape, strict=True)
    )


def _check_shape(array: Array, expected: Sequence[int | str | None], entry: Input, where: str) -> None:
    shown = f"[{', '.join('?' if want is None else str(want) for want in expected)}]"
    if array.ndim != len(expected):
        raise DataError(
            f"{entry.name!r} has {array.ndim} axes {list(array.shape)}, expected {len(expected)}: {shown}",
            where=where,
            hint="the first axis counts the samples",
        )
    for axis, (have, want) in enumerate(zip(array.shape, expected, strict=True)):
        if isinstance(want, int) and have != want:
            raise DataError(
                f"axis {axis} of {entry.name!r} is {have} long, the model wants {want}: "
                f"{list(array.shape)} against {shown}",
                where=where,
            )


def _cast(array: Array, entry: Input, notes: Notes, where: str) -> Array:
    """Casts where the values survive: exactly, or to a narrower float."""
    have, want = array.dtype, entry.dtype
    if want.kind == "f" and have.kind == "f":
        bad = ~np.isfinite(array.reshape(array.shape[0], -1)).all(axis=1) if array.size else np.zeros(1, bool)
        if bad.any():
            masks = "in a mask, a large negative number does what -infinity does"
            hint = masks if np.isneginf(array[~np.isfinite(array)]).all() else None
            found = f"{entry.name!r} has NaN or infinity in sample {int(bad.argmax())}"
            raise DataError(found, where=where, hint=hint)
    if have == want:
        return array
    if want.kind == "O" and have.kind in "US":
        return array.astype(object)
    with np.errstate(over="ignore", invalid="ignore"):
        cast: Array = array.astype(want) if have.kind in "fiub" and want.kind in "fiub" else array
    narrower = have.kind == want.kind == "f" and bool(np.isfinite(cast).all())
    if narrower or (have.kind in "iub" and cast.dtype == want and bool((cast.astype(have) == array).all())):
        notes.add(f"{entry.name!r} was cast from {have} to {want}")
        return cast
    raise DataError(
        f"{entry.name!r} is {have}, the model wants {want}", where=where, hint="convert the data yourself"
    )
