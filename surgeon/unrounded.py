"""A quantized model without its rounding: the same computation in floats, for comparing two models that round.

A sum in another order changes the last bit of a float, which may turn an integer, and the error of that is larger than
that of a wrong cut may be. Without rounding both models are continuous again. Quantized tensors become floats that
still count in steps (``x / scale + zero point``), so that whatever moves them can stay as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from surgeon.graph.copy import copy_of
from surgeon.graph.schemas import standard
from surgeon.graph.weights import peek
from surgeon.quantized import MOVING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FLOAT = onnx.TensorProto.FLOAT
MICROSOFT = "com.microsoft"
SMALL = (np.int8, np.uint8, np.int16, np.uint16)


class Unable(Exception):  # noqa: N818  # it is a statement, not a fault
    """Raised for a node that cannot be written in floats."""


def unrounded(graph: gs.Graph, ranks: Mapping[str, int]) -> gs.Graph | None:
    """The graph without rounding.

    Args:
        graph: A graph; it is not changed.
        ranks: The rank of its tensors, by name.

    Returns:
        The other graph, or None when nothing in it rounds or a node cannot be written in floats.
    """
    result = copy_of(graph)
    twin = Twin(ranks)
    found = False
    for node in result.nodes:
        function = FUNCTIONS.get((standard(node.domain), node.op))
        try:
            if function is None:
                twin.keep(node)
            else:
                found = True
                function(twin, Given(node))
        except Unable:
            return None
    result.nodes.clear()
    result.nodes.extend(twin.nodes)
    _leave_as_floats(result)
    return result if found else None


def _leave_as_floats(graph: gs.Graph) -> None:
    """Integers that leave the model are floats as well, whatever its interface says."""
    declared = dict(getattr(graph, "surgeon_interface", {}))
    for tensor in graph.outputs:
        if tensor.dtype is not None and np.dtype(tensor.dtype).type in SMALL:
            tensor.dtype = np.float32
            declared.pop(tensor.name, None)
    graph.surgeon_interface = declared


class Given:
    """A node that is being replaced; its outputs are free to be made by others."""

    def __init__(self, node: gs.Node) -> None:
        self.domain, self.attributes = node.domain, dict(node.attrs)
        self.inputs, self.outputs = list(node.inputs), list(node.outputs)
        node.inputs.clear()
        node.outputs.clear()

    def __getitem__(self, index: int) -> gs.Tensor:
        found = self.optional(index)
        if found is None:
            raise Unable
        return found

    def optional(self, index: int) -> gs.Tensor | None:
        """Input ``index``, or None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) and self.inputs[index].name else None


