"""What of a graph can be learned: the constants that weighted operators, norms and learned activations read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.grad.registry import DERIVATIVES
from surgeon.graph.schemas import label, opsets, standard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

# what may stand between a stored weight and its operator
CARRIERS = frozenset(
    {
        *("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast"),
        *("Clip", "QuantizeLinear", "DequantizeLinear"),
    }
)


ROUNDING = frozenset({"QuantizeLinear", "DequantizeLinear"})


def parameters_of(
    nodes: Iterable[gs.Node], versions: Mapping[str, int], *, integers: bool = False
) -> dict[str, gs.Constant]:
    """The learnable constants that nodes read, by name.

    These are the inputs that rules declare as parameters, directly or behind a Transpose, Reshape or the like, and
    constants that are added to what such an operator makes, for a product without a bias has it there.

    Args:
        nodes: Some nodes of a graph.
        versions: The opset of every domain, see `surgeon.graph.schemas.opsets`.
        integers: Whether to name those that are stored as integers, too, behind a DequantizeLinear.
    """
    found: dict[str, gs.Constant] = {}
    for node in nodes:
        for tensor in _learned(node, versions, integers=integers):
            constant = _stored(tensor, integers=integers)
            if constant is not None:
                found[constant.name] = constant
    return found


def untrained(graph: gs.Graph, excluded: Callable[[str], bool] = lambda _: False) -> dict[str, str]:
    """What of a graph's weights no training changes, though nobody said so, and why."""
    versions = opsets(graph)
    every = parameters_of(graph.nodes, versions)
    found = {
        name: f"it is {np.dtype(constant.dtype)}, and only float32 is trained"
        for name, constant in every.items()
        if constant.dtype != np.float32
    }
    for node in graph.nodes:
        for body in node.subgraphs(recursive=True):
            inside = parameters_of(body.nodes, versions).keys() - every.keys()
            found |= dict.fromkeys(sorted(inside), f"the body of {label(node)} reads it")
    return {name: why for name, why in found.items() if not excluded(name)}


def weighted(node: gs.Node, versions: Mapping[str, int], *, integers: bool = False) -> bool:
    """Whether a node has a matrix or kernel to learn, perhaps stored as integers."""
    return any(
        (constant := _stored(tensor, integers=integers)) is not None and len(constant.shape) > 1
        for tensor in _declared(node, versions)
    )


def _learned(node: gs.Node, versions: Mapping[str, int], *, integers: bool) -> list[gs.Tensor]:
    if node.op != "Add" or len(node.inputs) != 2:
        return _declared(node, versions)
    for constant, other in (node.inputs, node.inputs[::-1]):
        makers = [] if isinstance(other, gs.Constant) else other.inputs
        if integers:
            makers = _unrounded(makers)
            is_added = _stored(constant, integers=True) is not None
        else:
            is_added = isinstance(constant, gs.Constant)
        if is_added and any(weighted(maker, versions, integers=integers) for maker in makers):
            return [constant]
    return []


def _unrounded(makers: list[gs.Node]) -> list[gs.Node]:
    """What makes a tensor before it is rounded."""
    while len(makers) == 1 and makers[0].op in ROUNDING:
        makers = makers[0].inputs[0].inputs
    return makers


def _declared(node: gs.Node, versions: Mapping[str, int]) -> list[gs.Tensor]:
    domain = standard(node.domain)
    rule = DERIVATIVES.find(node.op, domain, versions.get(domain, 1))
    return [] if rule is None else [node.inputs[k] for k in rule.parameters if k < len(node.inputs)]


def _stored(tensor: gs.Tensor, *, integers: bool = False) -> gs.Constant | None:
    """The constant of floats that a tensor is, or is a view of; that of integers behind a DequantizeLinear, if wanted."""
    dequantized = False
    while not isinstance(tensor, gs.Constant):
        if len(tensor.inputs) != 1 or tensor.inputs[0].op not in CARRIERS:
            return None
        dequantized = dequantized or tensor.inputs[0].op == "DequantizeLinear"
        tensor = tensor.inputs[0].inputs[0]
    return tensor if np.dtype(tensor.dtype).kind == "f" or (integers and dequantized) else None
