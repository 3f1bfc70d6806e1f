"""The arithmetic of quantized constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from surgeon.quantized import Meaning, spread


def is_small(kind: Any) -> bool:
    """Whether a numpy type is one of 8- or 16-bit integers."""
    kind = np.dtype(kind)
    return kind.kind in "iu" and kind.itemsize <= 2


def onnx_kind(kind: Any) -> int:
    """The onnx data type of a numpy type."""
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)))


def numbers_of(
    values: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any] | None, axis: int, block: int = 0
) -> NDArray[Any]:
    """``(values - zero) * scale``, per tensor, along an axis or in blocks of it; as floats of the scale's type."""
    zeros = np.zeros((), np.float32) if zero is None else zero
    if block and scale.ndim == values.ndim:
        scale, zeros = (_repeated(each, values.shape, axis, block) for each in (scale, zeros))
    parameters = (spread(each, values.shape, axis) for each in (zeros, scale.astype(np.float32)))
    return Meaning(*parameters).numbers(values).astype(scale.dtype)


def as_one(parameter: NDArray[Any]) -> NDArray[Any]:
    """A scale or zero point; one of them where all channels have the same."""
    one = parameter.ravel()[:1].reshape(())
    return one if parameter.size and (parameter == one).all() else parameter


def _repeated(parameter: NDArray[Any], shape: tuple[int, ...], axis: int, block: int) -> NDArray[Any]:
    """A parameter of each block, for each value; the last block may be shorter."""
    if parameter.ndim == 0:
        return parameter
    return np.repeat(parameter, block, axis=axis).take(range(shape[axis]), axis=axis)


def rounded(
    values: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any] | None, axis: int, kind: Any
) -> NDArray[Any]:
    """Integers for numbers, as QuantizeLinear rounds: to the nearest, ties to even, within the type's bounds."""
    bounds = np.iinfo(kind)
    zeros = np.zeros((), np.float32) if zero is None else zero.astype(np.float32)
    steps = np.rint(values / spread(scale, values.shape, axis)) + spread(zeros, values.shape, axis)
    result: NDArray[Any] = np.clip(steps, bounds.min, bounds.max).astype(kind)
    return result
