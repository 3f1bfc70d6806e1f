"""What of a graph can be learned: the constants that weighted operators, norms and learned activations read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.grad.registry import DERIVATIVES
from surgeon.graph.schemas import standard

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# what may stand between a stored weight and its operator
CARRIERS = frozenset(
    {
        *("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast"),
        *("Clip", "QuantizeLinear", "DequantizeLinear"),
    }
)


def parameters_of(nodes: Iterable[gs.Node], versions: Mapping[str, int]) -> dict[str, gs.Constant]:
    """The learnable constants that nodes read, by name.

    These are the inputs that rules declare as parameters, directly or behind a Transpose, Reshape or the like, and
    constants that are added to what such an operator makes, for a product without a bias has it there.

    Args:
        nodes: Some nodes of a graph.
        versions: The opset of every domain, see `surgeon.graph.schemas.opsets`.
    """
    found: dict[str, gs.Constant] = {}
    for node in nodes:
        for tensor in _learned(node, versions):
            constant = _stored(tensor)
            if constant is not None:
                found[constant.name] = constant
    return found


def weighted(node: gs.Node, versions: Mapping[str, int]) -> bool:
    """Whether a node has a matrix or kernel to learn."""
    return any(
        (constant := _stored(tensor)) is not None and len(constant.shape) > 1
        for tensor in _declared(node, versions)
    )


def _learned(node: gs.Node, versions: Mapping[str, int]) -> list[gs.Tensor]:
    if node.op != "Add" or len(node.inputs) != 2:
        return _declared(node, versions)
    for constant, other in (node.inputs, node.inputs[::-1]):
        makers = [] if isinstance(other, gs.Constant) else other.inputs
        if isinstance(constant, gs.Constant) and any(weighted(maker, versions) for maker in makers):
            return [constant]
    return []


def _declared(node: gs.Node, versions: Mapping[str, int]) -> list[gs.Tensor]:
    domain = standard(node.domain)
    rule = DERIVATIVES.find(node.op, domain, versions.get(domain, 1))
    return [] if rule is None else [node.inputs[k] for k in rule.parameters if k < len(node.inputs)]


def _stored(tensor: gs.Tensor) -> gs.Constant | None:
    """The constant of floats that a tensor is, or is a view of."""
    while not isinstance(tensor, gs.Constant):
        if len(tensor.inputs) != 1 or tensor.inputs[0].op not in CARRIERS:
            return None
        tensor = tensor.inputs[0].inputs[0]
    return tensor if np.dtype(tensor.dtype).kind == "f" else None
