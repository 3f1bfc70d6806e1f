"""The weights of operators: constants, perhaps behind nodes that only turn, cast or reshape them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from surgeon.graph.weights import data_type, peek

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
_TURNING = frozenset({"Identity", "Transpose", "Cast", "Reshape"})


def weight_chain(tensor: gs.Tensor) -> list[gs.Tensor] | None:
    """From the constant a weight is made of to the weight itself.

    Canonical form computes shape arithmetic only: what is made of float constants stays nodes.

    Returns:
        The tensors on the way, the constant first; None if there is none, or its numbers are no floats, or another
        operation than Identity, Transpose, Reshape or a Cast between floats is on the way.
    """
    chain = [tensor]
    while not isinstance(chain[-1], gs.Constant):
        makers = chain[-1].inputs
        if len(makers) != 1 or makers[0].op not in _TURNING or makers[0].domain:
            return None
        if not all(isinstance(each, gs.Constant) for each in makers[0].inputs[1:]):
            return None
        if makers[0].op == "Cast" and _float_type(makers[0].attrs["to"]) is None:
            return None
        chain.append(makers[0].inputs[0])
    return chain[::-1] if data_type(chain[-1]) in FLOATS else None


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
        values = _computed(each.inputs[0], values)
    return values


def weight_shape(tensor: gs.Tensor) -> tuple[int, ...]:
    """The shape of a weight; only those behind other nodes are read for it."""
    if isinstance(tensor, gs.Constant):
        return tuple(tensor.shape)
    return tuple(weight_values(tensor).shape)


def is_shared(tensor: gs.Tensor) -> bool:
    """Whether anything else reads the weight, or what it is made of."""
    return any(len(each.outputs) > 1 for each in weight_chain(tensor) or [tensor])


def _computed(node: gs.Node, values: Array) -> Array:
    if node.op == "Transpose":
        return values.transpose(node.attrs.get("perm"))
    if node.op == "Cast":
        return values.astype(_float_type(node.attrs["to"]))
    if node.op == "Reshape":
        target = [int(size) for size in peek(node.inputs[1])]
        if not node.attrs.get("allowzero", 0):
            target = [size or values.shape[k] for k, size in enumerate(target)]
        return values.reshape(target)
    return values


def _float_type(to: Any) -> np.dtype[Any] | None:
    """What a Cast makes, if it is floats; graphsurgeon reads the attribute as a type."""
    made: np.dtype[Any] = onnx.helper.tensor_dtype_to_np_dtype(to) if isinstance(to, int) else np.dtype(to)
    return made if onnx.helper.np_dtype_to_tensor_dtype(made) in FLOATS else None
