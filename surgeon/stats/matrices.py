"""The weights of a model as matrices, whatever their operator: what is counted, made sparse, or shared."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import onnx_graphsurgeon as gs

from surgeon.graph.order import every_node
from surgeon.stats.recurrent import GATES
from surgeon.stats.weight import is_rounded, put_for_all, weight_chain, weight_shape, weight_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

# operators with weights, and which of their inputs may be some
WEIGHTED = {
    **dict.fromkeys(["Conv", "ConvTranspose"], (1,)),
    **dict.fromkeys(["Gemm", "MatMul"], (0, 1)),
    **dict.fromkeys(GATES, (1, 2)),
}


@dataclass(frozen=True)
class Weight:
    """A weight of an operator.

    Attributes:
        node: The operator.
        index: Which of its inputs it is.
    """

    node: gs.Node
    index: int

    @property
    def tensor(self) -> gs.Tensor:
        """The weight itself."""
        return self.node.inputs[self.index]

    @property
    def name(self) -> str:
        """That of the constant it is made of."""
        return str(self.constant.name)

    @property
    def constant(self) -> gs.Tensor:
        """What it is made of."""
        return (weight_chain(self.tensor) or [self.tensor])[0]

    def readers(self) -> list[gs.Node]:
        """All operators that read what it is made of, as it is or turned."""
        found, left = [], [self.constant]
        while left:
            for node in left.pop().outputs:
                turned = [each for each in node.outputs if weight_chain(each) is not None]
                left += turned
                found += [] if turned else [node]
        return found

    @property
    def taps(self) -> int:
        """Weights of each input channel and output."""
        return taps_of(self.node, self.index)

    def matrices(self) -> Array:
        """``[groups, channels, taps, outputs]``."""
        values = weight_values(self.tensor)
        return self._inner(values)

    def set(self, matrices: Array) -> None:
        """Let all that read the weight, or what it is made of, have other values, of the shape that :meth:`matrices` gives."""
        values = weight_values(self.tensor)
        put_for_all(self.tensor, self.outer(matrices, values.shape).astype(values.dtype))

    def _inner(self, values: Array) -> Array:
        if self.node.op == "Conv":
            groups = int(self.node.attrs.get("group", 1))
            split = values.reshape(groups, values.shape[0] // groups, values.shape[1], -1)
            return split.transpose(0, 2, 3, 1)
        if self.node.op == "ConvTranspose":
            groups = int(self.node.attrs.get("group", 1))
            split = values.reshape(groups, values.shape[0] // groups, values.shape[1], -1)
            return split.transpose(0, 1, 3, 2)
        several = values.reshape(-1, *values.shape[-2:])
        return (several.swapaxes(1, 2) if self._turned else several)[:, :, None]

    def outer(self, matrices: Array, shape: tuple[int, ...]) -> Array:
        """From what :meth:`matrices` gives back to the shape of the weight."""
        if self.node.op == "Conv":
            return matrices.transpose(0, 3, 1, 2).reshape(shape)
        if self.node.op == "ConvTranspose":
            return matrices.transpose(0, 1, 3, 2).reshape(shape)
        several = matrices[:, :, 0]
        return (several.swapaxes(1, 2) if self._turned else several).reshape(shape)

    @property
    def _turned(self) -> bool:
        """Whether the weight is ``[outputs, inputs]``."""
        if self.node.op in GATES:
            return True
        transposed = bool(self.node.attrs.get(("transA", "transB")[self.index], 0))
        return transposed != (self.index == 0)


def taps_of(node: gs.Node, index: int) -> int:
    """How many weights an operator has for each input channel and output."""
    return prod(weight_shape(node.inputs[index])[2:]) if node.op in ("Conv", "ConvTranspose") else 1


def weights_of(graph: gs.Graph) -> list[Weight]:
    """All float weights with at least two axes of weighted operators, those of bodies included.

    What several operators are made of is one weight, that of the first of them.
    """
    found: dict[int, Weight] = {}
    for node in every_node(graph):
        if node.domain not in (None, "", "ai.onnx"):
            continue
        for index in WEIGHTED.get(node.op, ()):
            weight = Weight(node, index) if index < len(node.inputs) else None
            if weight is not None and _is_float_weight(weight.tensor):
                found.setdefault(id(weight.constant), weight)
    return list(found.values())


def _is_float_weight(tensor: gs.Tensor) -> bool:
    return weight_chain(tensor) is not None and not is_rounded(tensor) and len(weight_shape(tensor)) >= 2
