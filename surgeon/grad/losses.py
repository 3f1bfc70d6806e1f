"""Losses, written on a tape: each is a mean over samples."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Literal

import numpy as np

from surgeon.graph.schemas import standard

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from surgeon.grad.tape import Tape, Value
    from surgeon.graph.shapes import Shapes

Kind = Literal["probabilities", "logarithms", "values"]
KINDS: dict[str, Kind] = {"Softmax": "probabilities", "LogSoftmax": "logarithms"}
PASSED_ON = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast"})
ONE_AXIS = 13  # the opset from which a Softmax is along one axis, by default the last
SMALLEST = 1e-12


def kind_of(tensor: gs.Tensor, shapes: Shapes, opset: int) -> tuple[Kind, int]:
    """What the numbers of an output are, and along which axis.

    Args:
        tensor: An output of a graph.
        shapes: Those of the graph.
        opset: That of the graph.

    Returns:
        What a Softmax makes, its logarithms or anything else; and the axis of the Softmax, counted from the front. Of
        anything else it is where scores of classes would be: axis 1 of images, the last of everything else.
    """
    dims = shapes.dims.get(tensor.name) or ()
    other: tuple[Kind, int] = "values", 1 if len(dims) >= 4 else len(dims) - 1
    makers = list(tensor.inputs)
    while makers and makers[0].op in PASSED_ON:
        makers = list(makers[0].inputs[0].inputs)
    if not makers or makers[0].op not in KINDS or standard(makers[0].domain):
        return other
    inner = shapes.dims.get(makers[0].outputs[0].name)
    if not inner or not dims:
        return other
    axis = int(makers[0].attrs.get("axis", -1 if opset >= ONE_AXIS else 1)) % len(inner)
    if opset < ONE_AXIS and prod(inner[axis + 1 :]) != 1:
        return other
    # behind a Reshape the axis is where as many places lie in front of it
    places = [
        k for k, size in enumerate(dims) if size == inner[axis] and prod(dims[:k]) == prod(inner[:axis])
    ]
    return (KINDS[makers[0].op], axis if axis in places else places[0]) if places else other


def relative_error(found: Value, wanted: Value, variance: float) -> Value:
    """The mean squared error, relative to a variance, in single precision."""
    difference = found.cast(np.float32) - wanted.cast(np.float32)
    return (difference * difference).mean() * (1 / max(variance, SMALLEST))


def divergence(
    tape: Tape, found: Value, wanted: Value, kind: Kind, axis: int, temperature: float = 1.0
) -> Value:
    """The Kullback–Leibler divergence of what is found from what is wanted, along an axis.

    Args:
        tape: Where it is written.
        found: Scores, probabilities or their logarithms.
        wanted: The same of the original.
        kind: Which of the three both are.
        axis: That of the classes, counted from the front.
        temperature: Softens both; the result is multiplied by its square (Hinton et al., arXiv 1503.02531).
    """
    ours, theirs = (_logarithms(tape, value, kind, axis, temperature) for value in (found, wanted))
    each = tape.op("Exp", theirs) * (theirs - ours)
    return each.sum([axis]).mean() * temperature**2


def cross_entropy(tape: Tape, found: Value, labels: Value, kind: Kind, axis: int) -> Value:
    """Minus the mean logarithm of the probability of the label; labels that are no class count nothing.

    Args:
        tape: Where it is written.
        found: Scores, probabilities or their logarithms, with a fixed number of classes.
        labels: Numbers of classes: as many as ``found`` has places, in their order.
        kind: Which of the three ``found`` is.
        axis: That of the classes, counted from the front.
    """
    logarithms = _logarithms(tape, found, kind, axis, 1.0)
    count = (tape.shapes.dims[found.tensor.name] or ())[axis]
    numbers = labels.cast(np.int64).reshape(logarithms.sum([axis]).shape())
    numbers = tape.where(numbers < 0, count, numbers)  # negative ones would count from the last
    chosen = tape.one_hot(numbers, count, logarithms.dtype, axis)
    return -(logarithms * chosen).sum([axis]).mean()


def _logarithms(tape: Tape, value: Value, kind: Kind, axis: int, temperature: float) -> Value:
    """In single precision, in which the smallest number that is added to probabilities is not lost."""
    value = value.cast(np.float32)
    if kind == "probabilities":
        value = tape.op("Log", value + SMALLEST)
    if temperature != 1.0 or kind == "values":
        return _log_softmax(tape, value * (1 / temperature), axis)
    return value


def _log_softmax(tape: Tape, value: Value, axis: int) -> Value:
    if tape.opset >= ONE_AXIS:
        return tape.op("LogSoftmax", value, axis=axis)
    shifted = value - value.max([axis], keepdims=True)
    return shifted - tape.op("Log", tape.op("Exp", shifted).sum([axis], keepdims=True))
