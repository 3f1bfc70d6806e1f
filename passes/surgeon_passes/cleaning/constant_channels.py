"""Folds channels that have the same value for every input into the bias of the layer that reads them.

A convolution whose weights for an output channel are all zero writes its bias there, whatever the input. Elementwise
functions and pooling keep such a channel constant. What it adds to the next layer is a constant too; with padding that
only holds for zero, because the border reads zeros and not the constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from surgeon.graph.sessions import run, session
from surgeon_passes.cleaning.noops import DEFAULT_DOMAINS
from surgeon_passes.cleaning.wiring import fixed_values

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from surgeon_passes.cleaning.wiring import Wiring

    Array = NDArray[Any]

UNARY = frozenset(
    {
        *("Relu", "LeakyRelu", "Elu", "Selu", "Gelu", "Mish", "Clip", "HardSwish"),
        *("Sigmoid", "HardSigmoid", "Tanh", "Softplus", "Softsign", "Erf", "Exp", "Abs", "Neg"),
    }
)
POOLING = frozenset({"MaxPool", "GlobalAveragePool", "GlobalMaxPool"})  # padding of MaxPool never wins


@dataclass(frozen=True)
class Constants:
    """Which channels (axis 1) of a tensor of this rank are constant, and their values; ``[channels]`` both."""

    known: NDArray[np.bool_]
    value: Array
    rank: int

    @property
    def zero(self) -> NDArray[np.bool_]:
        """Which channels are zero."""
        found: NDArray[np.bool_] = self.known & (self.value == 0)
        return found


def fold_constant_channels(wiring: Wiring) -> None:
    """Move what constant channels contribute to Conv and Gemm layers into their bias, and zero those weights."""
    found: dict[int, Constants] = {}
    for node in wiring.graph.nodes:
        rule = RULES.get(node.op) if node.domain in DEFAULT_DOMAINS else None
        if rule is None:
            continue
        constants = rule(wiring, node, found)
        if constants is not None and constants.known.any():
            found[id(node.outputs[0])] = constants


def _conv(wiring: Wiring, node: gs.Node, found: dict[int, Constants]) -> Constants | None:
    weight, group = fixed_values(node.inputs[1]), int(node.attrs.get("group", 1))
    if weight is None or weight.dtype.kind != "f":
        return None
    inputs = found.get(id(node.inputs[0]))
    if inputs is not None:
        usable = inputs.known if _is_unpadded(node) else inputs.zero
        weight = _fold(wiring, node, weight, Constants(usable, inputs.value, inputs.rank), group)
    return _rows(node, weight)


def _gemm(wiring: Wiring, node: gs.Node, found: dict[int, Constants]) -> Constants | None:
    attributes = {name: node.attrs.get(name, default) for name, default in _GEMM_DEFAULTS.items()}
    weight = fixed_values(node.inputs[1])
    if weight is None or attributes != _GEMM_DEFAULTS | {"transB": attributes["transB"]}:
        return None
    transposed = weight if attributes["transB"] else weight.T
    inputs = found.get(id(node.inputs[0]))
    if inputs is not None and _bias(node, transposed.shape[0]) is not None:
        transposed = _fold(wiring, node, transposed, inputs, 1, flipped=not attributes["transB"])
    return _rows(node, transposed)


_GEMM_DEFAULTS = {"transA": 0, "transB": 0, "alpha": 1.0, "beta": 1.0}


def _is_unpadded(node: gs.Node) -> bool:
    return not any(node.attrs.get("pads", ())) and node.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")


def _bias(node: gs.Node, outputs: int) -> Array | None:
    """The layer's bias ``[outputs]``, zeros where it has none; None if it is not a constant vector."""
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return np.zeros(outputs)
    values = fixed_values(node.inputs[2])
    return None if values is None or values.shape != (outputs,) else values.astype(np.float64)


