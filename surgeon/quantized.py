"""Quantized constants: what stands for zero in them, and the numbers they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from surgeon.graph.order import every_node

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from surgeon.analysis import Analysis
    from surgeon.ops.op import Op

# operators that move values, and which of their inputs hold them
MOVING = {
    **dict.fromkeys(
        [
            *("Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze"),
            *("Tile", "Transpose", "Unsqueeze", "Expand"),
        ],
        slice(1),
    ),
    "Concat": slice(None),
    "Where": slice(1, 3),
}


_OPERATORS = {
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QGemm", "QAttention", "QMoE"),
    *("MatMulInteger", "MatMulInteger16", "ConvInteger", "MatMulIntegerToFloat"),
    *("DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits", "MatMulBnb4", "MatMulFpQ4"),
    *("GatherBlockQuantized", "NhwcMaxPool", "QEmbedLayerNormalization", "QOrderedMatMul"),
}
INTEGERS = tuple(
    getattr(onnx.TensorProto, name)
    for name in ("INT2", "UINT2", "INT4", "UINT4", "INT8", "UINT8", "INT16", "UINT16", "INT32")
    if hasattr(onnx.TensorProto, name)
)
_INTEGERS = (np.int8, np.uint8)


def is_quantized_operator(node: gs.Node) -> bool:
    """Whether an operator reads or makes integers that stand for numbers."""
    return node.op in _OPERATORS or node.op.startswith(("QLinear", "QOrdered"))


def is_quantized(graph: gs.Graph) -> bool:
    """Whether anything in a graph or in bodies of its nodes is quantized, be it only how a weight is stored."""
    return any(is_quantized_operator(node) or _restores_weights(node) for node in every_node(graph))


def _restores_weights(node: gs.Node) -> bool:
    """Whether a node is a Cast of constant 8-bit integers, or of rows of them, that are scaled next."""
    if node.op != "Cast" or not node.inputs or not node.outputs:
        return False
    source = node.inputs[0]
    if source.inputs and source.inputs[0].op == "Gather":
        source = source.inputs[0].inputs[0]
    stored = isinstance(source, gs.Constant) and np.dtype(source.dtype).type in _INTEGERS
    return stored and any(reader.op in ("Mul", "Sub") for reader in node.outputs[0].outputs)


@dataclass(frozen=True)
class Meaning:
    """What the integers of a constant mean: ``(values - zero) * scale``, in shapes that broadcast to its own.

    The scale is one where it is not known, because it is applied later.
    """

    zero: NDArray[Any]
    scale: NDArray[Any]

    def numbers(self, values: NDArray[Any]) -> NDArray[np.floating]:
        """The numbers that ``values`` stand for."""
        result: NDArray[np.floating] = (values.astype(np.float32) - self.zero.astype(np.float32)) * self.scale
        return result


def meanings(analysis: Analysis) -> dict[str, Meaning]:
    """What each quantized constant means, by name."""
    result: dict[str, Meaning] = {}
    for op in analysis.ops:
        for index, stated in op.facts.quantized.items():
            tensor = _before_casts(op.node.inputs[index], analysis.shapes.dtypes)
            zero = np.zeros((), np.int64) if stated.zero_point is None else op.value(stated.zero_point)
            scale = None if stated.scale is None else op.value(stated.scale)
            if zero is None:
                continue
            if scale is None:
                scale = np.ones((), np.float32)
            if isinstance(tensor, gs.Constant):
                shape = tuple(tensor.shape)
                parameters = (spread(each, shape, stated.axis) for each in (zero, scale))
                result[tensor.name] = Meaning(*parameters)
            elif _uniform(zero):
                # one zero point for all of it holds wherever its values were moved from
                step = _first(scale) if _uniform(scale) else np.ones((), np.float32)
                result |= {each.name: Meaning(_first(zero), step) for each in _moved_from(tensor)}
    return result


def _before_casts(tensor: gs.Tensor, dtypes: Mapping[str, int]) -> gs.Tensor:
    """What integers were before their type was changed, as that of those stored with 4 bits is; their numbers stay."""
    while len(tensor.inputs) == 1 and tensor.inputs[0].op == "Cast":
        source = tensor.inputs[0].inputs[0]
        if dtypes.get(source.name) not in INTEGERS:
            break
        tensor = source
    return tensor


def parameters(analysis: Analysis) -> set[str]:
    """Names of the scales and zero points of the model."""
    return {name for op in analysis.ops for name in _parameters_of(op)}


def _parameters_of(op: Op) -> Iterator[str]:
    for stated in op.facts.quantized.values():
        for index in (stated.zero_point, stated.scale):
            if index is not None:
                yield op.node.inputs[index].name


def _uniform(values: NDArray[Any]) -> bool:
    return bool((values == values.flat[0]).all())


def _first(values: NDArray[Any]) -> NDArray[Any]:
    return values.flat[:1].reshape(())


def _moved_from(tensor: gs.Tensor) -> Iterator[gs.Constant]:
    """The constants whose values ``tensor`` holds, in another order or place."""
    pending, seen = [tensor], set()
    while pending:
        for node in pending.pop().inputs:
            if id(node) not in seen and node.op in MOVING:
                seen.add(id(node))
                held = node.inputs[MOVING[node.op]]
                yield from (each for each in held if isinstance(each, gs.Constant))
                pending += [each for each in held if not isinstance(each, gs.Constant)]


def spread(zero: NDArray[Any], shape: tuple[int, ...], axis: int, block: int = 0) -> NDArray[Any]:
    """A parameter in a shape that broadcasts: per tensor, per position of leading axes and of ``axis``, or per block of every axis.

    Args:
        zero: The zero points, or scales.
        shape: Of the integers they are for.
        axis: An axis of these.
        block: How many positions of ``axis`` share one; 0: as many as fill the axis.

    Returns:
        What broadcasts to ``shape``.
    """
    rank = len(shape)
    if zero.size == 1:
        return zero.reshape(())
    if zero.ndim < rank:
        last = zero.shape[-1] == shape[axis]
        places = [*range(zero.ndim - last), *([axis % rank] if last else [])]
        return zero.reshape([zero.shape[places.index(k)] if k in places else 1 for k in range(rank)])
    for k, size in enumerate(shape):
        if zero.shape[k] not in (1, size):
            times = block if block and k == axis % rank else -(-size // zero.shape[k])
            zero = np.repeat(zero, times, axis=k)[(slice(None),) * k + (slice(size),)]
    return zero
