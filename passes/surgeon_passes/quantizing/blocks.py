"""Weights in blocks of a few bits: how a matrix is packed for MatMulNBits and a table for GatherBlockQuantized.

Layouts: onnxruntime's ContribOperators page, MatMulNBits and GatherBlockQuantized.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROUNDS = 3  # of fitting scales to what was rounded; later ones change nothing that could be seen


@dataclass(frozen=True)
class Blocks:
    """Rows of numbers in blocks.

    Attributes:
        steps: ``[rows, blocks, block]`` unsigned integers; the last block of a row is padded.
        scales: ``[rows, blocks]``, the size of a step.
        zeros: ``[rows, blocks]`` unsigned integers, the step that means zero.
        bits: How many bits a step takes: 4 or 8.
    """

    steps: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8]
    bits: int

    def packed(self) -> NDArray[np.uint8]:
        """``[rows, blocks, bytes]``; the first of two steps is in the low half of a byte."""
        return pack(self.steps, self.bits)

    def packed_zeros(self) -> NDArray[np.uint8]:
        """``[rows, bytes]``, packed like steps."""
        return pack(self.zeros, self.bits)

    def numbers(self, length: int) -> NDArray[np.float32]:
        """``[rows, length]``: what the steps stand for."""
        numbers = (self.steps.astype(np.float32) - self.zeros[..., None]) * self.scales[..., None]
        return numbers.reshape(len(numbers), -1)[:, :length]


def pack(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Puts values along the last axis next to each other into bytes, low bits first.

    Args:
        values: Unsigned integers below ``2**bits``.
        bits: 4 or 8.
    """
    if bits == 8:
        return values
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    low, high = values[..., ::2], values[..., 1::2]
    return (low + high * 16).astype(np.uint8)


def in_blocks(rows: NDArray[np.float32], block: int, bits: int, *, symmetric: bool) -> Blocks:
    """Rounds rows to a few bits, each block with a scale of its own.

    A scale starts from the largest number of its block and is then fitted to the steps and the steps to the scale in
    turn, which never makes the squared error larger.

    Args:
        rows: ``[rows, length]``.
        block: How many numbers share a scale.
        bits: 4 or 8.
        symmetric: Whether zero is the middle step of every block, or wherever it fits the block's range.
    """
    count, length = rows.shape
    padded = np.zeros((count, -(-length // block) * block), np.float32)
    padded[:, :length] = rows
    values = padded.reshape(count, -1, block)
    top = 2**bits - 1
    scales, zeros = _symmetric(values, top) if symmetric else _asymmetric(values, top)
    steps = _rounded(values, scales, zeros, top)
    error = _error(values, steps, scales, zeros)
    for _ in range(_ROUNDS):
        centred = steps - zeros[..., None]
        fitted = ((values * centred).sum(-1) / np.maximum((centred**2).sum(-1), 1)).astype(np.float32)
        fitted = np.where(fitted != 0, fitted, scales)
        tried = _rounded(values, fitted, zeros, top)
        found = _error(values, tried, fitted, zeros)
        better = found < error
        scales, error = np.where(better, fitted, scales), np.where(better, found, error)
        steps = np.where(better[..., None], tried, steps)
    return Blocks(steps.astype(np.uint8), scales, zeros.astype(np.uint8), bits)


def with_common_scale(
    rows: NDArray[np.float32], block: int, bits: int, *, symmetric: bool, whole: bool
) -> Blocks:
    """The same with one scale for all blocks of a row, so that what is equal stays equal.

    Args:
        rows: ``[rows, length]``.
        block: How many numbers a block has.
        bits: 4 or 8.
        symmetric: See `in_blocks`.
        whole: Whether all rows have the same scale.
    """
    count, length = rows.shape
    flat = np.ascontiguousarray(rows.reshape(1, -1) if whole else rows)
    one = in_blocks(flat, flat.shape[1], bits, symmetric=symmetric)
    blocks = -(-length // block)
    zeros = np.broadcast_to(one.zeros, (count, blocks)).copy()
    scales = np.broadcast_to(one.scales, (count, blocks)).copy()
    steps = np.repeat(zeros, block, axis=1)
    steps[:, :length] = one.steps.reshape(count, length)
    return Blocks(steps.reshape(count, blocks, block), scales, zeros, bits)


def _rounded(
    values: NDArray[np.float32], scales: NDArray[np.float32], zeros: NDArray[np.float32], top: int
) -> NDArray[np.float32]:
    steps: NDArray[np.float32] = np.clip(np.rint(values / scales[..., None]) + zeros[..., None], 0, top)
    return steps


def _error(
    values: NDArray[np.float32],
    steps: NDArray[np.float32],
    scales: NDArray[np.float32],
    zeros: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Squared error of each block."""
    found: NDArray[np.float32] = (((steps - zeros[..., None]) * scales[..., None] - values) ** 2).sum(-1)
    return found


def _symmetric(values: NDArray[np.float32], top: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The number furthest from zero, with its sign, gets the lowest step: there is one more on that side."""
    furthest = np.take_along_axis(values, np.abs(values).argmax(-1)[..., None], -1)[..., 0]
    middle = (top + 1) // 2
    scales = _usable((furthest / -middle).astype(np.float32))
    return scales, np.full(scales.shape, middle, np.float32)


def _asymmetric(values: NDArray[np.float32], top: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The range of a block, which always includes zero."""
    low, high = np.minimum(values.min(-1), 0), np.maximum(values.max(-1), 0)
    scales = _usable((high - low) / top)
    return scales, np.clip(np.rint(-low / scales), 0, top).astype(np.float32)


def _usable(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """What can be divided by: numbers so small that their scale is 0 count as zeros."""
    return np.where(scales == 0, 1.0, scales).astype(np.float32)


def scaled_axes(shape: tuple[int, ...], block: int) -> int:
    """How many leading axes have scales: as many as leave a block of weights to each, and the first in any case."""
    leading = 1
    while leading < len(shape) - 1 and math.prod(shape[leading + 1 :]) >= block:
        leading += 1
    return leading


def around_zero(values: NDArray[np.float32], leading: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers around zero, and scales of the leading axes, in a shape that broadcasts."""
    count = math.prod(values.shape[:leading])
    rows = in_blocks(values.reshape(count, -1), math.prod(values.shape[leading:]), 8, symmetric=True)
    integers = (rows.steps.astype(np.int16) - 128).astype(np.int8).reshape(values.shape)
    return integers, rows.scales.reshape(*values.shape[:leading], *[1] * (values.ndim - leading))
