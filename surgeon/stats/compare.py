"""How far the outputs of one model are from those of another, on the same samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.graph import sessions
from surgeon.stats.data import runnable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx
    from numpy.typing import NDArray

    from surgeon.stats.data import Dataset

    Array = NDArray[Any]
    Feeds = Sequence[Mapping[str, Array]]

TINY = 1e-12


@dataclass(frozen=True)
class Outputs:
    """The outputs of a model on some batches, to compare others with.

    Attributes:
        feeds: The batches.
        values: For each output its values, samples first.
    """

    feeds: Feeds
    values: tuple[Array, ...]

    @staticmethod
    def of(model: onnx.ModelProto, data: Dataset) -> Outputs:
        """Run the model.

        Raises:
            DataError: There are no samples, or they do not fit the model.
        """
        return Outputs.on(model, [batch for batch, _ in runnable(data, sessions.session(model))])

    @staticmethod
    def on(model: onnx.ModelProto, feeds: Feeds, threads: int = 1) -> Outputs:
        """Run the model on batches."""
        return Outputs(feeds, _run(model, feeds, threads))

    def divergence(self, other: onnx.ModelProto, threads: int) -> float | None:
        """The mean over the outputs of their squared error relative to their variance, over the samples or, of one sample, in it.

        Infinite where what should be finite is not. Where no output is a float, the share of the numbers that are others; None
        where nothing can be compared, for lists of what was found differ in length.
        """
        both = zip(self.values, _run(other, self.feeds, threads), strict=True)
        pairs = [(theirs, ours) for theirs, ours in both if theirs.shape == ours.shape and theirs.size]
        floats = [_relative(theirs, ours) for theirs, ours in pairs if theirs.dtype.kind == "f"]
        found = floats or [float((theirs != ours).mean()) for theirs, ours in pairs]
        return float(np.mean(found)) if found else None

    def distance(self, other: onnx.ModelProto, threads: int) -> float:
        """The same; infinite where nothing can be compared."""
        found = self.divergence(other, threads)
        return float("inf") if found is None else found


def _relative(theirs: Array, ours: Array) -> float:
    there = np.isfinite(theirs)  # masks may be infinite
    if not np.isfinite(ours[there]).all():
        return float("inf")
    exact = np.where(there, theirs, 0.0).astype(np.float64)
    axis = 0 if theirs.ndim and len(theirs) > 1 else None
    mean = exact.sum(axis=axis, keepdims=True) / np.maximum(there.sum(axis=axis, keepdims=True), 1)
    spread = np.square((exact - mean)[there]).sum()
    return float(np.square(exact[there] - ours[there]).sum() / max(float(spread), TINY))


def is_clearly_less(found: Array, than: Array) -> bool:
    """Whether errors of the same samples are smaller by more than the standard error of the mean difference."""
    gain = than - found
    doubt = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else 0.0
    return bool(gain.mean() > doubt)


def output_errors(expected: onnx.ModelProto, found: onnx.ModelProto, data: Dataset, *, threads: int) -> Array:
    """How far the outputs of one model are from those of another.

    Args:
        expected: The model to be like.
        found: The other model.
        data: Samples; one batch is in memory at a time.
        threads: Threads for onnxruntime.

    Returns:
        For each sample (or batch, where outputs are not per sample) the squared difference, relative to the mean square of
        that output over all samples, on average over the outputs of floats; where there are none, the share of the numbers that
        are others. Infinite where what should be finite is not. Empty where no such output has the same shape in both models.
    """
    first, second = (sessions.session(model, threads=threads) for model in (expected, found))
    wrong: list[list[Array | None]] = []
    whole: list[list[Array | None]] = []
    for feeds, _ in runnable(data, first):
        size = len(next(iter(feeds.values()))) if feeds and np.ndim(next(iter(feeds.values()))) else 1
        pairs = list(zip(sessions.run(first, feeds), sessions.run(second, feeds), strict=True))
        floats = any(x.dtype.kind == "f" for x, _ in pairs)
        same = [(x.dtype.kind == "f") == floats and x.shape == y.shape for x, y in pairs]
        parts = (
            size
            if all(x.ndim and len(x) == size for (x, _), ok in zip(pairs, same, strict=True) if ok)
            else 1
        )
        both = [_squares(x, y, parts) if ok else None for (x, y), ok in zip(pairs, same, strict=True)]
        wrong.append([None if each is None else each[0] for each in both])
        whole.append([None if each is None else each[1] for each in both])
    errors = []
    for index in range(len(wrong[0])):
        parts_of = [batch[index] for batch in wrong]
        if any(part is None for part in parts_of):  # decisions beside floats, and lists of what was found
            continue
        energy = max(float(np.concatenate([batch[index] for batch in whole]).mean()), TINY)
        errors.append(np.concatenate(parts_of) / energy)  # type: ignore[arg-type]  # none is None
    lengths = {len(each) for each in errors}
    return np.mean(errors, axis=0) if len(lengths) == 1 else np.zeros(0)


def _squares(expected: Array, found: Array, parts: int) -> tuple[Array, Array]:
    """The squared differences and the squares, summed over each of so many parts; of decisions, how many differ, and of how many."""
    if expected.dtype.kind != "f":
        differing = (expected != found).reshape(parts, -1)
        return differing.sum(axis=1, dtype=np.float64), np.full(parts, float(differing.shape[1]))
    there = np.isfinite(expected)  # masks may be infinite
    squares = np.zeros((2, *expected.shape))
    np.subtract(expected, found, out=squares[0, ...], where=there, dtype=np.float64)
    np.copyto(squares[1, ...], expected, where=there)
    squares = np.square(squares).reshape(2, parts, -1).sum(axis=2)
    return np.nan_to_num(squares[0], nan=np.inf, posinf=np.inf), squares[1]


def _run(model: onnx.ModelProto, feeds: Feeds, threads: int) -> tuple[Array, ...]:
    runner = sessions.session(model, threads=threads)
    # sequences, which come as lists, are left out
    batches = [[v for v in sessions.run(runner, batch) if isinstance(v, np.ndarray)] for batch in feeds]
    return tuple(_joined(values) for values in zip(*batches, strict=True))


def _joined(values: Sequence[Array]) -> Array:
    """Batches one after the other; where samples differ in shape, all values in a row."""
    if all(value.ndim and value.shape[1:] == values[0].shape[1:] for value in values):
        return np.concatenate(values)
    return np.concatenate([value.reshape(-1) for value in values])
