"""Losses, written on a tape: each is a mean over samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_graphsurgeon as gs

    from surgeon.grad.tape import Tape, Value

Kind = Literal["probabilities", "logarithms", "values"]
PASSED_ON = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast"})
SMALLEST = 1e-12


def kind_of(tensor: gs.Tensor) -> Kind:
    """What the numbers of an output are: what a Softmax makes, its logarithms, or anything else."""
    makers = list(tensor.inputs)
    while makers and makers[0].op in PASSED_ON:
        makers = list(makers[0].inputs[0].inputs)
    name = makers[0].op if makers else ""
    return "probabilities" if name == "Softmax" else "logarithms" if name == "LogSoftmax" else "values"


def relative_error(found: Value, wanted: Value, variance: float) -> Value:
    """The mean squared error, relative to a variance."""
    difference = found - wanted
    return (difference * difference).mean() * (1 / max(variance, SMALLEST))


def divergence(
    tape: Tape, found: Value, wanted: Value, kind: Kind, axis: int, temperature: float = 1.0
) -> Value:
    """The Kullback–Leibler divergence of what is found from what is wanted, along the last axis.

    Args:
        tape: Where it is written.
        found: Scores, probabilities or their logarithms ``[…, classes]``.
        wanted: The same of the original.
        kind: Which of the three both are.
        axis: The last axis, counted from the front.
        temperature: Softens both; the result is multiplied by its square (Hinton et al., arXiv 1503.02531).
    """
    ours, theirs = (_logarithms(tape, value, kind, axis, temperature) for value in (found, wanted))
    each = tape.op("Exp", theirs) * (theirs - ours)
    return each.sum([axis]).mean() * temperature**2


def cross_entropy(tape: Tape, found: Value, labels: Value, kind: Kind, dims: Sequence[int]) -> Value:
    """Minus the mean logarithm of the probability of the label.

    Args:
        tape: Where it is written.
        found: Scores, probabilities or their logarithms ``[…, classes]``.
        labels: Their numbers ``[…]``, int64.
        kind: Which of the three ``found`` is.
        dims: Its shape, of which only the rank and the last size matter.
    """
    axis = len(dims) - 1
    logarithms = _logarithms(tape, found, kind, axis, 1.0)
    return -(logarithms * tape.one_hot(labels, dims[-1], found.dtype)).sum([axis]).mean()


def _logarithms(tape: Tape, value: Value, kind: Kind, axis: int, temperature: float) -> Value:
    if kind == "probabilities":
        value = tape.op("Log", value + SMALLEST)
    if temperature != 1.0 or kind == "values":
        return tape.op("LogSoftmax", value * (1 / temperature), axis=axis)
    return value
