"""Copying graphs: structure is copied, weights are shared and stay unread.

graphsurgeon's own ``Graph.copy`` goes by names: it forgets what a graph came from, and gives bodies copies of the
constants they capture, which then no longer follow changes outside.
"""

from __future__ import annotations

from typing import Any

import onnx_graphsurgeon as gs

_LINKS = frozenset({"inputs", "outputs"})


def copy_of(graph: gs.Graph) -> gs.Graph:
    """A copy of a graph, its bodies included, with every mark other code has put on graphs, nodes and tensors.

    The values of constants and the messages of the source are shared.
    """
    return _graph(graph, {})


def _graph(graph: gs.Graph, copies: dict[int, gs.Tensor]) -> gs.Graph:
    inputs = [_tensor(tensor, copies) for tensor in graph.inputs]
    nodes = [_node(node, copies) for node in graph.nodes]
    result = gs.Graph(
        nodes=nodes,
        inputs=inputs,
        outputs=[_tensor(tensor, copies) for tensor in graph.outputs],
        name=graph.name,
        doc_string=graph.doc_string,
        opset=graph.opset,
        import_domains=None if graph.import_domains is None else list(graph.import_domains),
        producer_name=graph.producer_name,
        producer_version=graph.producer_version,
        functions=list(graph.functions),
        ir_version=graph.ir_version,
    )
    _marks(graph, result)
    return result


def _node(node: gs.Node, copies: dict[int, gs.Tensor]) -> gs.Node:
    inputs = [_tensor(tensor, copies) for tensor in node.inputs]
    outputs = [_tensor(tensor, copies) for tensor in node.outputs]
    attributes = {name: _attribute(value, copies) for name, value in node.attrs.items()}
    result = gs.Node(node.op, node.name, attributes, inputs, outputs, node.domain)
    _marks(node, result)
    return result


def _attribute(value: Any, copies: dict[int, gs.Tensor]) -> Any:
    if isinstance(value, gs.Graph):
        return _graph(value, copies)
    return list(value) if isinstance(value, list) else value


def _tensor(tensor: gs.Tensor, copies: dict[int, gs.Tensor]) -> gs.Tensor:
    found = copies.get(id(tensor))
    if found is None:
        if isinstance(tensor, gs.Constant):
            found = gs.Constant(tensor.name, tensor._values)  # noqa: SLF001  # .values would read them
        else:
            shape = list(tensor.shape) if isinstance(tensor.shape, list) else tensor.shape
            found = gs.Variable(tensor.name, tensor.dtype, shape, tensor.type)
        _marks(tensor, found)
        copies[id(tensor)] = found
    return found


def _marks(original: object, copy: object) -> None:
    """Copies attributes that other code has put on the object."""
    known = vars(copy)
    for name, value in vars(original).items():
        if name not in known and name not in _LINKS:
            setattr(copy, name, value)