def _fold(
    wiring: Wiring, node: gs.Node, weight: Array, inputs: Constants, group: int, *, flipped: bool = False
) -> Array:
    """Fold the usable input channels of a layer whose weight is ``[outputs, inputs / group, ...]``."""
    bias = _bias(node, weight.shape[0])
    if bias is None or not inputs.known.any() or weight.shape[1] * group != len(inputs.known):
        return weight
    first = np.repeat(np.arange(group) * weight.shape[1], weight.shape[0] // group)
    channel = first[:, None] + np.arange(
        weight.shape[1]
    )  # [outputs, inputs / group]: which input each slice reads
    known = inputs.known[channel].reshape(channel.shape + (1,) * (weight.ndim - 2))
    read = np.where(known, weight, 0)
    if not read.any():
        return weight
    added = (read.reshape(*channel.shape, -1).sum(axis=2, dtype=np.float64) * inputs.value[channel]).sum(
        axis=1, dtype=np.float64
    )
    remaining = np.where(known, np.zeros((), weight.dtype), weight)
    stem = node.inputs[1].name
    wiring.set_constant(
        node, 1, np.ascontiguousarray(remaining.T) if flipped else remaining, f"{stem}__folded"
    )
    if added.any():
        wiring.set_constant(node, 2, (bias + added).astype(weight.dtype), f"{stem}__bias")
    return remaining


def _rows(node: gs.Node, weight: Array) -> Constants | None:
    """Output channels whose weights are all zero hold their bias."""
    bias = _bias(node, weight.shape[0])
    if bias is None:
        return None
    empty = np.asarray(~weight.reshape(weight.shape[0], -1).any(axis=1))
    return Constants(empty, bias.astype(weight.dtype), weight.ndim)


def _unary(wiring: Wiring, node: gs.Node, found: dict[int, Constants]) -> Constants | None:
    inputs = found.get(id(node.inputs[0]))
    others = [fixed_values(tensor) for tensor in node.inputs[1:] if tensor.name]
    if inputs is None or any(each is None or each.size != 1 for each in others):
        return None
    values = np.where(inputs.known, inputs.value, 0).astype(inputs.value.dtype)
    feeds = {"x": values} | {f"i{k}": each for k, each in enumerate(others) if each is not None}
    present = iter(list(feeds)[1:])
    names = ["x", *(next(present) if tensor.name else "" for tensor in node.inputs[1:])]
    result = _evaluate(onnx.helper.make_node(node.op, names, ["y"], **node.attrs), feeds, wiring.graph.opset)
    usable = inputs.known & np.isfinite(result)
    return Constants(usable, np.where(usable, result, 0).astype(values.dtype), inputs.rank)


def _evaluate(node: onnx.NodeProto, feeds: dict[str, Array], opset: int) -> Array:
    """What onnxruntime makes of one operator on given inputs; the output has the type of the first."""
    kinds = {name: onnx.helper.np_dtype_to_tensor_dtype(values.dtype) for name, values in feeds.items()}
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [
            onnx.helper.make_tensor_value_info(name, kinds[name], values.shape)
            for name, values in feeds.items()
        ],
        [onnx.helper.make_tensor_value_info("y", kinds["x"], None)],
    )
    opsets = [onnx.helper.make_opsetid("", opset)]
    return run(session(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)), feeds)[0]


def _same(_wiring: Wiring, node: gs.Node, found: dict[int, Constants]) -> Constants | None:
    return found.get(id(node.inputs[0]))


def _flatten(_wiring: Wiring, node: gs.Node, found: dict[int, Constants]) -> Constants | None:
    """Only of ``[N, C, 1, 1]`` as global pooling leaves it."""
    source = node.inputs[0].inputs
    pooled = len(source) == 1 and source[0].op.startswith("Global")
    inputs = found.get(id(node.inputs[0]))
    if inputs is None or not pooled or node.attrs.get("axis", 1) != 1:
        return None
    return Constants(inputs.known, inputs.value, 2)


def _add(_wiring: Wiring, node: gs.Node, found: dict[int, Constants]) -> Constants | None:
    pair = _pair(node, found)
    if pair is None:
        return None
    return Constants(pair[0].known & pair[1].known, pair[0].value + pair[1].value, pair[0].rank)


def _pair(node: gs.Node, found: dict[int, Constants]) -> tuple[Constants, Constants] | None:
    """Both operands' constants, where their channels are aligned."""
    left, right = (found.get(id(tensor)) for tensor in node.inputs)
    if left is None or right is None or left.rank != right.rank or len(left.known) != len(right.known):
        return None
    return left, right


RULES: dict[str, Callable[[Wiring, gs.Node, dict[int, Constants]], Constants | None]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "Flatten": _flatten,
    "Add": _add,
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(POOLING, _same),
}
