"""Changing the nodes of a message in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    from collections.abc import Iterable


def set_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Give a graph other nodes, of which some may be its own."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]  # which the messages lived in
    graph.node.extend(copies)


def free_name(name: str, taken: set[str]) -> str:
    """A name like this one that is not taken, and is from now on."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name
