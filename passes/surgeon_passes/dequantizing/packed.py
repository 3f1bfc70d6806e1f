"""Weights in blocks, products that scale back by themselves, and whole layers (com.microsoft)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from surgeon_passes.dequantizing.registry import dequantizes

if TYPE_CHECKING:
    from surgeon_passes.dequantizing.writer import Array, Given, Writer

MICROSOFT = "com.microsoft"


def unpacked(values: Array, bits: int) -> Array:
    """Values that lie in bytes next to each other, low bits first, along the last axis.

    Raises:
        ValueError: There are no whole numbers of them in a byte.
    """
    if 8 % bits:
        raise ValueError(f"{bits} bits")
    mask = 2**bits - 1
    parts = [(values >> shift) & mask for shift in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(*values.shape[:-1], -1)


@dequantizes("MatMulNBits", domain=MICROSOFT)
def matmul_n_bits(writer: Writer, given: Given) -> bool:
    """A MatMul with ``[K, N]`` floats, and a sum with its bias."""
    bits, block = given.attributes.get("bits", 4), given.attributes["block_size"]
    rows, length = given.attributes["N"], given.attributes["K"]
    if 8 % bits:
        raise given.unsupported(f"weights of {bits} bits")
    blocks = -(-length // block)
    scales = given.array(2).reshape(rows, blocks)
    steps = unpacked(given.array(1).astype(np.uint8).reshape(rows, -1), bits)[:, :length]
    zeros = _zeros(given, rows, blocks, bits)
    place = np.arange(length) // block if given.optional(4) is None else given.array(4)[:length]
    numbers = (steps.astype(np.float32) - zeros[:, place]) * scales[:, place].astype(np.float32)
    weight = writer.constant(numbers.T.astype(scales.dtype), f"{given[1].name}_float")
    _with_bias(writer, given, writer.add("MatMul", writer.plain(given[0]), weight), 5)
    return True


def _zeros(given: Given, rows: int, blocks: int, bits: int) -> Array:
    """Zero points ``[rows, blocks]``: packed, of the scales' type, or the middle of the range."""
    if given.optional(3) is None:
        return np.full((rows, blocks), 2 ** (bits - 1), np.float32)
    zeros = given.array(3)
    if zeros.dtype == np.uint8:
        zeros = unpacked(zeros.reshape(rows, -1), bits)[:, :blocks]
    return zeros.reshape(rows, blocks).astype(np.float32)


@dequantizes("GatherBlockQuantized", domain=MICROSOFT)
def gather_block_quantized(writer: Writer, given: Given) -> bool:
    """A Gather from a table of floats."""
    bits, block = given.attributes.get("bits", 4), given.attributes.get("block_size", 128)
    data, scales = given.array(0), given.array(2)
    axis = given.attributes.get("quantize_axis", 1) % data.ndim
    looked_up = given.attributes.get("gather_axis", 0)
    packed = data.dtype == np.uint8
    middle = 2 ** (bits - 1) if packed else 0
    values = _along(data, axis, bits) if packed and bits < 8 else data
    zeros = np.asarray(middle) if given.optional(3) is None else given.array(3)
    if packed and zeros.ndim and zeros.shape[axis] != scales.shape[axis]:
        zeros = _along(zeros, axis, bits).take(range(scales.shape[axis]), axis=axis)
    size = values.shape[axis]
    scale, zero = (
        np.repeat(each, block or size, axis=axis).take(range(size), axis=axis) if each.ndim else each
        for each in (scales.astype(np.float32), zeros.astype(np.float32))
    )
    numbers = ((values.astype(np.float32) - zero) * scale).astype(scales.dtype)
    table = writer.constant(numbers, f"{given[0].name}_float")
    writer.same(given.outputs[0], writer.add("Gather", table, writer.plain(given[1]), axis=looked_up))
    return True


def _along(values: Array, axis: int, bits: int) -> Array:
    return np.moveaxis(unpacked(np.moveaxis(values, axis, -1), bits), -1, axis)


@dequantizes("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_matmul(writer: Writer, given: Given) -> bool:
    """A MatMul; the left factor is a float already."""
    right = writer.number(given[1], given[2], given.optional(3), -1)
    _with_bias(writer, given, writer.add("MatMul", writer.plain(given[0]), right), 4)
    return True


@dequantizes("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer_to_float(writer: Writer, given: Given) -> bool:
    """A MatMul."""
    left = writer.number(given[0], given[2], given.optional(4), -2)
    right = writer.number(given[1], given[3], given.optional(5), -1)
    _with_bias(writer, given, writer.add("MatMul", left, right), 6)
    return True


def _with_bias(writer: Writer, given: Given, y: gs.Tensor, index: int) -> None:
    bias = given.optional(index)
    writer.same(given.outputs[0], y if bias is None else writer.add("Add", y, writer.plain(bias)))


@dequantizes("DynamicQuantizeLSTM", domain=MICROSOFT)
def dynamic_quantize_lstm(writer: Writer, given: Given) -> bool:
    """An LSTM, whose weights are not transposed."""
    weights = []
    for place, scale in ((1, 8), (2, 10)):
        step, zero = (_per_direction(given.array(k)) for k in (scale, scale + 1))
        numbers = (given.array(place).astype(np.float32) - zero) * step
        weights.append(writer.constant(numbers.transpose(0, 2, 1), f"{given[place].name}_float"))
    rest = [given.optional(k) for k in range(3, 8)]
    inputs = [
        writer.plain(given[0]),
        *weights,
        *(None if each is None else writer.plain(each) for each in rest),
    ]
    writer.put("LSTM", tuple(inputs), given.outputs, **given.attributes)
    return True


def _per_direction(values: Array) -> Array:
    """``[directions]`` or ``[directions, columns]``, for ``[directions, rows, columns]``."""
    values = values.astype(np.float32)
    return values[:, None, None] if values.ndim == 1 else values[:, None, :]


@dequantizes("QAttention", domain=MICROSOFT)
def qattention(writer: Writer, given: Given) -> bool:
    """An Attention with its projection."""
    x = writer.number(given[0], given[3], given.optional(6))
    w = writer.number(given[1], given[4], given.optional(7), 1)
    rest = (given.optional(k) for k in (2, 5, 8))
    inputs = (x, w, *(None if each is None else writer.plain(each) for each in rest))
    writer.put("Attention", inputs, given.outputs, MICROSOFT, **given.attributes)
    return True