class Twin:
    """The nodes of the new graph, and what it takes to add some."""

    def __init__(self, ranks: Mapping[str, int]) -> None:
        self.nodes: list[gs.Node] = []
        self._ranks = ranks
        self._made = 0

    def keep(self, node: gs.Node) -> None:
        """The node stays; integers that it moves become floats."""
        held = [*range(len(node.inputs))[MOVING[node.op]]] if node.op in MOVING else []
        if node.op == "Pad":
            held += range(2, len(node.inputs))[:1]
        for index in held:
            tensor = node.inputs[index]
            if isinstance(tensor, gs.Constant) and np.dtype(tensor.dtype).type in SMALL:
                node.inputs[index] = self.number(tensor)
        self.nodes.append(node)

    def add(
        self, op: str, *inputs: gs.Tensor | None, into: gs.Tensor | None = None, **attributes: Any
    ) -> gs.Tensor:
        """A node with one output: ``into``, or a new tensor."""
        output = into if into is not None else gs.Variable(self._name())
        self.put(op, inputs, [output], **attributes)
        return output

    def put(
        self,
        op: str,
        inputs: tuple[gs.Tensor | None, ...],
        outputs: list[gs.Tensor],
        domain: str | None = None,
        **attributes: Any,
    ) -> None:
        """A node with several outputs."""
        given = [gs.Variable.empty() if tensor is None else tensor for tensor in inputs]
        while given and not given[-1].name:
            given.pop()
        self.nodes.append(gs.Node(op, self._name(), attributes, given, outputs, domain))

    def constant(self, values: Any) -> gs.Constant:
        """A new float constant."""
        return gs.Constant(self._name(), np.ascontiguousarray(values, dtype=np.float32))

    def number(self, tensor: gs.Tensor) -> gs.Tensor:
        """Integers as floats."""
        if isinstance(tensor, gs.Constant):
            return self.constant(peek(tensor))
        return self.add("Cast", tensor, to=FLOAT)

    def along(self, parameter: gs.Tensor, axis: int, rank: int | None) -> gs.Tensor:
        """A scale or zero point, shaped so that it broadcasts along ``axis``."""
        number = self.number(parameter)
        if not isinstance(number, gs.Constant) or peek(number).size == 1:
            return number
        values = peek(number)
        if rank is None or values.ndim != 1:
            raise Unable
        shape = [1] * rank
        shape[axis] = -1
        return self.constant(values.reshape(shape))

    def dequantize(
        self,
        x: gs.Tensor,
        scale: gs.Tensor | None,
        zero: gs.Tensor | None,
        axis: int = 1,
        into: gs.Tensor | None = None,
    ) -> gs.Tensor:
        """``(x - zero) * scale``."""
        rank, value = self.rank(x), self.number(x)
        if zero is not None:
            value = self.add("Sub", value, self.along(zero, axis, rank))
        last = scale if scale is not None else self.constant(1.0)
        return self.add("Mul", value, self.along(last, axis, rank), into=into)

    def quantize(
        self, x: gs.Tensor, scale: gs.Tensor, zero: gs.Tensor | None, into: gs.Tensor, axis: int = 1
    ) -> None:
        """``x / scale + zero``, within the bounds of its type."""
        rank = self.rank(into)
        steps = self.add("Div", x, self.along(scale, axis, rank))
        kind = np.dtype(np.uint8 if zero is None else zero.dtype or np.uint8)
        shifted = steps if zero is None else self.add("Add", steps, self.along(zero, axis, rank))
        if kind.type in SMALL:
            bounds = np.iinfo(kind)
            self.add("Clip", shifted, self.constant(bounds.min), self.constant(bounds.max), into=into)
        else:
            self.add("Identity", shifted, into=into)

    def rank(self, tensor: gs.Tensor) -> int | None:
        """The rank of a tensor, where it is known."""
        return len(tensor.shape) if isinstance(tensor, gs.Constant) else self._ranks.get(tensor.name)

    def _name(self) -> str:
        self._made += 1
        return f"surgeon/unrounded{self._made}"


def _quantize(twin: Twin, given: Given) -> None:
    twin.quantize(given[0], given[1], given.optional(2), given.outputs[0], given.attributes.get("axis", 1))


def _dequantize(twin: Twin, given: Given) -> None:
    if isinstance(given[0], gs.Constant):  # nothing is rounded here
        twin.put("DequantizeLinear", tuple(given.inputs), given.outputs, given.domain, **given.attributes)
        return
    axis = given.attributes.get("axis", 1)
    twin.dequantize(given[0], given[1], given.optional(2), axis, given.outputs[0])


def _dynamic_quantize(twin: Twin, given: Given) -> None:
    """Scale and zero point are measured as they were."""
    steps, scale, zero = given.outputs
    rounded, kept = gs.Variable(f"{steps.name}/rounded"), gs.Variable(f"{zero.name}/kept")
    twin.put("DynamicQuantizeLinear", (given[0],), [rounded, scale, kept])
    twin.add("Cast", kept, into=zero, to=FLOAT)
    twin.add("Add", twin.add("Div", given[0], scale), zero, into=steps)


def _integer_product(twin: Twin, given: Given) -> None:
    left = twin.dequantize(given[0], None, given.optional(2), axis=-2)
    right = twin.dequantize(given[1], None, given.optional(3), axis=-1)
    twin.add("MatMul", left, right, into=given.outputs[0])


