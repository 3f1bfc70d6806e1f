"""Weighted operators as matrix products: the rows that are multiplied, and the weights as matrices.

Every operator here computes, for each of its groups, ``y = x W + b`` with x of shape ``[positions, inputs]`` and W of
shape ``[inputs, outputs]``. For a convolution the positions are those of the output and the inputs are channel times
kernel taps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.graph.weights import peek

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from surgeon.ops import Op

    Array = NDArray[Any]
    Matrix = NDArray[np.float64]


class Linear(Protocol):
    """One weighted operator."""

    @property
    def op(self) -> Op:
        """The operator in the analysed graph."""

    @property
    def output(self) -> str:
        """The tensor that holds the result with its bias."""

    @property
    def bias(self) -> tuple[str, int] | None:
        """Where the bias is, whether given or not: the node (by first output) and the index among its inputs."""

    def matrices(self, node: gs.Node, values: Array) -> Array:
        """The weight of ``node`` as ``[groups, inputs, outputs]``."""

    def weights(self, matrices: Array, shape: tuple[int, ...]) -> Array:
        """The inverse of :meth:`matrices`, in the weight's own shape."""

    def rows(self, node: gs.Node, x: Array, y_shape: tuple[int, ...], places: NDArray[np.int64]) -> Array:
        """What is multiplied at some ``places`` of the output: ``[groups, places, inputs]``."""

    def results(self, y: Array, places: NDArray[np.int64], groups: int) -> Array:
        """The output at ``places``: ``[groups, places, outputs]``."""

    def count(self, y_shape: tuple[int, ...]) -> int:
        """How many places an output of this shape has."""


