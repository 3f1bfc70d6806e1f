"""Products of integers, whose scales are multiplied on afterwards, by operators of their own.

A product is written when its result is read as a number. Until then the scales that arrive are collected: those that
were measured at run time cancel, the constant ones become part of the weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.graph.weights import peek
from surgeon_passes.dequantizing.numbers import is_small
from surgeon_passes.dequantizing.registry import dequantizes
from surgeon_passes.dequantizing.writer import Array, Later

if TYPE_CHECKING:
    from surgeon_passes.dequantizing.writer import Given, Steps, Writer

_FLOATS = {1, 10, 11, 16}  # onnx data types


@dataclass(frozen=True)
class Product:
    """A product that still lacks scales.

    Attributes:
        given: The node it comes from.
        owed: Names of the scales measured at run time that have to be multiplied on before it is a number.
        factor: The constant scales that were multiplied on.
        write: Writes the product, times a factor.
    """

    given: Given
    owed: tuple[str, ...]
    factor: Array
    write: Callable[[Writer, Array], gs.Tensor]


@dataclass(frozen=True)
class Scale:
    """A product of scales: names of measured ones, and a constant."""

    names: tuple[str, ...]
    factor: Array


@dataclass(frozen=True)
class _Side:
    """A factor of a product: numbers or constant integers, and the scale they came with."""

    numbers: gs.Tensor
    owed: tuple[str, ...] = ()
    divisor: Array | None = None


@dequantizes("MatMulInteger")
@dequantizes("MatMulInteger16", domain="com.microsoft")
def matmul_integer(writer: Writer, given: Given) -> bool:
    """A MatMul; scales of columns go into a constant right factor."""
    left = _side(writer, given[0], given.optional(2), -2)
    right = _side(writer, given[1], given.optional(3), -1)

    def write(where: Writer, factor: Array) -> gs.Tensor:
        scaled = _scaled(where, right.numbers, factor, lambda values: values)
        if scaled is not None:
            return where.add("MatMul", left.numbers, scaled)
        y = where.add("MatMul", left.numbers, right.numbers)
        return where.add("Mul", y, where.constant(factor))

    _announce(writer, given, left, right, write)
    return True


@dequantizes("ConvInteger")
def conv_integer(writer: Writer, given: Given) -> bool:
    """A Conv; scales of channels go into its constant weights."""
    left = _side(writer, given[0], given.optional(2), 1)
    right = _side(writer, given[1], given.optional(3), 0)
    attributes = given.attributes

    def write(where: Writer, factor: Array) -> gs.Tensor:
        def along_outputs(values: Array) -> Array:
            return np.swapaxes(values, 0, 1)

        scaled = _scaled(where, right.numbers, factor, along_outputs)
        if scaled is not None:
            return where.add("Conv", left.numbers, scaled, **attributes)
        y = where.add("Conv", left.numbers, right.numbers, **attributes)
        return where.add("Mul", y, where.constant(factor))

    _announce(writer, given, left, right, write)
    return True


def _scaled(
    writer: Writer, weight: gs.Tensor, factor: Array, view: Callable[[Array], Array]
) -> gs.Tensor | None:
    """A constant weight with a factor of each output, or None where it has another shape."""
    if not isinstance(weight, gs.Constant):
        return weight if (factor == 1).all() else None
    values = peek(weight)
    try:
        result = view(view(values) * (factor if factor.size > 1 else factor.reshape(())))
    except ValueError:  # they do not broadcast
        return None
    return writer.constant(result.astype(np.float32), weight.name) if result.shape == values.shape else None


def _side(writer: Writer, tensor: gs.Tensor, zero: gs.Tensor | None, axis: int) -> _Side:
    one = writer.once("one", lambda: writer.constant(1.0))
    steps = origin_of(writer, tensor)
    if steps is None:
        return _Side(writer.number(tensor, one, zero, axis))
    numbers = writer.number(tensor, steps.scale, steps.zero, steps.axis)
    if isinstance(steps.scale, gs.Constant):
        return _Side(numbers, divisor=peek(steps.scale).astype(np.float32))
    return _Side(numbers, owed=(steps.scale.name,))


def origin_of(writer: Writer, tensor: gs.Tensor) -> Steps | None:
    """What the integers were quantized from, wherever they were moved since."""
    while (moved := writer.find("moved", tensor.name)) is not None:
        tensor = moved.inputs[0]
    found: Steps | None = writer.find("steps", tensor.name)
    return found


def _announce(
    writer: Writer, given: Given, left: _Side, right: _Side, write: Callable[[Writer, Array], gs.Tensor]
) -> None:
    factor: Array = np.ones((), np.float32)
    for side in (left, right):
        if side.divisor is not None:
            if side.divisor.size > 1:
                raise given.unsupported("a factor has scales of its own for each channel")
            factor = factor / side.divisor.reshape(())
    _publish(writer, given.outputs[0], Product(given, left.owed + right.owed, factor, write))


def _publish(writer: Writer, output: gs.Tensor, product: Product) -> None:
    def finish(where: Writer) -> gs.Tensor:
        if product.owed:
            raise product.given.unsupported("its result is read before all of its scales are multiplied on")
        return product.write(where, product.factor)

    writer.products[output.name] = product
    writer.later[output.name] = Later(finish)


@dequantizes("Cast")
def cast(writer: Writer, given: Given) -> bool:
    """Products stay products, and constant integers become constant floats."""
    x, output = given[0], given.outputs[0]
    if given.attributes.get("to") not in _FLOATS:
        return False
    product: Product | None = writer.find("products", x.name)
    if product is not None:
        _publish(writer, output, product)
        return True
    if isinstance(x, gs.Constant) and is_small(x.dtype):
        writer.same(output, _derived(writer, peek(x).astype(np.float32), x.name))
        return True
    if writer.find("moved", x.name) is None and writer.find("steps", x.name) is None:
        return False
    _publish(writer, output, Product(given, (), np.ones((), np.float32), _counting(x)))
    return True


def _counting(tensor: gs.Tensor) -> Callable[[Writer, Array], gs.Tensor]:
    """Writes integers as floats that count steps, times a factor."""

    def write(where: Writer, factor: Array) -> gs.Tensor:
        scale = where.constant(factor.reshape(()) if factor.size == 1 else np.float32(1))
        y = where.number(tensor, scale, None)
        return y if factor.size == 1 else where.add("Mul", y, where.constant(factor))

    return write


def _derived(writer: Writer, values: Array, name: str) -> gs.Constant:
    constant = writer.constant(values, f"{name}_float")
    writer.derived[constant.name] = True
    return constant


@dequantizes("Mul")
def multiply(writer: Writer, given: Given) -> bool:
    """Scales are multiplied with each other, and on products of integers."""
    pair = (given[0], given[1])
    for first, second in (pair, pair[::-1]):
        output = given.outputs[0]
        scale = _scale(writer, second)
        product: Product | None = writer.find("products", first.name)
        table = None if product is None else _looked_up(writer, product, second)
        if table is not None:
            writer.same(output, table)
            return True
        if product is not None and scale is not None and Counter(scale.names) <= Counter(product.owed):
            owed = tuple((Counter(product.owed) - Counter(scale.names)).elements())
            _publish(writer, output, replace(product, owed=owed, factor=product.factor * scale.factor))
            return True
        other = _scale(writer, first)
        if scale is not None and other is not None and scale.names + other.names:
            writer.scales[output.name] = Scale(scale.names + other.names, scale.factor * other.factor)
            writer.later[output.name] = writer.find("later", (scale.names + other.names)[0])
            return True
    return _folded(writer, given, np.multiply)


@dequantizes("Sub")
def subtract(writer: Writer, given: Given) -> bool:
    """A zero point of constant integers."""
    return _folded(writer, given, np.subtract)


def _folded(writer: Writer, given: Given, function: Callable[[Any, Any], Any]) -> bool:
    """What is computed of constant integers is constant."""
    first, second = given[0], given[1]
    if not isinstance(first, gs.Constant) or not isinstance(second, gs.Constant):
        return False
    if not (first.name in writer.derived or second.name in writer.derived):
        return False
    values = function(peek(first), peek(second))
    writer.same(given.outputs[0], _derived(writer, values, first.name.removesuffix("_float")))
    return True


def _scale(writer: Writer, tensor: gs.Tensor) -> Scale | None:
    """What a tensor is as a scale: measured ones, constants, and products of them."""
    known: Scale | None = writer.find("scales", tensor.name)
    if known is not None:
        return known
    if isinstance(tensor, gs.Constant):
        return Scale((), peek(tensor).astype(np.float32))
    measured = tensor.inputs and tensor.inputs[0].op == "DynamicQuantizeLinear"
    return Scale((tensor.name,), np.ones((), np.float32)) if measured else None


def _looked_up(writer: Writer, product: Product, scales: gs.Tensor) -> gs.Tensor | None:
    """Rows of integers times the scales of the same rows are rows of a table of numbers."""
    rows, steps = _rows(writer, product.given[0]), scales.inputs[0] if scales.inputs else None
    if rows is None or steps is None or steps.op != "Gather" or not isinstance(steps.inputs[0], gs.Constant):
        return None
    axis = rows.attributes.get("axis", 0)
    same = rows.inputs[1].name == steps.inputs[1].name and axis == steps.attrs.get("axis", 0)
    if not same or rows[0].shape[0] != steps.inputs[0].shape[0]:
        return None
    values = peek(rows[0]).astype(np.float32) * (peek(steps.inputs[0]) * product.factor)
    if values.shape != tuple(rows[0].shape):
        return None
    return writer.add("Gather", writer.constant(values, f"{rows[0].name}_float"), rows[1], axis=axis)


def _rows(writer: Writer, tensor: gs.Tensor) -> Given | None:
    """The look-up in a constant table that a tensor is the result of."""
    found: Given | None = writer.find("moved", tensor.name)
    if found is None or found.operator != "Gather" or not isinstance(found[0], gs.Constant):
        return None
    return found
