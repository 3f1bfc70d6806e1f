"""Weights of 4 bits in a model that computes with 8: half of their bytes in the file, the same kernels when it runs.

A weight whose integers are few keeps its type here, so that every kernel and every later pass finds what it knows;
`surgeon_passes.quantizing.halved` stores two of them in a byte once the run is over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from numpy.typing import NDArray

    Array = NDArray[Any]

REACH = 7  # of integers of 4 bits around zero
LEAST_SAVED = 128  # bytes: what a weight takes to be stored in halves is half of that
_SHARES = np.linspace(0.4, 1.0, 31)  # of the largest weight of a channel, that a range may end at


@dataclass(frozen=True)
class Place:
    """Where the weight of an operator is, and its bias; names of initializers that nothing else reads.

    Attributes:
        weight: The integers.
        scale: Theirs.
        axis: The axis of the scales, where there are several.
        bias: The integers of the bias, whose scale is that of the weight times that of the input; None without one.
        bias_scale: That scale.
        saved: How many bytes 4 bits save.
    """

    weight: str
    scale: str
    axis: int
    bias: str | None
    bias_scale: str | None
    saved: int

    @property
    def names(self) -> tuple[str, ...]:
        """All of these initializers."""
        return tuple(name for name in (self.weight, self.scale, self.bias, self.bias_scale) if name)


def places(model: onnx.ModelProto, names: Collection[str]) -> dict[str, Place]:
    """The weights that can have fewer bits.

    Args:
        model: A model in static form, before equal scales are merged.
        names: Operators to look at.

    Returns:
        For each that has one its weight: 8-bit integers around zero that only it reads, through a DequantizeLinear.
    """
    reading = _Reading(model)
    found = {node.name: reading.place(node) for node in model.graph.node if node.name in names}
    return {name: place for name, place in found.items() if place is not None}


def narrow(model: onnx.ModelProto, wanted: Iterable[Place]) -> None:
    """Round weights to 4 bits, in place: scales with the least squared error, and biases in the new unit."""
    entries = {entry.name: entry for entry in model.graph.initializer}
    for place in wanted:
        integers, old = (numpy_helper.to_array(entries[name]) for name in (place.weight, place.scale))
        few, scale = rounded(integers, old, place.axis)
        _put(entries[place.weight], few)
        _put(entries[place.scale], scale)
        if place.bias is not None and place.bias_scale is not None:
            unit = numpy_helper.to_array(entries[place.bias_scale])
            ratio = (scale / old).astype(np.float64)
            bias = numpy_helper.to_array(entries[place.bias]) / ratio
            limits = np.iinfo(np.int32)
            _put(entries[place.bias], np.clip(np.rint(bias), limits.min, limits.max).astype(np.int32))
            _put(entries[place.bias_scale], (unit * ratio).astype(unit.dtype))


def mixed(whole: onnx.ModelProto, few: onnx.ModelProto, wanted: Iterable[Place]) -> onnx.ModelProto:
    """A copy of a model in which some weights, with their scales and biases, are those of another of the same form."""
    taken = {name for place in wanted for name in place.names}
    result = onnx.ModelProto()
    result.CopyFrom(whole)
    others = {entry.name: entry for entry in few.graph.initializer}
    for entry in result.graph.initializer:
        if entry.name in taken:
            entry.CopyFrom(others[entry.name])
    return result


def rounded(integers: Array, scale: Array, axis: int) -> tuple[Array, Array]:
    """Integers of 4 bits, and their scales, for what integers of 8 bits and theirs stand for.

    Args:
        integers: 8 bits, around zero.
        scale: One, or one for each position of ``axis``.
        axis: That axis.

    Returns:
        Integers from -7 to 7 in the type and shape they had, and the scales: of some, from the largest number of a
        channel to 0.4 of it at 7, those with the least squared error.
    """
    several = scale.size > 1
    rows = (
        np.moveaxis(integers, axis, 0).reshape(integers.shape[axis], -1)
        if several
        else integers.reshape(1, -1)
    )
    values = rows.astype(np.float64)
    largest = np.maximum(np.abs(values).max(axis=1, initial=0.0), 1.0)
    best, error = largest / REACH, np.full(len(values), np.inf)
    for share in _SHARES[::-1]:
        step = (largest * share / REACH)[:, None]
        missed = np.square(_steps(values, step) * step - values).sum(axis=1)
        better = missed < error
        best, error = np.where(better, step[:, 0], best), np.where(better, missed, error)
    steps = _steps(values, best[:, None]).astype(integers.dtype)
    if several:
        moved = np.moveaxis(integers, axis, 0).shape
        steps = np.moveaxis(steps.reshape(moved), 0, axis)
    scales = (scale.astype(np.float64).reshape(-1) * best).astype(scale.dtype).reshape(scale.shape)
    return np.ascontiguousarray(steps.reshape(integers.shape)), scales


def _steps(values: Array, step: Array) -> Array:
    return np.asarray(np.clip(np.rint(values / step), -REACH, REACH))


def _put(entry: onnx.TensorProto, values: Array) -> None:
    entry.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), entry.name))


class _Reading:
    """Who reads what in a model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.entries = {entry.name: entry for entry in model.graph.initializer}
        self.makers = {output: node for node in model.graph.node for output in node.output if output}
        self.reads: dict[str, int] = {}
        inner = [*model.graph.node]
        while inner:
            node = inner.pop()
            for name in node.input:
                self.reads[name] = self.reads.get(name, 0) + 1
            for attribute in node.attribute:
                for body in [attribute.g, *attribute.graphs]:
                    inner.extend(body.node)
        for entry in model.graph.output:
            self.reads[entry.name] = self.reads.get(entry.name, 0) + 1

    def place(self, node: onnx.NodeProto) -> Place | None:
        """The weight of an operator, with its bias; None where there is none that can have fewer bits."""
        read = [each for name in node.input if (each := self._stored(name)) is not None]
        weights = [
            each for each in read if each[0].data_type == onnx.TensorProto.INT8 and len(each[0].dims) > 1
        ]
        biases = [each for each in read if each[0].data_type == onnx.TensorProto.INT32]
        if len(weights) != 1 or len(biases) > 1:
            return None
        weight, scale, dequantize = weights[0]
        if len(dequantize.input) > 2 and numpy_helper.to_array(self.entries[dequantize.input[2]]).any():
            return None
        given: Mapping[str, int] = {each.name: each.i for each in dequantize.attribute}
        axis = given.get("axis", 1) % len(weight.dims)
        one = int(np.prod(scale.dims)) == 1
        if not one and list(scale.dims) != [weight.dims[axis]]:
            return None  # blocks
        bias, bias_scale = (None, None) if not biases else (biases[0][0], biases[0][1])
        if bias_scale is not None and list(bias_scale.dims) != list(scale.dims):
            return None
        saved = int(np.prod(weight.dims)) // 2
        if saved < LEAST_SAVED:
            return None
        return Place(
            weight.name,
            scale.name,
            axis,
            None if bias is None else bias.name,
            None if bias_scale is None else bias_scale.name,
            saved,
        )

    def _stored(self, name: str) -> tuple[onnx.TensorProto, onnx.TensorProto, onnx.NodeProto] | None:
        """The integers and the scale that a tensor is made of, if nothing else reads any of them."""
        node = self.makers.get(name)
        if node is None or node.op_type != "DequantizeLinear" or self.reads[name] > 1:
            return None
        constants = [self.entries.get(each) for each in node.input]
        integers, scale = constants[0], constants[1]
        if integers is None or scale is None or None in constants:
            return None
        if self.reads[integers.name] > 1 or self.reads[scale.name] > 1:
            return None
        return integers, scale, node
