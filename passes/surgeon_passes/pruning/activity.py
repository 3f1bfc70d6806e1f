"""What calibration data say of activations: sums per position of an axis, computed inside onnxruntime.

The graph gets a few reductions for each activation, so that only vectors leave the session: memory does not grow with
the activations or with the number of samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper

from surgeon.axes import Axis, atoms_of
from surgeon.errors import UnsupportedModelError
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session, with_outputs
from surgeon.groups import derived_from_constants

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.axes import Atom
    from surgeon.engine import Model
    from surgeon.ops.op import Op
    from surgeon.passes import Context

    Floats = NDArray[np.float64]

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
PREFIX = "surgeon/activity"


@dataclass(frozen=True)
class Read:
    """An operator sums input ``index`` over the channels on ``axis``, which mention ``atom``."""

    op: Op
    index: int
    axis: int
    expression: Axis
    atom: Atom

    @property
    def place(self) -> tuple[str, int]:
        """The tensor and axis that are read."""
        return self.op.node.inputs[self.index].name, self.axis


@dataclass
class Sums:
    """Over all samples, per position of one axis of a tensor: squares, numbers that are not zero, numbers in all."""

    squares: Floats
    nonzeros: Floats
    count: float = 0.0


def reads(model: Model, atoms: Sequence[Atom]) -> Iterator[Read]:
    """Where activations of the groups that the main graph has are consumed, in graph order."""
    wanted, graph = set(atoms), model.analysis.graph
    there = {tensor.name for tensor in graph.inputs} | {t.name for node in graph.nodes for t in node.outputs}
    for op in model.analysis.ops:
        summed = {
            a for axes in op.facts.contracted.values() for axis in axes for a in atoms_of(axis)
        } & wanted
        if not summed:
            continue
        for index, tensor in enumerate(op.node.inputs):
            if tensor.name not in there or derived_from_constants(tensor):
                continue
            if model.analysis.shapes.dtypes.get(tensor.name) not in FLOATS:
                continue
            for k, axis in enumerate(model.analysis.axes.get(tensor.name) or ()):
                for atom in dict.fromkeys(atoms_of(axis)):
                    if atom in summed:
                        yield Read(op, index, k, axis, atom)


def measure(model: Model, places: Sequence[tuple[str, int]], context: Context) -> dict[tuple[str, int], Sums]:
    """Run the calibration data and sum up the activations at ``places`` (tensor, axis).

    Raises:
        UnsupportedModelError: The model does not run on the data.
        DataError: The data do not fit the model.
    """
    places = list(dict.fromkeys(places))
    if not places:
        return {}
    proto = to_model(model.analysis.graph)
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 1)
    names: list[str] = []
    for number, (tensor, axis) in enumerate(places):
        rank = len(model.analysis.axes[tensor] or ())
        names += _tap(proto.graph, tensor, axis, rank, opset, f"{PREFIX}/{number}")
    runner = session(with_outputs(proto, names), threads=context.threads)
    offset = len(proto.graph.output)
    data = context.calibration()
    found: dict[tuple[str, int], Sums] = {}
    with context.progress("prune: activations", data.count) as advance:
        for feeds, _ in data:
            outputs = run(runner, feeds)[offset:]
            for number, place in enumerate(places):
                squares, nonzeros, elements = outputs[3 * number : 3 * number + 3]
                _add(found, place, squares, nonzeros, int(elements))
            advance(data.batch)
    return found


def _add(
    found: dict[tuple[str, int], Sums],
    place: tuple[str, int],
    squares: NDArray[np.float32],
    nonzeros: NDArray[np.float32],
    elements: int,
) -> None:
    if not np.isfinite(squares).all():
        raise UnsupportedModelError("is not finite on the calibration data", where=place[0])
    if place not in found:
        found[place] = Sums(np.zeros(len(squares)), np.zeros(len(squares)))
    sums = found[place]
    sums.squares += squares
    sums.nonzeros += nonzeros
    sums.count += elements / max(len(squares), 1)


def _tap(graph: onnx.GraphProto, tensor: str, axis: int, rank: int, opset: int, prefix: str) -> list[str]:
    """Adds nodes for the sum of squares, the number of nonzeros and the number of elements; returns their outputs."""
    numbers, flags, ones = f"{prefix}/numbers", f"{prefix}/flags", f"{prefix}/ones"
    squares, nonzeros, elements = f"{prefix}/squares", f"{prefix}/nonzeros", f"{prefix}/elements"
    graph.node.append(helper.make_node("Cast", [tensor], [numbers], to=TensorProto.FLOAT))
    graph.node.append(helper.make_node("Cast", [numbers], [flags], to=TensorProto.BOOL))
    graph.node.append(helper.make_node("Cast", [flags], [ones], to=TensorProto.FLOAT))
    graph.node.append(helper.make_node("Size", [tensor], [elements]))
    graph.node.append(helper.make_node("Mul", [numbers, numbers], [f"{prefix}/products"]))
    others = [k for k in range(rank) if k != axis]
    for source, target in ((f"{prefix}/products", squares), (ones, nonzeros)):
        if not others:  # without axes a reduction would take them all
            graph.node.append(helper.make_node("Identity", [source], [target]))
        elif opset < 13:
            graph.node.append(helper.make_node("ReduceSum", [source], [target], axes=others, keepdims=0))
        else:
            axes = f"{target}/axes"
            graph.initializer.append(helper.make_tensor(axes, TensorProto.INT64, [len(others)], others))
            graph.node.append(helper.make_node("ReduceSum", [source, axes], [target], keepdims=0))
    return [squares, nonzeros, elements]


def norms(found: Mapping[tuple[str, int], Sums], place: tuple[str, int]) -> Floats:
    """The Euclidean norm of the activations at each position."""
    return np.sqrt(found[place].squares)
