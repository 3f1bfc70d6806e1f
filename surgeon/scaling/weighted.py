"""Rules of scaling for operators with weights: weights that write channels and weights that read them absorb factors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from surgeon.scaling.fields import shape_of
from surgeon.scaling.registry import scaling
from surgeon.scaling.rules import absorb, sum_of, within

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from surgeon.ops import Op
    from surgeon.scaling.fields import Fields

    Ids = NDArray[np.int64]

MICROSOFT = "com.microsoft"


@scaling("Conv")
def conv(fields: Fields, op: Op) -> None:
    """The weight is ``[G x O, I, kernel]``."""
    outputs, each = op.dims(1)[:2]
    columns = np.arange(outputs)[:, None]
    rows = columns // (outputs // op.attribute("group", 1)) * each + np.arange(each)
    _linear(fields, op, rows, columns, axes=(1, 1))


@scaling("ConvTranspose")
def conv_transpose(fields: Fields, op: Op) -> None:
    """The weight is ``[G x I, O, kernel]``."""
    inputs, each = op.dims(1)[:2]
    rows = np.arange(inputs)[:, None]
    columns = rows // (inputs // op.attribute("group", 1)) * each + np.arange(each)
    _linear(fields, op, rows, columns, axes=(1, 1))


@scaling("Gemm")
def gemm(fields: Fields, op: Op) -> None:
    """``alpha A' B' + beta C``."""
    shape = op.dims(1)
    rows, columns = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
    if op.attribute("transB", 0):
        rows, columns = columns, rows
    _linear(fields, op, rows, columns, axes=(0 if op.attribute("transA", 0) else 1, 1))


@scaling("MatMul")
def matmul(fields: Fields, op: Op) -> None:
    """With a matrix on the right; or of two tensors, whose inner axis is summed over."""
    left, right = op.node.inputs
    result = op.node.outputs[0]
    if fields.constant(left) or (fields.constant(right) and len(op.dims(1)) != 2):
        fields.fix(
            [left, right, result], f"{op.name}: multiplies by something else than a matrix on the right"
        )
    elif fields.constant(right):
        inputs, outputs = op.dims(1)
        rows, columns = np.arange(inputs)[:, None], np.arange(outputs)[None, :]
        _linear(fields, op, rows, columns, axes=(-1, -1))
    else:
        _of_two(fields, op)


@scaling("BatchNormalization")
def batch_normalization(fields: Fields, op: Op) -> None:
    """Scale and mean take in the factor of the input, scale and bias that of the output."""
    before, after = (_along(fields, op, tensor, 1) for tensor in (op.node.inputs[0], op.node.outputs[0]))
    fields.demand(op, 1, after, before)
    fields.demand(op, 2, after)
    fields.demand(op, 3, before)


@scaling("LayerNormalization", "InstanceNormalization", "GroupNormalization")
def norm(fields: Fields, op: Op) -> None:
    """The input is divided by a statistic of several channels; scale and bias take in the factor of the output."""
    _affine(fields, op, (0,), (1, 2))


@scaling("RMSNormalization", "SimplifiedLayerNormalization")
def rms_norm(fields: Fields, op: Op) -> None:
    """As other norms, without a bias."""
    _affine(fields, op, (0,), (1,))


@scaling("SkipLayerNormalization", domain=MICROSOFT)
def skip_norm(fields: Fields, op: Op) -> None:
    """A norm of a sum."""
    _affine(fields, op, (0, 1, 4), (2, 3))


@scaling("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_rms_norm(fields: Fields, op: Op) -> None:
    """A norm of a sum."""
    _affine(fields, op, (0, 1, 3), (2,))


def _affine(fields: Fields, op: Op, normalised: tuple[int, ...], affine: tuple[int, ...]) -> None:
    """Of ``op``'s inputs, some go into the statistic and some, constants, are its scale and bias."""
    inputs, (result, *others) = op.node.inputs, op.node.outputs
    reason = f"{op.name}: divides by a statistic of several channels"
    fields.fix([inputs[k] for k in normalised if op.has(k)], reason)
    fields.fix(others, reason)
    ids = fields.of(result)
    for index in affine:
        if op.has(index) and fields.constant(inputs[index]):
            shape = shape_of(inputs[index])
            behind = op.node.op in (
                "InstanceNormalization",
                "GroupNormalization",
            )  # along axis 1, not the last
            full = (*shape, *[1] * (ids.ndim - 2)) if behind else shape
            found = within(ids, full)
            absorb(
                fields,
                op,
                index,
                found if found is None or not behind else found.reshape(found.shape[0]),
                ids,
            )
        elif op.has(index):
            fields.fix([result], f"{op.name}: its scale or bias is computed")


def _linear(fields: Fields, op: Op, rows: Ids, columns: Ids, axes: tuple[int, int]) -> None:
    """Weight and bias of an operator whose input and output have their channels along ``axes``."""
    data, weight, *_ = op.node.inputs
    if fields.constant(data) or not fields.constant(weight):
        fields.fix([data, weight, op.node.outputs[0]], f"{op.name}: its weights are not constant")
        return
    before = _along(fields, op, data, axes[0])
    after = _along(fields, op, op.node.outputs[0], axes[1])
    rank = len(op.dims(1))
    over, times = before[_picked(rows, before)], after[_picked(columns, after)]
    fields.demand(
        op, 1, *(each.reshape(*each.shape, *[1] * (rank - 2)) for each in (times, over, rows, columns))
    )
    if op.has(2):
        _bias(fields, op, after)


def _bias(fields: Fields, op: Op, after: Ids) -> None:
    bias, result = op.node.inputs[2], op.node.outputs[0]
    if not fields.constant(bias):
        reason = f"{op.name}: its bias is computed"
        fields.fix([bias, result], reason)
    elif op.node.op == "Gemm":
        absorb(fields, op, 2, within(after[None, :], shape_of(bias)), fields.of(result))
    else:
        fields.demand(op, 2, after)


def _picked(places: Ids, ids: Ids) -> Ids:
    """Places along an axis of variables, all of them the same one where it has none."""
    return places if ids.size > 1 else np.zeros_like(places)


def _along(fields: Fields, op: Op, tensor: gs.Tensor, axis: int) -> Ids:
    """The variables of a tensor along one axis; along all others it has to be the same."""
    ids = fields.of(tensor)
    if not ids.ndim or ids.size != ids.shape[axis]:
        fields.equations.pin(ids, f"{op.name}: sums over another axis than that of its channels")
        return np.zeros(1, np.int64)
    return ids.reshape(-1)


def _of_two(fields: Fields, op: Op) -> None:
    """A product of two tensors: what it is summed over keeps its numbers, the rest multiplies."""
    left, right = (fields.of(tensor) for tensor in op.node.inputs)
    if min(left.ndim, right.ndim) < 2:
        fields.fix([*op.node.inputs, op.node.outputs[0]], f"{op.name}: multiplies by a vector")
        return
    kept = []
    for ids, axis in ((left, -1), (right, -2)):
        if ids.shape[axis] > 1:
            fields.equations.pin(ids, f"{op.name}: sums over its channels in a product of two activations")
            ids = np.zeros([1] * ids.ndim, np.int64)  # noqa: PLW2901 - nothing of it is free
        kept.append(ids)
    sum_of(fields, op, fields.of(op.node.outputs[0]), *kept)
