"""The loss that gradient scores differentiate: where in the graph it is taken, and its slope there for each sample.

With labels that is the cross entropy (integers, or one-hot) or the squared error (floats) of the first output. Without,
the model is its own truth, and the slopes are such that the mean of their squares is the Fisher information of the
outputs: class scores get a label drawn from the model's own distribution, for the gradient of the most likely label, or
of the distribution itself, is all but zero; other outputs get a random direction, which is what a Gaussian around the output does.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from surgeon.grad.differentiate import FLOATS
from surgeon.graph.schemas import opsets

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from surgeon.analysis import Analysis

    Array = NDArray[Any]
    Floats = NDArray[np.float64]

AXIS_IS_ONE = 13  # the opset from which Softmax runs along one axis
NUMBERS = ("mse", "cosine")  # metrics of outputs that are no class scores
TINY = 1e-12
OWN = "the model's own outputs"


@dataclass(frozen=True)
class End:
    """Where a loss is taken.

    Attributes:
        tensor: An output, or what the Softmax before it reads.
        dtype: Its element type.
        classes: The axis of class scores; None where the numbers are no class scores, or nobody knows.
    """

    tensor: str
    dtype: np.dtype[Any]
    classes: int | None


def find_ends(analysis: Analysis, metric: str) -> list[End]:
    """One end per output of floats.

    Behind a Softmax or LogSoftmax are class scores; so is the only output, if it is one vector per sample and the metric
    is not one of numbers.
    """
    result = []
    for output in analysis.graph.outputs:
        if analysis.shapes.dtypes.get(output.name) not in FLOATS:
            continue
        scores = _before_softmax(analysis, output)
        if scores is not None:
            result.append(_end(analysis, *scores))
        else:
            alone = len(analysis.graph.outputs) == 1 and metric not in NUMBERS
            vector = alone and _is_vector(analysis.shapes.dims.get(output.name) or ())
            result.append(_end(analysis, output.name, 1 if vector else None))
    return result


def _end(analysis: Analysis, tensor: str, classes: int | None) -> End:
    kind = onnx.helper.tensor_dtype_to_np_dtype(analysis.shapes.dtypes[tensor])
    return End(tensor, np.dtype(kind), classes)


def _is_vector(dims: Sequence[int]) -> bool:
    return len(dims) > 1 and dims[1] > 1 and prod(dims[2:]) == 1


def _before_softmax(analysis: Analysis, output: gs.Tensor) -> tuple[str, int] | None:
    """What the Softmax before an output reads, and the axis of the classes."""
    tensor = output
    while tensor.inputs and tensor.inputs[0].op == "Identity":
        tensor = tensor.inputs[0].inputs[0]
    node = tensor.inputs[0] if tensor.inputs else None
    if node is None or node.op not in ("Softmax", "LogSoftmax") or node.domain not in (None, "", "ai.onnx"):
        return None
    dims = analysis.shapes.dims.get(tensor.name) or ()
    single = opsets(analysis.graph)[""] >= AXIS_IS_ONE
    axis = int(node.attrs.get("axis", -1 if single else 1)) % max(len(dims), 1)
    if not dims or not (single or prod(dims[axis + 1 :]) == 1):
        return None
    return node.inputs[0].name, axis


def labelled(end: End, values: Array, labels: Array) -> Array | None:
    """The slope of the loss by the values, per sample, given labels; None where these do not fit the values."""
    found = np.asarray(values, np.float64)
    truth = np.asarray(labels)
    if truth.dtype.kind not in "iufb":
        return None
    if truth.dtype.kind == "f" or (truth.size == found.size and end.classes is None):
        return _against_numbers(end, found, truth.astype(np.float64))
    if truth.size == found.size and found.ndim > 1:  # one-hot
        return _against_numbers(end, found, truth.astype(np.float64))
    for axis in [end.classes] if end.classes is not None else [1, found.ndim - 1]:
        if 0 < axis < found.ndim and truth.size * found.shape[axis] == found.size:
            return _against_classes(found, truth.astype(np.int64), axis)
    return None


def _against_numbers(end: End, values: Floats, truth: Floats) -> Floats | None:
    if truth.size != values.size:
        return None
    truth = truth.reshape(values.shape)
    if end.classes is not None and (truth >= 0).all() and (truth <= 1).all():
        chances = _softmax(values, end.classes)
        slope = chances * truth.sum(axis=end.classes, keepdims=True) - truth
        return np.asarray(slope * values.shape[end.classes] / _per_sample(values))
    return np.asarray((values - truth) / _per_sample(values))


def _against_classes(values: Floats, classes: NDArray[np.int64], axis: int) -> Floats:
    """Of the cross entropy, the mean over the places of a sample; labels that are no class count nothing."""
    rows = np.moveaxis(_softmax(values, axis), axis, -1)
    flat = rows.reshape(-1, rows.shape[-1])
    chosen = classes.reshape(-1)
    valid = (chosen >= 0) & (chosen < flat.shape[1])
    flat[np.flatnonzero(valid), chosen[valid]] -= 1.0
    flat[~valid] = 0.0
    slope = np.moveaxis(flat.reshape(rows.shape), -1, axis)
    return np.asarray(slope * values.shape[axis] / _per_sample(values))


def drawn(end: End, values: Array, generators: Sequence[np.random.Generator]) -> Array:
    """The slope without labels, one generator per sample; a single one stands for all of them."""
    found = np.asarray(values, np.float64)
    if end.classes is not None:
        noise = _samples(found.shape, generators, "gumbel")
        return _against_classes(found, (found + noise).argmax(axis=end.classes), end.classes)
    finite = found[np.isfinite(found)]
    scale = max(float(finite.std()) if finite.size else 1.0, TINY)
    directions = _samples(found.shape, generators, "standard_normal")
    return np.asarray(directions / (scale * np.sqrt(_per_sample(found))))


def _samples(shape: tuple[int, ...], generators: Sequence[np.random.Generator], name: str) -> Floats:
    if len(generators) == 1:
        return np.asarray(getattr(generators[0], name)(size=shape))
    return np.stack([getattr(generator, name)(size=shape[1:]) for generator in generators])


def _softmax(values: Floats, axis: int) -> Floats:
    powers = np.exp(values - values.max(axis=axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axis, keepdims=True))


def _per_sample(values: Floats) -> int:
    return max(prod(values.shape[1:]), 1)