def _integer_convolution(twin: Twin, given: Given) -> None:
    x = twin.dequantize(given[0], None, given.optional(2))
    w = twin.dequantize(given[1], None, given.optional(3), axis=0)
    twin.add("Conv", x, w, into=given.outputs[0], **given.attributes)


def _convolution(twin: Twin, given: Given) -> None:
    if given.attributes.pop("channels_last", 0):
        raise Unable
    x = twin.dequantize(given[0], given[1], given[2])
    w = twin.dequantize(given[3], given[4], given[5], axis=0)
    bias = _bias(twin, given.optional(8), given[1], given[4])
    y = twin.add("Conv", x, w, bias, **given.attributes)
    twin.quantize(y, given[6], given[7], given.outputs[0])


def _bias(
    twin: Twin, bias: gs.Tensor | None, left: gs.Tensor, right: gs.Tensor, alpha: float = 1.0
) -> gs.Tensor | None:
    """A bias counts in products of both scales."""
    if bias is None:
        return None
    step = twin.add("Mul", twin.add("Mul", left, right), twin.constant(alpha))
    return twin.add("Mul", twin.number(bias), step)


def _product(twin: Twin, given: Given) -> None:
    left = twin.dequantize(given[0], given[1], given[2], axis=-2)
    right = twin.dequantize(given[3], given[4], given[5], axis=-1)
    twin.quantize(twin.add("MatMul", left, right), given[6], given[7], given.outputs[0])


def _gemm(twin: Twin, given: Given) -> None:
    left = twin.dequantize(given[0], given[1], given[2])
    axis = 0 if given.attributes.get("transB", 0) else 1
    right = twin.dequantize(given[3], given[4], given.optional(5), axis=axis)
    c = _bias(twin, given.optional(6), given[1], given[4], given.attributes.get("alpha", 1.0))
    y = twin.add("Gemm", left, right, c, **given.attributes)
    scale = given.optional(7)
    if scale is None:
        twin.add("Identity", y, into=given.outputs[0])
    else:
        twin.quantize(y, scale, given.optional(8), given.outputs[0])


def _elementwise(op: str, *inputs: int, output: int, plain: int = 0) -> Callable[[Twin, Given], None]:
    """An operator of ``plain`` unquantized inputs and then of those at ``inputs``, each with scale and zero point."""

    def replace(twin: Twin, given: Given) -> None:
        tensors = [given[k] for k in range(plain)]
        tensors += [twin.dequantize(given[k], given[k + 1], given.optional(k + 2)) for k in inputs]
        if given.attributes.pop("channels_last", 0):
            raise Unable
        y = twin.add(op, *tensors, **given.attributes)
        twin.quantize(y, given[output], given.optional(output + 1), given.outputs[0])

    return replace


def _softmax(twin: Twin, given: Given) -> None:
    """As of the opset it was fused from: before 13 over all axes from ``axis`` on."""
    x = twin.dequantize(given[0], given[1], given.optional(2))
    axis, rank = given.attributes.get("axis", -1), twin.rank(given[0])
    if given.attributes["opset"] < 13:
        if rank is None:
            raise Unable
        flat = twin.add("Softmax", twin.add("Flatten", x, axis=axis % rank), axis=1)
        y = twin.add("Reshape", flat, twin.add("Shape", x))
    else:
        y = twin.add("Softmax", x, axis=axis)
    twin.quantize(y, given[3], given.optional(4), given.outputs[0])


def _concat(twin: Twin, given: Given) -> None:
    places = range(2, len(given.inputs), 3)
    parts = [twin.dequantize(given[k], given[k + 1], given.optional(k + 2)) for k in places]
    twin.quantize(twin.add("Concat", *parts, **given.attributes), given[0], given[1], given.outputs[0])


