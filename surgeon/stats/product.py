"""Gemm and MatMul with a constant operand, on either side, as products of rows with matrices.

A weight on the left multiplies the columns of the data, so columns are the rows here. Batch axes of the weight are
groups; all other axes of the output but the one that the weight makes are places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.stats.bias import Bias
from surgeon.stats.weight import is_rounded, weight_chain, weight_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from surgeon.ops import Op
    from surgeon.stats.linear import Read

    Array = NDArray[Any]
    Places = NDArray[np.int64]


@dataclass(frozen=True)
class Product:
    """One product with a constant.

    Attributes:
        op: The operator.
        weight: 0 for a constant on the left, 1 for one on the right.
        output: The operator's output, or that of the Add of a bias behind it.
        bias: Where the bias is.
    """

    op: Op
    weight: int
    output: str
    bias: Bias | None

    @property
    def reads(self) -> tuple[str, ...]:
        """The data."""
        return (str(self.op.node.inputs[1 - self.weight].name),)

    @property
    def target_reads(self) -> tuple[str, ...]:
        """The output with its bias."""
        return (self.output,)

    @property
    def channel_axis(self) -> int | None:
        """The last axis, or the last but one for a weight on the left; None for a weight that is a vector."""
        if self._weight_rank == 1:
            return None
        return -2 if self.weight == 0 and self._data_rank > 1 else -1

    @property
    def group_axes(self) -> tuple[int, ...]:
        """Where the batch axes of the weight are in the output."""
        return tuple(axis if self._data_rank > 1 else axis + 1 for axis in self._batch_axes)

    @property
    def turned(self) -> bool:
        """Whether the weight is ``[outputs, inputs]``."""
        return bool(self.op.attribute(("transA", "transB")[self.weight], 0)) != (self.weight == 0)

    @property
    def _data_rank(self) -> int:
        return len(self.op.dims(1 - self.weight))

    @property
    def _weight_rank(self) -> int:
        return len(self.op.dims(self.weight))

    @property
    def _batch_axes(self) -> list[int]:
        """Axes along which the weight is several matrices, counted from the end of ``[batch, places, channels]``."""
        rank = self._weight_rank
        return [k - rank for k, size in enumerate(self.op.dims(self.weight)[:-2]) if size > 1]

    def groups(self, node: gs.Node) -> int:
        """The number of matrices."""
        return int(np.prod(weight_shape(node.inputs[self.weight])[:-2], dtype=int))

    def bias_shape(self, node: gs.Node) -> tuple[int, ...]:
        """What can be added to the output and is the same at all places, without axes of size one in front."""
        shape = self._matrix(weight_shape(node.inputs[self.weight]))
        outputs = shape[-2] if self.turned else shape[-1]
        full = [*shape[:-2], outputs]
        if self._data_rank > 1 and self._weight_rank > 1:
            full.insert(len(full) - self.weight, 1)
        while len(full) > 1 and full[0] == 1:
            del full[0]
        return tuple(full)

    def matrices(self, node: gs.Node, values: Array) -> Array:
        """``[batch, inputs, outputs]``, with the batch axes as one."""
        del node
        several = values.reshape(self._matrix(values.shape))
        several = several.swapaxes(-1, -2) if self.turned else several
        return several.reshape(int(np.prod(several.shape[:-2], dtype=int)), *several.shape[-2:])

    def weights(self, matrices: Array, shape: tuple[int, ...]) -> Array:
        """The inverse."""
        several = matrices.swapaxes(-1, -2) if self.turned else matrices
        return several.reshape(shape)

    def count(self, read: Read) -> int:
        """Everything but the weight's batch axes and what it makes."""
        x = self._data(read(self.reads[0]))
        shared = [1] * (self._weight_rank - x.ndim) + list(x.shape[:-1])
        rank = len(shared) + 1
        return int(np.prod([size for k, size in enumerate(shared) if k - rank not in self._batch_axes]))

    def rows(self, node: gs.Node, read: Read, places: Places) -> Array:
        """Rows of the input (columns, for a weight on the left), times alpha."""
        x = self._data(read(node.inputs[1 - self.weight].name))
        batch = np.broadcast_shapes(x.shape[:-2], weight_shape(node.inputs[self.weight])[:-2])
        picked = self._pick(np.broadcast_to(x, (*batch, *x.shape[-2:])), places)
        alpha = self.op.attribute("alpha", 1.0)
        return picked if alpha == 1.0 else picked * picked.dtype.type(alpha)

    def target(self, node: gs.Node, read: Read, places: Places) -> Array:
        """The output at ``places``."""
        return self.results(read(self.output), places, self.groups(node))

    def results(self, y: Array, places: Places, groups: int) -> Array:
        """Rows (columns) of the output."""
        del groups
        if self._weight_rank == 1:
            y = y[..., None]
        if self._data_rank == 1:
            y = y[..., None, :]
        elif self.weight == 0 and self._weight_rank > 1:
            y = y.swapaxes(-1, -2)
        return self._pick(y, places)

    def _matrix(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a weight; a vector as numpy.matmul takes it."""
        if len(shape) > 1:
            return shape
        return (1, *shape) if self.weight == 0 else (*shape, 1)

    def _data(self, x: Array) -> Array:
        """The data as ``[batch, rows, inputs]``."""
        if x.ndim == 1:
            return x[None]
        turned = bool(self.op.attribute(("transB", "transA")[self.weight], 0)) != (self.weight == 0)
        return x.swapaxes(-1, -2) if turned else x

    def _pick(self, several: Array, places: Places) -> Array:
        """``[batch, places, channels]`` to ``[groups, places, channels]``."""
        axes = self._batch_axes
        front = np.moveaxis(several, axes, range(len(axes)))
        where = np.unravel_index(places, front.shape[len(axes) : -1])
        picked = front[(slice(None),) * len(axes) + where]
        return picked.reshape(
            int(np.prod(picked.shape[: len(axes)], dtype=int)), len(places), several.shape[-1]
        )


def gemm(op: Op) -> list[Product]:
    """The view of a Gemm; none where its third input differs from place to place."""
    side = _side(op)
    if side is None or op.attribute("alpha", 1.0) == 0:
        return []
    name, beta = str(op.node.outputs[0].name), float(op.attribute("beta", 1.0))
    view = Product(op, side, name, Bias(name, 2, beta) if beta else None)
    if op.has(2) and beta and not _fits(view, op.node.inputs[2]):
        return []
    return [view]


def matmul(op: Op) -> list[Product]:
    """The view of a MatMul, with the bias in an Add behind it."""
    side = _side(op)
    if side is None:
        return []
    view = Product(op, side, str(op.node.outputs[0].name), None)
    users = op.node.outputs[0].outputs
    if len(users) == 1 and users[0].op == "Add":
        total = str(users[0].outputs[0].name)
        same = op.shapes.dims.get(total) == op.shapes.dims.get(view.output) is not None
        for index, tensor in enumerate(users[0].inputs):
            if same and _fits(view, tensor):
                return [Product(op, side, total, Bias(total, index))]
    return [view]


def _side(op: Op) -> int | None:
    """Which of the two operands is a weight."""
    constant = [weight_chain(op.node.inputs[k]) is not None for k in (0, 1)]
    return constant.index(True) if sum(constant) == 1 else None


def _fits(view: Product, tensor: gs.Tensor) -> bool:
    """Whether a constant that is added is the same at all places."""
    if not isinstance(tensor, gs.Constant) and not is_rounded(tensor):
        return False
    shape, whole = list(weight_shape(tensor)), view.bias_shape(view.op.node)
    if is_rounded(tensor) and np.prod(shape) != np.prod(whole):
        return False  # one integer for all places cannot become several
    while len(shape) > len(whole) and shape[0] == 1:
        del shape[0]
    dims = view.op.shapes.dims.get(str(view.op.node.outputs[0].name))
    if len(shape) > len(whole) or dims is None or len(whole) > len(dims):
        return False
    return all(here in (1, there) for here, there in zip(shape[::-1], whole[::-1], strict=False))
