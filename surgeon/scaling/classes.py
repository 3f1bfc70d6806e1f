"""Classes of factors: the channels that are scaled together, and the weights on either side that make up for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.axes.expression import pin_of
from surgeon.scaling.solve import FIXED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from surgeon.scaling.fields import Demand, Scaling

    Array = NDArray[Any]
    Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Class:
    """Factors that occur in the same tensors.

    Attributes:
        labels: Their numbers, ascending.
        tensors: Where they occur, in graph order.
        writers: The weights that write these channels.
        readers: The weights that are summed over these channels.
        others: What else absorbs them: scales and biases of norms, constants that are added or multiplied.
    """

    labels: Ids
    tensors: tuple[str, ...]
    writers: tuple[Demand, ...]
    readers: tuple[Demand, ...]
    others: tuple[Demand, ...]

    @property
    def name(self) -> str:
        """The first tensor."""
        return self.tensors[0]


def find_classes(scaling: Scaling) -> list[Class]:
    """All classes of a solved graph, in graph order."""
    order = [t.name for op in scaling.analysis.ops for t in op.node.outputs if t.name in scaling.labels]
    where: dict[int, list[str]] = {}
    for name in dict.fromkeys(order):
        for label in np.unique(scaling.labels[name]).tolist():
            if label != FIXED:
                where.setdefault(label, []).append(name)
    together: dict[tuple[str, ...], list[int]] = {}
    for label, names in where.items():
        together.setdefault(tuple(names), []).append(label)
    classes = []
    for tensors, labels in together.items():
        numbers = np.array(sorted(labels), np.int64)
        linear = [each for each in scaling.demands if each.rows is not None]
        rest = [each for each in scaling.demands if each.rows is None]
        classes.append(
            Class(
                numbers,
                tensors,
                tuple(_touching(linear, numbers, "times")),
                tuple(_touching(linear, numbers, "over")),
                tuple(
                    {id(d): d for side in ("times", "over") for d in _touching(rest, numbers, side)}.values()
                ),
            )
        )
    return classes


def _touching(demands: Iterable[Demand], labels: Ids, side: str) -> list[Demand]:
    return [each for each in demands if np.isin(getattr(each, side), labels).any()]


def why_fixed(scaling: Scaling, name: str) -> str:
    """Why the channels of a tensor, along some axis, keep their numbers; '' where some have a factor."""
    if name in scaling.labels and scaling.labels[name].any():
        return ""
    if scaling.reasons.get(name):
        return scaling.reasons[name]
    tensor_axes = scaling.analysis.axes.get(name)
    if tensor_axes is None:
        return "its shape is not known"
    channels = [axis for axis in tensor_axes[1:] if axis.size > 1] or list(tensor_axes)
    pins = [pin for axis in (channels[0], channels[-1]) if (pin := pin_of(axis)) is not None]
    return str(pins[-1] if len(tensor_axes) == 3 and pins else pins[0]) if pins else "it has one channel"