@dataclass(frozen=True)
class Convolution:
    """Conv with any number of groups, strides, dilations and pads."""

    op: Op

    @property
    def output(self) -> str:
        """The convolution's own output."""
        return str(self.op.node.outputs[0].name)

    @property
    def bias(self) -> tuple[str, int]:
        """The optional third input."""
        return self.output, 2

    def matrices(self, node: gs.Node, values: Array) -> Array:
        """``[G*O, I, taps]`` to ``[G, I*taps, O]``."""
        groups = node.attrs.get("group", 1)
        return values.reshape(groups, values.shape[0] // groups, -1).transpose(0, 2, 1)

    def weights(self, matrices: Array, shape: tuple[int, ...]) -> Array:
        """``[G, I*taps, O]`` to ``[G*O, I, taps]``."""
        return matrices.transpose(0, 2, 1).reshape(shape)

    def count(self, y_shape: tuple[int, ...]) -> int:
        """Samples times output positions."""
        return int(y_shape[0] * np.prod(y_shape[2:]))

    def rows(self, node: gs.Node, x: Array, y_shape: tuple[int, ...], places: NDArray[np.int64]) -> Array:
        """Patches around ``places``."""
        kernel = list(node.inputs[1].shape[2:])
        rank = len(kernel)
        strides = node.attrs.get("strides") or [1] * rank
        dilations = node.attrs.get("dilations") or [1] * rank
        groups = node.attrs.get("group", 1)
        x = np.pad(
            x, [(0, 0), (0, 0), *self._pads(node, x.shape[2:], y_shape[2:], kernel, strides, dilations)]
        )
        where = np.unravel_index(places, (y_shape[0], *y_shape[2:]))
        index: list[Any] = [
            where[0].reshape(-1, *[1] * (rank + 1)),
            np.arange(x.shape[1]).reshape(1, -1, *[1] * rank),
        ]
        for k in range(rank):
            taps = np.arange(kernel[k]) * dilations[k]
            shape = [1] * (rank + 2)
            shape[2 + k] = len(taps)
            index.append(where[1 + k].reshape(-1, *[1] * (rank + 1)) * strides[k] + taps.reshape(shape))
        patches: Array = x[tuple(index)]
        return patches.reshape(len(places), groups, -1).transpose(1, 0, 2)

    @staticmethod
    def _pads(
        node: gs.Node,
        have: tuple[int, ...],
        want: tuple[int, ...],
        kernel: list[int],
        strides: list[int],
        dilations: list[int],
    ) -> list[tuple[int, int]]:
        """Pads per spatial axis, as much as the last window needs."""
        rank, result = len(kernel), []
        mode = node.attrs.get("auto_pad", "NOTSET")
        given = node.attrs.get("pads") or [0] * (2 * rank)
        for k in range(rank):
            span = (want[k] - 1) * strides[k] + (kernel[k] - 1) * dilations[k] + 1
            missing = max(span - have[k], 0)
            if mode == "SAME_UPPER":
                low = missing // 2
            elif mode == "SAME_LOWER":
                low = missing - missing // 2
            else:
                low = 0 if mode == "VALID" else given[k]
            result.append((low, max(span - have[k] - low, 0)))
        return result

    def results(self, y: Array, places: NDArray[np.int64], groups: int) -> Array:
        """Output channels at ``places``."""
        flat: Array = np.moveaxis(y, 1, -1).reshape(-1, y.shape[1])[places]
        return flat.reshape(len(places), groups, -1).transpose(1, 0, 2)


@dataclass(frozen=True)
class Product:
    """Gemm, or MatMul with a constant matrix on the right; ``transposed`` weights are ``[outputs, inputs]``."""

    op: Op
    output: str
    bias: tuple[str, int] | None
    transposed: bool

    def matrices(self, node: gs.Node, values: Array) -> Array:
        """``[1, inputs, outputs]``."""
        del node
        return (values.T if self.transposed else values)[None]

    def weights(self, matrices: Array, shape: tuple[int, ...]) -> Array:
        """The inverse."""
        matrix: Array = matrices[0].T if self.transposed else matrices[0]
        return matrix.reshape(shape)

    def count(self, y_shape: tuple[int, ...]) -> int:
        """Everything before the last axis."""
        return int(np.prod(y_shape[:-1]))

    def rows(self, node: gs.Node, x: Array, y_shape: tuple[int, ...], places: NDArray[np.int64]) -> Array:
        """Rows of the input."""
        del y_shape
        if node.attrs.get("transA", 0):
            x = x.T
        return x.reshape(-1, x.shape[-1])[places][None]

    def results(self, y: Array, places: NDArray[np.int64], groups: int) -> Array:
        """Rows of the output."""
        del groups
        return y.reshape(-1, y.shape[-1])[places][None]


def linear_view(op: Op) -> Linear | None:
    """How ``op`` is a matrix product with a constant weight, or None where it is not one."""
    node = op.node
    if len(node.inputs) < 2 or not isinstance(node.inputs[1], gs.Constant) or op.facts.barrier:
        return None
    if op.within is not None:  # nothing inside a body can be seen from outside it
        return None
    if isinstance(node.inputs[0], gs.Constant) or peek(node.inputs[1]).dtype != np.float32:
        return None
    if node.op in ("Conv", "Gemm") and not _has_vector_bias(node):
        return None
    if node.op == "Conv":
        return Convolution(op)
    name = node.outputs[0].name
    if node.op == "Gemm":
        plain = op.attribute("alpha", 1.0) == 1.0 and op.attribute("beta", 1.0) == 1.0
        return Product(op, name, (name, 2), bool(op.attribute("transB", 0))) if plain else None
    if node.op == "MatMul" and len(node.inputs[1].shape) == 2:
        added = _bias_after(node)
        return Product(op, added[0] if added else name, added, transposed=False)
    return None


def _has_vector_bias(node: gs.Node) -> bool:
    """Whether the third input is missing, or constant and the same at every place."""
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return True
    bias = node.inputs[2]
    return isinstance(bias, gs.Constant) and all(size == 1 for size in bias.shape[:-1])


def _bias_after(node: gs.Node) -> tuple[str, int] | None:
    """The Add of a constant vector that is the only user of a MatMul."""
    users = node.outputs[0].outputs
    if len(users) != 1 or users[0].op != "Add":
        return None
    for index, tensor in enumerate(users[0].inputs):
        if (
            isinstance(tensor, gs.Constant)
            and len(tensor.shape) == 1
            and tensor.shape[0] == node.inputs[1].shape[1]
        ):
            return users[0].outputs[0].name, index
    return None
