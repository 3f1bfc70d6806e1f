"""Where the bias of a matrix product is kept, and how it is read and written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.stats.grid import grid_of, set_integers
from surgeon.stats.weight import is_rounded, weight_shape, weight_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from surgeon.stats.linear import Linear

    Array = NDArray[Any]


@dataclass(frozen=True)
class Bias:
    """An input that is added to a product, or could be.

    Attributes:
        node: The node that has it as input, by its first output.
        index: Which input; whether it is given or not.
        scale: What the operator multiplies it with.
        part: ``(first, last, parts)``: the last axis has so many equal parts, of which those before ``last`` from
            ``first`` on are the bias of this product.
    """

    node: str
    index: int
    scale: float = 1.0
    part: tuple[int, int, int] = (0, 1, 1)

    def slice_of(self, size: int) -> slice:
        """The part of a last axis of this size."""
        first, last, parts = self.part
        return slice(size * first // parts, size * last // parts)


def read_bias(view: Linear, nodes: Mapping[str, gs.Node]) -> NDArray[np.float64]:
    """What is added to the product of ``view``: ``[groups, 1, outputs]``, zeros where nothing is.

    Args:
        view: Of an operator with the same first output as the node that is asked for.
        nodes: The nodes of a graph by their first outputs.
    """
    node = nodes[view.op.node.outputs[0].name]
    whole = np.zeros(view.bias_shape(node))
    bias = view.bias
    given = None if bias is None else _given(nodes[bias.node], bias.index)
    if bias is not None and given is not None:
        values = weight_values(given).astype(np.float64) * bias.scale
        while values.ndim > whole.ndim:
            values = values[0]  # axes of size one in front
        whole = np.broadcast_to(values, whole.shape)[..., bias.slice_of(whole.shape[-1])]
    elif bias is not None:
        whole = whole[..., bias.slice_of(whole.shape[-1])]
    groups = view.groups(node)
    return np.asarray(whole.reshape(groups, 1, -1), dtype=np.float64)


def write_bias(view: Linear, nodes: Mapping[str, gs.Node], values: Array) -> None:
    """Let ``values`` be added to the product of ``view`` from now on.

    Args:
        view: One that has a place for a bias.
        nodes: The nodes of a graph by their first outputs; one of them changes.
        values: ``[groups, 1, outputs]``.

    Raises:
        ValueError: Nothing is added to this product.
    """
    bias, node = view.bias, nodes[view.op.node.outputs[0].name]
    if bias is None:
        raise ValueError(f"nothing is added to {view.op.name}")
    owner = nodes[bias.node]
    given, shape = _given(owner, bias.index), view.bias_shape(node)
    kind = weight_values(node.inputs[view.weight]).dtype
    whole = np.zeros(shape, kind)
    if given is not None and bias.part != (0, 1, 1):
        whole[...] = weight_values(given)
    part = bias.slice_of(shape[-1])
    whole[..., part] = (values / bias.scale).reshape(whole[..., part].shape)
    if given is not None and is_rounded(given):
        set_integers(given, grid_of(given).nearest(whole.reshape(weight_shape(given))))
        return
    name = f"{bias.node}/surgeon/bias"
    if given is not None and len(given.outputs) == 1:
        name = given.name
    while len(owner.inputs) <= bias.index:
        owner.inputs.append(gs.Variable.empty())
    owner.inputs[bias.index] = gs.Constant(name, whole)


def _given(owner: gs.Node, index: int) -> gs.Tensor | None:
    tensor = owner.inputs[index] if index < len(owner.inputs) else None
    if tensor is None or not (isinstance(tensor, gs.Constant) or is_rounded(tensor)):
        return None
    return tensor
