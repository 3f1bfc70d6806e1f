"""Copying a graph with everything the rooms keep on it."""

from __future__ import annotations

import onnx_graphsurgeon as gs


def copy_of(graph: gs.Graph) -> gs.Graph:
    """Copies a graph's nodes and tensors; weight arrays are shared."""
    duplicate = graph.copy()
    originals = graph.tensors()
    for name, tensor in duplicate.tensors().items():
        extra = vars(originals[name]).keys() - vars(tensor).keys() if name in originals else ()
        for key in extra:  # marks that a room put on its tensors, such as the name a constant was split from
            setattr(tensor, key, vars(originals[name])[key])
        shape = vars(tensor).get("shape")
        if isinstance(shape, list):  # graphsurgeon shares the list, and a pass may shrink it in place
            tensor.shape = [*shape]
    for key in vars(graph).keys() - vars(duplicate).keys():
        setattr(duplicate, key, vars(graph)[key])
    return duplicate
