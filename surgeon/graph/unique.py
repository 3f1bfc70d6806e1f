"""One name, one tensor: branches and bodies beside each other may use the same names, which nothing after loading expects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgeon.graph.order import graphs

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_graphsurgeon as gs


def make_names_unique(graph: gs.Graph) -> int:
    """Renames tensors of bodies whose name another tensor has, ``NAME`` to ``NAME__2`` and so on; returns how many.

    Tensors outside all bodies, and the first body's of several, keep their names.
    """
    owners: dict[str, int] = {}
    renamed = 0
    for each in graphs(graph):
        for tensor in _tensors(each):
            if not tensor.name or owners.setdefault(tensor.name, id(tensor)) == id(tensor):
                continue
            old, number = tensor.name, 2
            while owners.get(f"{old}__{number}", id(tensor)) != id(tensor):
                number += 1
            tensor.name = f"{old}__{number}"
            owners[tensor.name] = id(tensor)
            renamed += 1
            interface = each.__dict__.get("surgeon_interface", {})
            if old in interface and any(tensor is other for other in (*each.inputs, *each.outputs)):
                entry = type(interface[old])()
                entry.CopyFrom(interface[old])
                entry.name = tensor.name
                each.surgeon_interface = {**interface, tensor.name: entry}
    return renamed


def _tensors(graph: gs.Graph) -> Iterator[gs.Tensor]:
    yield from graph.inputs
    for node in graph.nodes:
        yield from node.inputs
        yield from node.outputs
    yield from graph.outputs
