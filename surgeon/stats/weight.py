"""The weights of operators: constants, perhaps behind nodes that only turn, cast, reshape or dequantize them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from surgeon.graph.weights import data_type, peek
from surgeon.quantized import INTEGERS, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
_TURNING = frozenset({"Identity", "Transpose", "Cast", "Reshape", "DequantizeLinear"})


def weight_chain(tensor: gs.Tensor) -> list[gs.Tensor] | None:
    """From the constant a weight is made of to the weight itself.

    Canonical form computes shape arithmetic only: what is made of float constants stays nodes.

    Returns:
        The tensors on the way, the constant first; None if there is none, or another operation than Identity, Transpose,
        Reshape, a Cast between floats, or between integers, or, once, a DequantizeLinear of integers is on the way, or its numbers
        are no floats without that.
    """
    chain, dequantized = [tensor], False
    while not isinstance(chain[-1], gs.Constant):
        makers = chain[-1].inputs
        if len(makers) != 1 or makers[0].op not in _TURNING or makers[0].domain:
            return None
        if not all(isinstance(each, gs.Constant) for each in makers[0].inputs[1:]):
            return None
        if makers[0].op == "Cast" and not _keeps_numbers(makers[0], INTEGERS if dequantized else FLOATS):
            return None
        if makers[0].op == "DequantizeLinear":
            if dequantized:
                return None
            dequantized = True
        chain.append(makers[0].inputs[0])
    return chain[::-1] if data_type(chain[-1]) in (INTEGERS if dequantized else FLOATS) else None


def is_rounded(tensor: gs.Tensor) -> bool:
    """Whether a weight is stored as integers that a DequantizeLinear makes numbers of."""
    chain = weight_chain(tensor)
    return chain is not None and data_type(chain[0]) in INTEGERS


def weight_values(tensor: gs.Tensor) -> Array:
    """The values of a weight, in its own shape and type.

    Raises:
        ValueError: The tensor is not a weight in the sense of :func:`weight_chain`.
    """
    chain = weight_chain(tensor)
    if chain is None:
        raise ValueError(f"{tensor.name} is no weight")
    values: Array = peek(chain[0])
    for each in chain[1:]:
        node = each.inputs[0]
        if node.op == "DequantizeLinear":
            scale, zero = steps_of(node, values.shape)
            values = (values.astype(scale.dtype) - zero) * scale
        else:
            values = _made(node, values)
    return values


def steps_of(node: gs.Node, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Scales and zero points of a DequantizeLinear with constant ones, for all entries of what it reads.

    Args:
        node: The DequantizeLinear.
        shape: Of what it reads.
    """
    axis, block = int(node.attrs.get("axis", 1)), int(node.attrs.get("block_size", 0))
    scale = peek(node.inputs[1])
    given = len(node.inputs) > 2 and node.inputs[2].name
    zero = peek(node.inputs[2]).astype(scale.dtype) if given else np.zeros_like(scale)
    return (
        np.broadcast_to(spread(scale, shape, axis, block), shape),
        np.broadcast_to(spread(zero, shape, axis, block), shape),
    )


def weight_shape(tensor: gs.Tensor) -> tuple[int, ...]:
    """The shape of a weight; only those behind other nodes are read for it."""
    if isinstance(tensor, gs.Constant):
        return tuple(tensor.shape)
    return tuple(weight_values(tensor).shape)


def is_shared(tensor: gs.Tensor) -> bool:
    """Whether anything else reads the weight, or what it is made of."""
    return any(len(each.outputs) > 1 for each in weight_chain(tensor) or [tensor])


def put_weight(tensor: gs.Tensor, values: Array) -> gs.Tensor:
    """Other values for a weight, in its own shape and type.

    They go into the constant it is made of, through the nodes on the way, if nothing else reads any of that. A constant that
    its operators read itself is not touched: there is another one of its name. One of a name of its own is made where a node on
    the way, or the constant, has other readers.

    Returns:
        What is to be read instead; the tensor itself where its constant has the values now.
    """
    chain = weight_chain(tensor)
    if chain is None:
        raise ValueError(f"{tensor.name} is no weight")
    if len(chain) == 1:
        return gs.Constant(tensor.name, np.ascontiguousarray(values))
    if any(len(each.outputs) > 1 for each in chain[:-1]):
        return gs.Constant(f"{tensor.name}/surgeon/weight", np.ascontiguousarray(values))
    chain[1].inputs[0].inputs[0] = _constant_of(chain, values)
    return tensor


def put_for_all(tensor: gs.Tensor, values: Array) -> None:
    """Other values for a weight, in its own shape and type, in place, for everything that reads the constant it is made of."""
    chain = weight_chain(tensor)
    if chain is None:
        raise ValueError(f"{tensor.name} is no weight")
    replaced = _constant_of(chain, values)
    for user in list(chain[0].outputs):
        for k, each in enumerate(user.inputs):
            if each is chain[0]:
                user.inputs[k] = replaced


def _constant_of(chain: Sequence[gs.Tensor], values: Array) -> gs.Constant:
    """The constant, of the same name, that gives a weight these values."""
    arrays = [peek(chain[0])]
    for each in chain[1:-1]:
        arrays.append(_made(each.inputs[0], arrays[-1]))
    for each, before in zip(chain[:0:-1], arrays[: len(chain) - 1][::-1], strict=True):
        values = _unmade(each.inputs[0], values, before)
    return gs.Constant(chain[0].name, np.ascontiguousarray(values))


def _made(node: gs.Node, values: Array) -> Array:
    """What a node on the way to a weight makes of floats."""
    if node.op == "Cast":
        return values.astype(_type_made(node))
    return moved(node, values)


def _unmade(node: gs.Node, values: Array, before: Array) -> Array:
    """What such a node has to be given, in shape and type of what it was given before, to make these values."""
    if node.op == "Transpose":
        perm = node.attrs.get("perm") or range(values.ndim)[::-1]
        values = values.transpose(np.argsort(perm))
    return values.reshape(before.shape).astype(before.dtype)


def sortable(values: Array) -> Array:
    """The same numbers in a type that numpy sorts right.

    It has no order for bfloat16, and its own for half precision is wrong for long arrays of few values (seen in 2.4).
    """
    return values.astype(np.float32) if values.dtype.kind == "V" or values.dtype == np.float16 else values


def moved(node: gs.Node, values: Array) -> Array:
    """What an operator that only moves values, such as those on the way to a weight, makes of them."""
    if node.op == "Transpose":
        return values.transpose(node.attrs.get("perm"))
    if node.op == "Reshape":
        target = [int(size) for size in peek(node.inputs[1])]
        if not node.attrs.get("allowzero", 0):
            target = [size or values.shape[k] for k, size in enumerate(target)]
        return values.reshape(target)
    return values


def _keeps_numbers(cast: gs.Node, kinds: Sequence[int]) -> bool:
    """Whether a Cast makes numbers of one of these types."""
    return onnx.helper.np_dtype_to_tensor_dtype(_type_made(cast)) in kinds


def _type_made(cast: gs.Node) -> np.dtype[Any]:
    """What a Cast makes; graphsurgeon reads the attribute as a type."""
    to = cast.attrs["to"]
    return onnx.helper.tensor_dtype_to_np_dtype(to) if isinstance(to, int) else np.dtype(to)
