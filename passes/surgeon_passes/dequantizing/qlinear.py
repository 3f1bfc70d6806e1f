"""Operators that read and make integers, each with scale and zero point: the float operator in between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from surgeon_passes.dequantizing.registry import Dequantize, dequantizes

if TYPE_CHECKING:
    from surgeon_passes.dequantizing.writer import Given, Writer

MICROSOFT = "com.microsoft"


def _numbers(writer: Writer, given: Given, index: int, axis: int = 1) -> gs.Tensor:
    """The numbers of input ``index``, behind which come its scale and zero point."""
    return writer.number(given[index], given[index + 1], given.optional(index + 2), axis)


def _finish(writer: Writer, given: Given, y: gs.Tensor, index: int) -> bool:
    """The output's scale is input ``index``, its zero point the next."""
    writer.state(given.outputs[0], y, given[index], given.optional(index + 1))
    return True


def _bias(
    writer: Writer, given: Given, index: int, left: int, right: int, alpha: float = 1.0
) -> gs.Tensor | None:
    """A bias counts in products of both factors' scales."""
    bias = given.optional(index)
    if bias is None:
        return None
    step = given.array(left).astype(np.float32) * given.array(right).astype(np.float32) * np.float32(alpha)
    return writer.constant(given.array(index).astype(np.float32) * step.reshape(-1), f"{bias.name}_float")


def _channels_first(writer: Writer, x: gs.Tensor, rank: int, *, last: bool) -> gs.Tensor:
    return writer.add("Transpose", x, perm=[0, rank - 1, *range(1, rank - 1)]) if last else x


def _channels_last(writer: Writer, y: gs.Tensor, rank: int, *, last: bool) -> gs.Tensor:
    return writer.add("Transpose", y, perm=[0, *range(2, rank), 1]) if last else y


@dequantizes("QLinearConv")
@dequantizes("QLinearConv", domain=MICROSOFT)
def qlinear_conv(writer: Writer, given: Given) -> bool:
    """A Conv."""
    last = bool(given.attributes.pop("channels_last", 0))
    w = _numbers(writer, given, 3, axis=0)
    rank = len(given.array(3).shape)
    x = _channels_first(writer, _numbers(writer, given, 0), rank, last=last)
    y = writer.add("Conv", x, w, _bias(writer, given, 8, 1, 4), **given.attributes)
    return _finish(writer, given, _channels_last(writer, y, rank, last=last), 6)


@dequantizes("QLinearMatMul")
def qlinear_matmul(writer: Writer, given: Given) -> bool:
    """A MatMul."""
    left, right = _numbers(writer, given, 0, axis=-2), _numbers(writer, given, 3, axis=-1)
    return _finish(writer, given, writer.add("MatMul", left, right), 6)


@dequantizes("QGemm", domain=MICROSOFT)
def qgemm(writer: Writer, given: Given) -> bool:
    """A Gemm, whose result may be a float already."""
    right = _numbers(writer, given, 3, axis=0 if given.attributes.get("transB", 0) else 1)
    c = _bias(writer, given, 6, 1, 4, given.attributes.get("alpha", 1.0))
    y = writer.add("Gemm", _numbers(writer, given, 0), right, c, **given.attributes)
    if given.optional(7) is None:
        writer.same(given.outputs[0], y)
        return True
    return _finish(writer, given, y, 7)


def _elementwise(operator: str, *inputs: int, output: int) -> Dequantize:
    """An operator of the inputs at ``inputs``, each with scale and zero point."""

    def write(writer: Writer, given: Given) -> bool:
        y = writer.add(operator, *(_numbers(writer, given, k) for k in inputs), **given.attributes)
        return _finish(writer, given, y, output)

    return write


