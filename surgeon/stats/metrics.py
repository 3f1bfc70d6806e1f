"""Metrics: plain functions from a model's outputs and the truth to sums that stream over batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from surgeon import entries
from surgeon.errors import DataError, UsageError
from surgeon.graph import sessions
from surgeon.stats import sources
from surgeon.stats.chunks import Array
from surgeon.stats.data import Dataset, runnable
from surgeon.stats.paired import Scores

Outputs = Sequence[Array]
Score = Array | float | tuple[Array | float, Array | float]
"""What a metric makes of one batch: values per sample, one value for the batch, or (sums, weights)."""

OFTEN = 500  # units after which it is asked whether that is enough
SLACK = 1e-9


@dataclass(frozen=True)
class Metric:
    """A named metric.

    Attributes:
        function: ``function(outputs, truth)``: the model's outputs and, as ``truth``, the labels or — where
            ``against`` is "reference" — the list of the original model's outputs.
        against: ``labels``, ``reference``, or ``either`` (labels where there are any).
        higher_is_better: Whether a drop means that the model got worse.
    """

    name: str
    function: Callable[[Outputs, Any], Score]
    against: str = "labels"
    higher_is_better: bool = True

    def loss(self, before: float, after: float) -> float:
        """How much worse ``after`` is than ``before``, negative where it is better."""
        return before - after if self.higher_is_better else after - before

    def within(self, before: float, after: float, max_drop: float) -> bool:
        """Whether at most ``max_drop`` was lost; what is no number lost everything."""
        return self.loss(before, after) <= max_drop + SLACK


def top1(outputs: Outputs, labels: Array) -> Array:
    """Share of samples whose highest score is at the label."""
    return _topk(outputs, labels, 1)


def top5(outputs: Outputs, labels: Array) -> Array:
    """Share of samples whose label is among the five highest scores."""
    return _topk(outputs, labels, 5)


def mse(outputs: Outputs, truth: Array | Outputs) -> Array:
    """Mean squared error of the first output against labels, or of all outputs against the original's."""
    if isinstance(truth, np.ndarray):
        return _per_sample((_numbers(outputs[0]) - _like(truth, outputs[0])) ** 2)
    errors = [_per_sample((_numbers(a) - _like(b, a)) ** 2) for a, b in zip(outputs, truth, strict=True)]
    return np.concatenate(errors)


def cosine(outputs: Outputs, reference: Outputs) -> Array:
    """Cosine similarity with the original model's outputs, per sample and output."""
    scores = []
    for ours, theirs in zip(outputs, reference, strict=True):
        a, b = _rows(_numbers(ours)), _rows(_like(theirs, ours))
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        same = (a == b).all(axis=1)  # two zero vectors agree
        scores.append(np.where(same, 1.0, (a * b).sum(axis=1) / np.maximum(lengths, 1e-30)))
    return np.concatenate(scores)


def agreement(outputs: Outputs, reference: Outputs) -> Array:
    """Share of decisions (highest scores of the first output) that are those of the original model."""
    return _per_sample((_decisions(outputs[0]) == _decisions(reference[0])).astype(float))


def miou(outputs: Outputs, labels: Array) -> tuple[Array, Array]:
    """Mean intersection over union of segmentations; labels below zero or at least 255 are ignored."""
    predicted = _decisions(outputs[0]).reshape(len(labels), -1)
    truth = np.asarray(labels).reshape(len(labels), -1).astype(np.int64)
    if predicted.shape != truth.shape:
        raise DataError(f"masks have {truth.shape[1]} pixels, the model's output {predicted.shape[1]}")
    valid = (truth >= 0) & (truth < 255)
    ours, theirs = predicted[valid].astype(np.int64), truth[valid]
    classes = int(max(ours.max(initial=0), theirs.max(initial=0))) + 1
    hits = np.bincount(ours[ours == theirs], minlength=classes)
    union = np.bincount(ours, minlength=classes) + np.bincount(theirs, minlength=classes) - hits
    return hits, union


def cer(outputs: Outputs, labels: Array) -> tuple[float, float]:
    """Character error rate: edit distance of all texts over their length.

    The first output is a sequence of scores [N, T, characters], decoded greedily as
    :class:`torch.nn.CTCLoss` means it (repeats merged, character 0 is the blank), or of characters [N, T].
    Labels are padded with negative numbers.
    """
    first = outputs[0]
    wrong = length = 0
    for row, label in zip(first, labels, strict=True):
        text = row if first.ndim == 2 else _merged(row.argmax(axis=-1))
        truth = [int(character) for character in np.ravel(label) if character >= 0]
        wrong += edit_distance([int(character) for character in text if character >= 0], truth)
        length += len(truth)
    return float(wrong), float(length)