def _float_product(twin: Twin, given: Given) -> None:
    """DynamicQuantizeMatMul: the left factor is a float already."""
    right = twin.dequantize(given[1], given[2], given.optional(3), axis=-1)
    _with_bias(twin, twin.add("MatMul", given[0], right), given.optional(4), given.outputs[0])


def _product_to_float(twin: Twin, given: Given) -> None:
    left = twin.dequantize(given[0], given[2], given.optional(4), axis=-2)
    right = twin.dequantize(given[1], given[3], given.optional(5), axis=-1)
    _with_bias(twin, twin.add("MatMul", left, right), given.optional(6), given.outputs[0])


def _with_bias(twin: Twin, y: gs.Tensor, bias: gs.Tensor | None, output: gs.Tensor) -> None:
    twin.add("Identity" if bias is None else "Add", y, bias, into=output)


def _lstm(twin: Twin, given: Given) -> None:
    weights = []
    for place, scale in ((1, 8), (2, 10)):
        values, scales, zeros = (given[k] for k in (place, scale, scale + 1))
        if not all(isinstance(tensor, gs.Constant) for tensor in (values, scales, zeros)):
            raise Unable
        step, zero = (_per_direction(peek(tensor)) for tensor in (scales, zeros))
        floats = (peek(values).astype(np.float32) - zero) * step
        weights.append(twin.constant(floats.transpose(0, 2, 1)))
    rest = tuple(given.optional(k) for k in range(3, 8))
    twin.put("LSTM", (given[0], *weights, *rest), given.outputs, **given.attributes)


def _per_direction(values: Any) -> Any:
    """``[directions]`` or ``[directions, columns]``, for ``[directions, rows, columns]``."""
    values = values.astype(np.float32)
    return values[:, None, None] if values.ndim == 1 else values[:, None, :]


def _attention(twin: Twin, given: Given) -> None:
    x = twin.dequantize(given[0], given[3], given.optional(6))
    w = twin.dequantize(given[1], given[4], given.optional(7), axis=1)
    inputs = (x, w, given[2], given.optional(5), given.optional(8))
    twin.put("Attention", inputs, given.outputs, domain=MICROSOFT, **given.attributes)


FUNCTIONS: dict[tuple[str, str], Callable[[Twin, Given], None]] = {
    **{(domain, "QuantizeLinear"): _quantize for domain in ("", MICROSOFT)},
    **{(domain, "DequantizeLinear"): _dequantize for domain in ("", MICROSOFT)},
    **{(domain, "QLinearConv"): _convolution for domain in ("", MICROSOFT)},
    ("", "DynamicQuantizeLinear"): _dynamic_quantize,
    ("", "MatMulInteger"): _integer_product,
    ("", "ConvInteger"): _integer_convolution,
    ("", "QLinearMatMul"): _product,
    (MICROSOFT, "QGemm"): _gemm,
    (MICROSOFT, "QLinearAdd"): _elementwise("Add", 0, 3, output=6),
    (MICROSOFT, "QLinearMul"): _elementwise("Mul", 0, 3, output=6),
    (MICROSOFT, "QLinearWhere"): _elementwise("Where", 1, 4, output=7, plain=1),
    (MICROSOFT, "QLinearLeakyRelu"): _elementwise("LeakyRelu", 0, output=3),
    (MICROSOFT, "QLinearSigmoid"): _elementwise("Sigmoid", 0, output=3),
    (MICROSOFT, "QLinearSoftmax"): _softmax,
    (MICROSOFT, "QLinearAveragePool"): _elementwise("AveragePool", 0, output=3),
    (MICROSOFT, "QLinearGlobalAveragePool"): _elementwise("GlobalAveragePool", 0, output=3),
    (MICROSOFT, "QLinearConcat"): _concat,
    (MICROSOFT, "DynamicQuantizeMatMul"): _float_product,
    (MICROSOFT, "MatMulIntegerToFloat"): _product_to_float,
    (MICROSOFT, "DynamicQuantizeLSTM"): _lstm,
    (MICROSOFT, "QAttention"): _attention,
}
