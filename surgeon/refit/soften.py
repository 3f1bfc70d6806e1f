"""Constants as numbers that can be learned: steps of a grid, rounded on the way to their operator, or units of their size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.graph.weights import peek
from surgeon.stats.grid import Grid, grid_of, integers_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

CLOSEST = (
    0.49  # steps from an integer within which a number is rounded to it whatever happens to its last bit
)


def rounded_on_the_way(
    graph: gs.Graph, constant: gs.Constant, tensor: gs.Tensor, original: Array
) -> tuple[gs.Constant, Grid]:
    """Put a number of steps, clipped to what is rounded to the grid and rounded, in the place of a constant of integers.

    Args:
        graph: The graph, changed in place.
        constant: The integers.
        tensor: The weight that is made of them.
        original: What it was before it was rounded; of another shape where that is not known.

    Returns:
        The numbers of steps, which are rounded to the integers that were there, and their grid.
    """
    grid, integers = grid_of(tensor), integers_of(tensor)
    steps = np.zeros(constant.shape, np.float32).ravel()
    wanted = integers.astype(np.float64)
    if original.shape == integers.shape:
        scale = np.where(grid.scale == 0, 1.0, grid.scale)
        wanted = wanted + np.clip(original / scale + grid.zero - integers, -CLOSEST, CLOSEST)
    steps[grid.places] = np.clip(wanted, grid.least, grid.most)  # beyond there is no gradient
    name = constant.name
    kind = peek(constant).dtype
    learned = gs.Constant(f"{name}/surgeon/steps", steps.reshape(constant.shape))
    limits = [
        gs.Constant(f"{name}/surgeon/{which}", np.asarray(value, np.float32))
        for which, value in (("least", grid.least - CLOSEST), ("most", grid.most + CLOSEST), ("one", 1.0))
    ]
    zero = gs.Constant(f"{name}/surgeon/zero", np.zeros((), kind))
    inside = gs.Variable(f"{name}/surgeon/inside", np.float32, list(constant.shape))
    rounded = gs.Variable(f"{name}/surgeon/rounded", kind, list(constant.shape))
    users = list(constant.outputs)
    makers = [
        gs.Node("Clip", f"{name}/surgeon/clip", {}, [learned, *limits[:2]], [inside]),
        gs.Node("QuantizeLinear", f"{name}/surgeon/round", {}, [inside, limits[2], zero], [rounded]),
    ]
    for user in users:
        user.inputs[0] = rounded
    graph.nodes[0:0] = makers
    return learned, grid


def in_units(graph: gs.Graph, constant: gs.Constant, start: Array, unit: Array) -> gs.Constant:
    """Put a product of numbers to learn and units in the place of a constant, or of what a DequantizeLinear makes of it.

    Args:
        graph: The graph, changed in place.
        constant: Floats, or integers that one DequantizeLinear reads.
        start: The numbers to learn, in the shape of the constant.
        unit: What they are multiplied by, broadcastable to it.

    Returns:
        The numbers to learn.
    """
    name = constant.name
    learned = gs.Constant(f"{name}/surgeon/steps", start.astype(np.float32))
    unit_of = gs.Constant(f"{name}/surgeon/unit", np.asarray(unit, np.float32))
    maker = gs.Node("Mul", f"{name}/surgeon/in_units", {}, [learned, unit_of], [])
    if np.dtype(constant.dtype).kind == "f":
        made = gs.Variable(f"{name}/surgeon/made", np.float32, list(constant.shape))
        maker.outputs.append(made)
        for user in list(constant.outputs):
            for k, tensor in enumerate(user.inputs):
                if tensor is constant:
                    user.inputs[k] = made
    else:
        reader = constant.outputs[0]
        made = reader.outputs[0]
        reader.outputs.clear()
        maker.outputs.append(made)
        graph.nodes.remove(reader)
    graph.nodes.insert(0, maker)
    return learned