def edit_distance(left: Sequence[int], right: Sequence[int]) -> int:
    """Counts the insertions, deletions and substitutions that turn ``left`` into ``right`` (Levenshtein)."""
    row = list(range(len(right) + 1))
    for index, character in enumerate(left, 1):
        diagonal, row[0] = row[0], index
        for column, other in enumerate(right, 1):
            best = min(row[column] + 1, row[column - 1] + 1, diagonal + (character != other))
            diagonal, row[column] = row[column], best
    return row[-1]


BUILT_IN = {
    metric.name: metric
    for metric in (
        Metric("top1", top1),
        Metric("top5", top5),
        Metric("mse", mse, against="either", higher_is_better=False),
        Metric("cosine", cosine, against="reference"),
        Metric("agreement", agreement, against="reference"),
        Metric("miou", miou),
        Metric("cer", cer, higher_is_better=False),
    )
}


def find_metric(name: str | Metric) -> Metric:
    """Finds a metric by name, ours or of an entry point ``surgeon.metrics``, or in ``file.py:function``.

    Raises:
        UsageError: There is none of that name.
        PluginError: It is provided twice, cannot be imported, or is neither a function nor a metric.
    """
    if isinstance(name, Metric):
        return name
    path, separator, function = name.rpartition(":")
    if separator and path.endswith(".py"):
        if not Path(path).is_file():
            raise UsageError("no such file", where=path)
        script = Path(path)
        return _wrap(name, sources.find_name(sources.load_script(script), function, script))
    found = entries.load_one(entries.METRICS, name, BUILT_IN, what="metric")
    if not isinstance(found, Metric):
        found = entries.load_function(entries.METRICS, name, {}, what="metric")
    return _wrap(name, found)


def evaluate(
    session: ort.InferenceSession,
    dataset: Dataset,
    metric: str | Metric,
    reference: ort.InferenceSession | None = None,
) -> float:
    """Evaluates a model, one batch in memory at a time.

    Args:
        session: The model.
        dataset: What it runs on.
        metric: A metric or its name.
        reference: The original model, for metrics that compare with it.

    Returns:
        The sum over the sums divided by the sum over the weights; for several classes, the mean over those
        that occur.

    Raises:
        DataError: The metric needs labels or a reference that are not there.
    """
    return scores(session, dataset, metric, reference).value


def scores(
    session: ort.InferenceSession,
    dataset: Dataset,
    metric: str | Metric,
    reference: ort.InferenceSession | None = None,
    enough: Callable[[Scores], bool] = lambda _: False,
) -> Scores:
    """Evaluates a model as :func:`evaluate` does, and keeps what the metric says of each sample or batch.

    Args:
        session: See :func:`evaluate`.
        dataset: See :func:`evaluate`.
        metric: See :func:`evaluate`.
        reference: See :func:`evaluate`.
        enough: Told from time to time what was found so far; the rest of the data is left out where it says so.
    """
    chosen = find_metric(metric)
    sums: Array = np.zeros(1)
    weights: Array = np.zeros(1)
    units: list[tuple[Array, Array]] = []
    asked = 0
    for feeds, labels in runnable(dataset, session):
        outputs = sessions.run(session, feeds)
        truth = _truth(chosen, labels, reference, feeds, dataset.name)
        score = _score(chosen, outputs, truth, dataset.name)
        partial, weight = _as_sums(score, outputs)
        sums, weights = _added(sums, partial), _added(weights, weight)
        units += _units(score, partial, weight, len(outputs[0]) if outputs[0].ndim else 1)
        if len(units) - asked >= OFTEN:
            asked = len(units)
            if enough(Scores.of(*(_stacked([unit[part] for unit in units]) for part in (0, 1)))):
                break
    occurring = weights > 0
    if not occurring.any():
        raise DataError(f"the metric {chosen.name!r} found nothing to measure", where=dataset.name)
    value = float((sums[occurring] / weights[occurring]).mean())
    return Scores(value, *(_stacked([unit[part] for unit in units]) for part in (0, 1)))


def _units(score: Score, sums: Array, weights: Array, samples: int) -> list[tuple[Array, Array]]:
    """The sums and weights of each sample, or of the batch where samples are not told apart."""
    values = np.asarray(score, float) if not isinstance(score, tuple) else np.empty(0)
    if values.ndim != 1 or not len(values) or len(values) % samples:
        return [(sums, weights)]
    each = values.reshape(-1, samples)  # one row for every output
    return [(each[:, k].sum(keepdims=True), np.array([float(len(each))])) for k in range(samples)]


