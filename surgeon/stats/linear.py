"""Weighted operators as matrix products: the rows that are multiplied, and the weights as matrices.

Every operator here computes, for each of its groups, ``y = x W + b`` with x of shape ``[places, inputs]`` and W of
shape ``[inputs, outputs]``; recurrent ones compute two such products. What a place is, and what an input, is said where
the kinds of operators are: convolutions, products, recurrent layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.axes import coordinates
from surgeon.stats.convolution import Convolution, TransposedConvolution
from surgeon.stats.product import gemm, matmul
from surgeon.stats.recurrent import recurrent
from surgeon.stats.weight import is_rounded, weight_chain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.axes import Atom
    from surgeon.ops import Op
    from surgeon.stats.bias import Bias

    Array = NDArray[Any]
    Places = NDArray[np.int64]
    Read: TypeAlias = Callable[[str], Array]


class Linear(Protocol):
    """One matrix product with a constant weight.

    Methods take the node of the original graph or the same node in the cut graph, which has fewer channels; ``read``
    gives the tensors of that graph, of one batch. ``places`` number the places of that batch.
    """

    @property
    def op(self) -> Op:
        """The operator in the analysed graph."""

    @property
    def weight(self) -> int:
        """Which input of the operator is the weight."""

    @property
    def output(self) -> str:
        """The tensor that holds the result with its bias; '' where no tensor does."""

    @property
    def bias(self) -> Bias | None:
        """Where the bias is or could be; see :func:`surgeon.stats.bias.read_bias` and ``write_bias``."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The tensors that :meth:`rows` and :meth:`count` read; the operator's own output where it feeds back."""

    @property
    def target_reads(self) -> tuple[str, ...]:
        """The tensors that :meth:`target` reads."""

    @property
    def channel_axis(self) -> int | None:
        """The axis of the output with the channels, from the end if negative; None where there is no such axis.

        It has groups times outputs channels, but for batched products, whose groups are along :attr:`group_axes`.
        """

    @property
    def group_axes(self) -> tuple[int, ...]:
        """Further axes of the output that are neither channels nor places, slowest first, counted from the end."""

    def groups(self, node: gs.Node) -> int:
        """How many products side by side ``node`` is."""

    def bias_shape(self, node: gs.Node) -> tuple[int, ...]:
        """The shape of the whole tensor that is added to the products of ``node``, its groups slowest."""

    def matrices(self, node: gs.Node, values: Array) -> Array:
        """The weight of ``node`` as ``[groups, inputs, outputs]``, in its own type."""

    def weights(self, matrices: Array, shape: tuple[int, ...]) -> Array:
        """The inverse of :meth:`matrices`, in the weight's own shape."""

    def count(self, read: Read) -> int:
        """How many places a batch has."""

    def rows(self, node: gs.Node, read: Read, places: Places) -> Array:
        """What is multiplied at ``places``: ``[groups, places, inputs]``."""

    def target(self, node: gs.Node, read: Read, places: Places) -> Array:
        """What ``node`` computes at ``places``, its own bias included: ``[groups, places, outputs]``."""

    def results(self, y: Array, places: Places, groups: int) -> Array:
        """The same, from an array shaped as the output.

        Raises:
            ValueError: No tensor holds the result.
        """


def linear_views(op: Op, *, rounded: bool = False) -> Sequence[Linear]:
    """All products of an operator with constant weights; none where there are none.

    Operators in the bodies of others have none, for their tensors cannot be seen from outside; nor have operators
    whose bias is computed or differs from place to place.

    Args:
        op: The operator.
        rounded: Whether weights and biases may be stored as integers: who changes them has to keep to their grid.
    """
    if op.within is not None or op.facts.barrier or op.node.domain not in (None, "", "ai.onnx"):
        return []
    find = _KINDS.get(op.node.op)
    if find is None or (not rounded and any(is_rounded(tensor) for tensor in op.node.inputs)):
        return []
    return find(op)


def contracted_coordinates(view: Linear, atom: Atom) -> NDArray[np.int64] | None:
    """Which index of ``atom`` every row of the original's matrices belongs to.

    Returns:
        ``[groups, inputs]``, -1 where a row does not depend on the atom; None where the atom occurs not once.
    """
    axes = view.op.facts.contracted.get(view.weight, [])
    found = coordinates(axes[0], atom) if axes else []
    if len(found) != 1:
        return None
    weight = np.broadcast_to(np.int8(0), view.op.dims(view.weight))
    groups, inputs, _ = view.matrices(view.op.node, weight).shape
    several = (
        groups if isinstance(view, TransposedConvolution) else 1
    )  # its weight has all groups on one axis
    channels = np.broadcast_to(found[0].reshape(several, -1), (groups, len(found[0]) // several))
    return np.repeat(channels, inputs // channels.shape[1], axis=1)


def _convolution(op: Op) -> list[Convolution]:
    bias = op.node.inputs[2] if op.has(2) else None
    known = bias is None or isinstance(bias, gs.Constant) or is_rounded(bias)
    if not _is_only_weight(op) or not known:
        return []
    return [Convolution(op) if op.node.op == "Conv" else TransposedConvolution(op)]


def _is_only_weight(op: Op) -> bool:
    return [weight_chain(tensor) is not None for tensor in op.node.inputs[:2]] == [False, True]


_KINDS: Mapping[str, Callable[[Op], Sequence[Linear]]] = {
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "Gemm": gemm,
    "MatMul": matmul,
    "LSTM": recurrent,
    "GRU": recurrent,
    "RNN": recurrent,
}
