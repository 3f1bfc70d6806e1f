"""The interface that :mod:`surgeon.stats.linear` had, for code that still uses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.graph.weights import peek
from surgeon.stats.convolution import Convolution
from surgeon.stats.linear import Linear as Current
from surgeon.stats.linear import linear_views
from surgeon.stats.product import Product

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from surgeon.ops import Op

    Array = NDArray[Any]
    Places = NDArray[np.int64]


@dataclass(frozen=True)
class Linear:
    """One weighted operator, its weight being input 1."""

    view: Current

    @property
    def op(self) -> Op:
        """The operator in the analysed graph."""
        return self.view.op

    @property
    def output(self) -> str:
        """The tensor that holds the result with its bias."""
        return self.view.output

    @property
    def bias(self) -> tuple[str, int] | None:
        """The node (by first output) and the index among its inputs."""
        return None if self.view.bias is None else (self.view.bias.node, self.view.bias.index)

    def matrices(self, node: gs.Node, values: Array) -> Array:
        """The weight of ``node`` as ``[groups, inputs, outputs]``."""
        return self.view.matrices(node, values)

    def weights(self, matrices: Array, shape: tuple[int, ...]) -> Array:
        """The inverse of :meth:`matrices`."""
        return self.view.weights(matrices, shape)

    def rows(self, node: gs.Node, x: Array, y_shape: tuple[int, ...], places: Places) -> Array:
        """What is multiplied at some ``places`` of the output: ``[groups, places, inputs]``."""
        del y_shape
        return self.view.rows(node, lambda _: x, places)

    def results(self, y: Array, places: Places, groups: int) -> Array:
        """The output at ``places``: ``[groups, places, outputs]``."""
        return self.view.results(y, places, groups)

    def count(self, y_shape: tuple[int, ...]) -> int:
        """How many places an output of this shape has."""
        channels = y_shape[self.view.channel_axis] if self.view.channel_axis is not None else 1
        return int(np.prod(y_shape)) // channels


def linear_view(op: Op) -> Linear | None:
    """How ``op`` is one product with a constant float matrix on the right, or None where it is not."""
    views = linear_views(op)
    if len(views) != 1 or views[0].weight != 1 or op.node.op == "ConvTranspose":
        return None
    view = views[0]
    weight = op.node.inputs[1]
    plain = isinstance(view, Convolution) or (
        isinstance(view, Product)
        and (view.bias is None or view.bias.scale == 1.0)
        and op.attribute("alpha", 1.0) == 1.0
        and len(op.dims(1)) == 2
    )
    constant = isinstance(weight, gs.Constant) and peek(weight).dtype == np.float32
    return Linear(view) if plain and constant else None