def _stacked(rows: list[Array]) -> Array:
    """Rows under one another, those of fewer classes filled up with zeros."""
    widest = max(len(row) for row in rows)
    return np.stack([np.pad(row, (0, widest - len(row))) for row in rows])


def _truth(
    metric: Metric,
    labels: Array | None,
    reference: ort.InferenceSession | None,
    feeds: dict[str, Array],
    where: str,
) -> Array | Outputs:
    if metric.against in ("labels", "either") and labels is not None:
        return labels
    if metric.against == "labels":
        raise DataError(
            f"the metric {metric.name!r} needs labels",
            where=where,
            hint="add labels to the data, or take --metric agreement or cosine",
        )
    if reference is None:
        raise DataError(f"the metric {metric.name!r} compares with the original model", where=where)
    return sessions.run(reference, feeds)


def _score(metric: Metric, outputs: Outputs, truth: Array | Outputs, where: str) -> Score:
    try:
        return metric.function(outputs, truth)
    except DataError:
        raise
    except (ValueError, IndexError, TypeError, KeyError) as error:
        raise DataError(
            f"the metric {metric.name!r} does not fit outputs {[list(o.shape) for o in outputs]}: {error}",
            where=where,
        ) from error


def _as_sums(score: Score, outputs: Outputs) -> tuple[Array, Array]:
    if isinstance(score, tuple):
        return np.atleast_1d(np.asarray(score[0], float)), np.atleast_1d(np.asarray(score[1], float))
    values = np.asarray(score, float)
    if values.ndim == 0:  # one value for the batch weighs as much as its samples
        size = float(len(outputs[0])) if outputs[0].ndim else 1.0
        return np.array([float(values) * size]), np.array([size])
    return np.array([values.sum()]), np.array([float(values.size)])


def _added(left: Array, right: Array) -> Array:
    """Adds sums per class, where a batch may know more classes than those before it."""
    total = np.zeros(max(len(left), len(right)))
    total[: len(left)] += left
    total[: len(right)] += right
    return total


def _wrap(name: str, function: object) -> Metric:
    if isinstance(function, Metric):
        return replace(function, name=name)  # the name it was found by, so that it is found again
    if not callable(function):
        raise UsageError("not a function", where=name)
    return Metric(
        name,
        function,
        against=str(getattr(function, "against", "either")),
        higher_is_better=bool(getattr(function, "higher_is_better", True)),
    )


def _topk(outputs: Outputs, labels: Array, k: int) -> Array:
    truth = np.asarray(labels).reshape(len(labels), -1)
    scores = outputs[0].reshape(len(labels), -1)
    if truth.shape[1] == scores.shape[1] > 1:
        truth = truth.argmax(axis=1)[:, np.newaxis]  # one-hot
    if truth.shape[1] != 1:
        raise DataError(
            f"labels have {truth.shape[1]} values per sample, expected one class number",
            hint="take another --metric, such as miou for segmentation, or a function of your own",
        )
    if outputs[0].dtype.kind in "iu":  # the model decides itself
        return np.asarray((scores[:, :k] == truth).any(axis=1), float)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.asarray((best == truth).any(axis=1), float)


def _decisions(output: Array) -> Array:
    """Class numbers: scores lie along axis 1 of images, along the last axis of everything else."""
    while output.ndim > 2 and output.shape[-1] == 1:
        output = output[..., 0]
    if output.dtype.kind in "iub":
        return output
    return np.asarray(output.argmax(axis=1 if output.ndim >= 4 else -1))


def decides(shape: Sequence[object], dtype: np.dtype[Any]) -> bool:
    """Whether outputs of a shape (sizes, or names of dimensions) hold decisions that can differ."""
    sizes = list(shape)
    while len(sizes) > 2 and sizes[-1] == 1:
        sizes.pop()
    if dtype.kind in "iub":
        return True
    return len(sizes) > 1 and sizes[1 if len(sizes) >= 4 else -1] != 1


def _merged(characters: Array) -> list[int]:
    kept = np.flatnonzero(np.diff(characters, prepend=-1))
    return [int(character) for character in characters[kept] if character != 0]


def _numbers(array: Array) -> Array:
    return np.asarray(array, np.float64)


def _like(array: Array, output: Array) -> Array:
    if array.size != output.size:
        raise DataError(f"labels of shape {list(array.shape)} against an output {list(output.shape)}")
    return _numbers(array).reshape(output.shape)


def _rows(array: Array) -> Array:
    return array.reshape(array.shape[0], -1) if array.ndim else array.reshape(1, 1)


def _per_sample(values: Array) -> Array:
    return np.asarray(_rows(values).mean(axis=1))