def _pool(operator: str) -> Dequantize:
    """A pool, whose channels may be last."""

    def write(writer: Writer, given: Given) -> bool:
        last, x = bool(given.attributes.pop("channels_last", 0)), _numbers(writer, given, 0)
        rank = writer.rank(given[0])
        if last and rank is None:
            raise given.unsupported("the rank of its input is not known")
        y = writer.add(operator, _channels_first(writer, x, rank or 0, last=last), **given.attributes)
        return _finish(writer, given, _channels_last(writer, y, rank or 0, last=last), 3)

    return write


dequantizes("QLinearAdd", domain=MICROSOFT)(_elementwise("Add", 0, 3, output=6))
dequantizes("QLinearMul", domain=MICROSOFT)(_elementwise("Mul", 0, 3, output=6))
dequantizes("QLinearLeakyRelu", domain=MICROSOFT)(_elementwise("LeakyRelu", 0, output=3))
dequantizes("QLinearSigmoid", domain=MICROSOFT)(_elementwise("Sigmoid", 0, output=3))
dequantizes("QLinearAveragePool", domain=MICROSOFT)(_pool("AveragePool"))
dequantizes("QLinearGlobalAveragePool", domain=MICROSOFT)(_pool("GlobalAveragePool"))


@dequantizes("QLinearReduceMean", domain=MICROSOFT)
def qlinear_reduce_mean(writer: Writer, given: Given) -> bool:
    """A ReduceMean; its axes are an attribute before opset 18."""
    axes = given.attributes.pop("axes", None)
    x = _numbers(writer, given, 0)
    if axes is not None and writer.opset >= 18:
        y = writer.add("ReduceMean", x, writer.constant(np.asarray(axes, np.int64)), **given.attributes)
    else:
        y = writer.add("ReduceMean", x, **given.attributes, **({} if axes is None else {"axes": axes}))
    return _finish(writer, given, y, 3)


@dequantizes("QLinearWhere", domain=MICROSOFT)
def qlinear_where(writer: Writer, given: Given) -> bool:
    """One of two alternatives."""
    x, y = (_numbers(writer, given, k) for k in (1, 4))
    return _finish(writer, given, writer.add("Where", given[0], x, y), 7)


@dequantizes("QLinearConcat", domain=MICROSOFT)
def qlinear_concat(writer: Writer, given: Given) -> bool:
    """Tensors with their scales and zero points behind those of the output."""
    parts = [_numbers(writer, given, k) for k in range(2, len(given.inputs), 3)]
    return _finish(writer, given, writer.add("Concat", *parts, **given.attributes), 0)


@dequantizes("QLinearSoftmax", domain=MICROSOFT)
def qlinear_softmax(writer: Writer, given: Given) -> bool:
    """As of the opset it was fused from: before 13 over all axes from ``axis`` on."""
    x, axis = _numbers(writer, given, 0), given.attributes.get("axis", -1)
    if given.attributes["opset"] >= 13:
        return _finish(writer, given, writer.add("Softmax", x, axis=axis), 3)
    rank = writer.rank(given[0])
    if rank is None:
        raise given.unsupported("the rank of its input is not known")
    flat = writer.add("Softmax", writer.add("Flatten", x, axis=axis % rank), axis=1)
    return _finish(writer, given, writer.add("Reshape", flat, writer.add("Shape", x)), 3)


@dequantizes("NhwcMaxPool", domain=MICROSOFT)
def nhwc_max_pool(writer: Writer, given: Given) -> bool:
    """A MaxPool with channels last, of integers that keep their scale."""
    from surgeon_passes.dequantizing.integer import origin_of

    steps, rank = origin_of(writer, given[0]), writer.rank(given[0])
    if steps is None or rank is None:
        raise given.unsupported("it is not known what its integers mean")
    x = writer.number(given[0], steps.scale, steps.zero, steps.axis)
    y = writer.add("MaxPool", _channels_first(writer, x, rank, last=True), **given.attributes)
    writer.state(given.outputs[0], _channels_last(writer, y, rank, last=True), steps.scale, steps.zero)
    return True
