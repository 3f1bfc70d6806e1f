"""Which operators let factors through, and how: the rules of scaling, a few lines for each kind of operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.graph.weights import peek
from surgeon.scaling.fields import shape_of
from surgeon.scaling.registry import scaling

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from surgeon.ops import Op
    from surgeon.scaling.fields import Fields

    Ids = NDArray[np.int64]

UNBOUNDED = 3e38  # a bound of a Clip that floats do not reach


@scaling(
    *("Relu", "LeakyRelu", "PRelu", "Abs", "Neg", "Identity", "Dropout"),
    *("MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"),
    *("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"),
    *("Resize", "Upsample", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Tile"),
    *("DepthToSpace", "SpaceToDepth"),
)
def homogeneous(fields: Fields, op: Op) -> None:
    """f(s x) = s f(x) for every s > 0, channel by channel."""
    fields.fix(op.node.inputs[1:], f"{op.name}: is steered by it")
    fields.match(op, op.node.inputs[0], op.node.outputs[0])


@scaling("Slice", "Split")
def parts(fields: Fields, op: Op) -> None:
    """The outputs are parts of the input."""
    fields.fix(op.node.inputs[1:], f"{op.name}: is steered by it")
    for output in op.node.outputs:
        fields.match(op, op.node.inputs[0], output, drops=True)


@scaling("Shape", "Size")
def sizes(fields: Fields, op: Op) -> None:
    """Nothing but the shape is read."""
    del fields, op


@scaling("Clip")
def clip(fields: Fields, op: Op) -> None:
    """Bounds of zero and of infinity do not move; any other would have to, for each channel of its own."""
    low = op.attribute("min") if "min" in op.node.attrs else (op.value(1) if op.has(1) else -np.inf)
    high = op.attribute("max") if "max" in op.node.attrs else (op.value(2) if op.has(2) else np.inf)
    bounds = [None if each is None else float(np.asarray(each).reshape(-1)[0]) for each in (low, high)]
    if all(each is not None and (each == 0 or abs(each) >= UNBOUNDED) for each in bounds):
        homogeneous(fields, op)
        return
    reason = f"{op.name}: its bounds are the same for all channels"
    fields.fix([op.node.inputs[0], op.node.outputs[0]], reason)


@scaling("Pad")
def pad(fields: Fields, op: Op) -> None:
    """Padding with zeros, which have any factor; or with what is there."""
    value = op.value(2) if op.has(2) else op.attribute("value", 0.0)
    constant = op.attribute("mode", "constant") == "constant"
    if constant and (value is None or np.any(value)):
        fields.fix([op.node.inputs[0], op.node.outputs[0]], f"{op.name}: pads with a number other than zero")
        return
    fields.match(op, op.node.inputs[0], op.node.outputs[0], adds=constant)


@scaling("Gather")
def gather(fields: Fields, op: Op) -> None:
    """Rows of a table, or channels of a tensor."""
    table, result = op.node.inputs[0], op.node.outputs[0]
    if not fields.constant(table):
        fields.match(op, table, result, drops=True)
        return
    ids = within(fields.of(result), shape_of(table)) if op.attribute("axis", 0) == 0 else None
    absorb(fields, op, 0, ids, fields.of(result))


@scaling("Concat")
def concat(fields: Fields, op: Op) -> None:
    """Tensors side by side; the channels of constants among them keep their numbers, unless all are zero."""
    result = op.node.outputs[0]
    for tensor in op.node.inputs:
        if not fields.constant(tensor):
            fields.match(op, tensor, result, adds=True)
        elif not _is_zero(tensor):
            fields.keep(result, tensor, f"{op.name}: lays it beside a constant")


@scaling("Add", "Sub", "Sum", "Mean", "Max", "Min", "Where")
def joint(fields: Fields, op: Op) -> None:
    """All operands have one factor; constants are given it."""
    result = fields.of(op.node.outputs[0])
    for index, tensor in enumerate(op.node.inputs):
        if op.node.op == "Where" and index == 0:
            continue
        if not fields.constant(tensor):
            fields.equations.link(fields.of(tensor), result, f"{op.name}: joins it with what is not scaled")
        elif not _is_zero(tensor):
            absorb(fields, op, index, within(result, shape_of(tensor)), result)


@scaling("Expand")
def expand(fields: Fields, op: Op) -> None:
    """Copies side by side have one factor."""
    source, result = op.node.inputs[0], fields.of(op.node.outputs[0])
    if fields.constant(source):
        absorb(fields, op, 0, within(result, shape_of(source)), result)
    else:
        fields.equations.link(fields.of(source), result, f"{op.name}: repeats what has one factor")


@scaling("Mul")
def multiply(fields: Fields, op: Op) -> None:
    """The factor of a product is the product of the factors."""
    _product(fields, op, op.node.inputs, fields.of(op.node.outputs[0]))


@scaling("Div")
def divide(fields: Fields, op: Op) -> None:
    """The numerator is the product of the quotient and the denominator."""
    whole, part = op.node.inputs
    quotient = op.node.outputs[0]
    if fields.constant(whole):
        fields.fix([part, quotient], f"{op.name}: divides a constant")
    elif not fields.constant(part):
        sum_of(fields, op, fields.of(whole), fields.of(quotient), fields.of(part))
    else:
        over, times = (within(fields.of(each), shape_of(part)) for each in (quotient, whole))
        if over is not None and times is not None:
            fields.demand(op, 1, times, over)
        else:
            fields.equations.link(
                fields.of(whole), fields.of(quotient), f"{op.name}: divides it by one number"
            )


def _product(fields: Fields, op: Op, inputs: list[gs.Tensor], result: Ids) -> None:
    constants = [k for k, tensor in enumerate(inputs) if fields.constant(tensor)]
    if not constants:
        sum_of(fields, op, result, *(fields.of(tensor) for tensor in inputs))
        return
    index = constants[0]
    other = inputs[1 - index]
    if len(constants) > 1:
        fields.fix([op.node.outputs[0]], f"{op.name}: is made of constants")
        return
    shape = shape_of(inputs[index])
    times, over = within(result, shape), within(fields.of(other), shape)
    if times is not None and over is not None:
        fields.demand(op, index, times, over)
    else:  # one number for several channels: it stays, and both sides have one factor
        fields.equations.link(fields.of(other), result, f"{op.name}: multiplies it by one number")


def sum_of(fields: Fields, op: Op, whole: Ids, first: Ids, second: Ids) -> None:
    """The factors of ``whole`` are the products of the others', position by position."""
    three = [each.ravel() for each in np.broadcast_arrays(whole, first, second)]
    some = np.any([each != 0 for each in three], axis=0)
    fields.equations.sums.append((three[0][some], three[1][some], three[2][some], op.name))


def within(ids: Ids, shape: tuple[int, ...]) -> Ids | None:
    """Variables of a tensor as those of a constant that broadcasts to it; None where one element has several."""
    missing = ids.ndim - len(shape)
    if missing < 0 or any(size > 1 for size in ids.shape[:missing]):
        return None
    inner = ids.reshape(ids.shape[missing:])
    if any(inner.shape[k] not in (1, size) for k, size in enumerate(shape)):
        return None
    return inner


def absorb(fields: Fields, op: Op, index: int, ids: Ids | None, whole: Ids) -> None:
    """Let a constant have the factors of the output; where it cannot, the output keeps its numbers."""
    if ids is None:
        fields.equations.pin(whole, f"{op.name}: has one number for several channels")
    else:
        fields.demand(op, index, ids)


def _is_zero(tensor: gs.Tensor) -> bool:
    return isinstance(tensor, gs.Constant) and tensor.shape is not None and not peek(tensor).any()
