"""Shapes and types of the com.microsoft operators, of which onnx knows nothing.

Many compute what a standard operator does, with something fused in: onnx's inference is asked about that one. The
others have a function here. Semantics: onnxruntime's ContribOperators page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import onnx
from onnx.shape_inference import infer_node_outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

FLOAT, INT32, BOOL, UINT8 = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.INT32,
    onnx.TensorProto.BOOL,
    onnx.TensorProto.UINT8,
)
SMALL_INTEGERS = {  # what no standard operator computes with
    UINT8,
    onnx.TensorProto.INT8,
    onnx.TensorProto.INT16,
    onnx.TensorProto.UINT16,
}
DOMAIN = "com.microsoft"
OPSET = 21  # of the standard operators that stand in

Dims: TypeAlias = "tuple[int, ...]"
Known: TypeAlias = "tuple[int, Dims]"  # data type and shape of a tensor
Outputs: TypeAlias = "Sequence[Known]"
Types: TypeAlias = "list[onnx.TypeProto | None]"


class Unknown(Exception):  # noqa: N818  # it is a statement, not a fault
    """Raised where the inputs do not say what the outputs are."""


@dataclass(frozen=True)
class Call:
    """One node: its operator, attributes, inputs (None: not given, or not known), their values and output count."""

    operator: str
    attributes: Mapping[str, Any]
    inputs: Sequence[Known | None]
    data: Sequence[onnx.TensorProto | None]
    outputs: int

    def given(self, index: int) -> Known | None:
        """Input ``index``, or None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def kind(self, index: int = 0) -> int:
        """The data type of an input."""
        return self._known(index)[0]

    def dims(self, index: int = 0) -> Dims:
        """The shape of an input."""
        return self._known(index)[1]

    def _known(self, index: int) -> Known:
        known = self.given(index)
        if known is None:
            raise Unknown
        return known

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value, or the default its operator's page gives."""
        return self.attributes.get(name, default)


def infer_contrib(call: Call) -> Types | None:
    """The types of a node's outputs; None when nothing is known of its operator or of an input it needs.

    Raises:
        InferenceError: The standard operator that stands in refuses the inputs.
    """
    stand_in = STAND_INS.get(call.operator)
    function = FUNCTIONS.get(call.operator)
    try:
        if stand_in is not None:
            return stand_in.infer(call)
        return None if function is None else [_type(known) for known in function(call)]
    except (Unknown, IndexError, ZeroDivisionError, onnx.checker.ValidationError):
        return None  # an input that is missing or not known, or of another rank than the operator's page says


def _type(known: Known) -> onnx.TypeProto:
    return onnx.helper.make_tensor_type_proto(known[0], list(known[1]))


@dataclass(frozen=True)
class StandIn:
    """A standard operator of the same shapes.

    Attributes:
        operator: Its name.
        inputs: Which inputs of the node are its inputs; all of them by default.
        repeated: Further inputs: every ``repeated[1]``-th from ``repeated[0]`` on.
        kind: The input whose data type the outputs have; the first one by default.
        last: Whether channels are last: 0 never, 1 always, -1 where the attribute ``channels_last`` says so.
    """

    operator: str
    inputs: tuple[int, ...] | None = None
    repeated: tuple[int, int] = (0, 0)
    kind: int | None = None
    last: int = 0

    def infer(self, call: Call) -> Types:
        """What onnx infers for the standard operator."""
        schema = onnx.defs.get_schema(self.operator, OPSET, "")
        last = bool(call.attribute("channels_last", 0)) if self.last < 0 else bool(self.last)
        places = [*(range(len(call.inputs)) if self.inputs is None else self.inputs)]
        if self.repeated[1]:
            places += range(self.repeated[0], len(call.inputs), self.repeated[1])
        names, types, data = [], {}, {}
        for place in places:
            known = call.given(place)
            names.append("" if known is None else f"i{place}")
            if known is not None:
                moved = last and place == places[0]
                kind = FLOAT if known[0] in SMALL_INTEGERS and self.operator != "QLinearConv" else known[0]
                types[f"i{place}"] = _type((kind, _channels_first(known[1]) if moved else known[1]))
                datum = call.data[place]
                if datum is not None:
                    data[f"i{place}"] = datum
        attributes = {name: value for name, value in call.attributes.items() if name in schema.attributes}
        outputs = [f"o{k}" for k in range(min(call.outputs, schema.max_output))]
        node = onnx.helper.make_node(self.operator, names, outputs, **attributes)
        imports = [onnx.helper.make_opsetid("", OPSET)]
        found = infer_node_outputs(schema, node, types, data, None, imports, onnx.IR_VERSION)
        kind = call.kind(places[0] if self.kind is None else self.kind)
        result: Types = [_output(found.get(name), kind, last) for name in outputs]
        return result + [None] * (call.outputs - len(result))


def _output(found: onnx.TypeProto | None, kind: int, last: bool) -> onnx.TypeProto | None:
    if found is not None:
        found.tensor_type.elem_type = kind
        if last:
            sizes = list(found.tensor_type.shape.dim)
            del found.tensor_type.shape.dim[:]
            found.tensor_type.shape.dim.extend([sizes[0], *sizes[2:], sizes[1]])
    return found


def _channels_first(dims: Dims) -> Dims:
    return (dims[0], dims[-1], *dims[1:-1])


STAND_INS = {
    "Conv": StandIn("Conv"),
    "FusedConv": StandIn("Conv", (0, 1, 2)),
    "NhwcConv": StandIn("Conv", last=1),
    "NhwcFusedConv": StandIn("Conv", (0, 1, 2), last=1),
    "NhwcMaxPool": StandIn("MaxPool", last=1),
    "FusedGemm": StandIn("Gemm"),
    "GemmFastGelu": StandIn("MatMul", (0, 1)),
    "GridSample": StandIn("GridSample"),
    "GatherND": StandIn("GatherND"),
    "Pad": StandIn("Pad"),
    "Trilu": StandIn("Trilu"),
    "QLinearConv": StandIn("QLinearConv", kind=7, last=-1),
    "QLinearAveragePool": StandIn("AveragePool", (0,), last=-1),
    "QLinearGlobalAveragePool": StandIn("GlobalAveragePool", (0,), last=-1),
    "QLinearAdd": StandIn("Add", (0, 3)),
    "QLinearMul": StandIn("Mul", (0, 3)),
    "QLinearWhere": StandIn("Where", (0, 1, 4), kind=1),
    "QLinearConcat": StandIn("Concat", (), (2, 3), kind=1),
    "QLinearReduceMean": StandIn("ReduceMean", (0,)),
    "MatMulIntegerToFloat": StandIn("MatMul", (0, 1), kind=2),
    "DynamicQuantizeMatMul": StandIn("MatMul", (0, 1), kind=0),
    "GatedAdd": StandIn("Add", (0, 1)),
    "BiasAdd": StandIn("Add", (0, 1)),
}


def _same(call: Call) -> Outputs:
    known = (call.kind(), call.dims())
    return [known] * call.outputs


def _unquantized(call: Call) -> Outputs:
    return [(call.kind(1), call.dims())]


def _quantized(call: Call) -> Outputs:
    return [(call.kind(2) if call.given(2) else UINT8, call.dims())]


def _dropout(call: Call) -> Outputs:
    return [(call.kind(), call.dims()), (BOOL, call.dims())][: call.outputs]


def _skip_norm(call: Call) -> Outputs:
    whole, statistics = (call.kind(), call.dims()), (FLOAT, (*call.dims()[:-1], 1))
    return [whole, statistics, statistics, whole][: call.outputs]


def _embed_norm(call: Call) -> Outputs:
    words = call.dims()
    kind = call.kind(2) if call.operator == "EmbedLayerNormalization" else FLOAT
    whole = (kind, (*words, call.dims(2)[1]))
    return [whole, (INT32, words[:1]), whole][: call.outputs]


def _matmul(call: Call) -> Outputs:
    a, b = (_transposed(call.dims(k), call, "AB"[k]) for k in (0, 1))
    standard = StandIn("MatMul", (0, 1))
    moved = Call("MatMul", {}, [(call.kind(), a), (call.kind(), b)], [None, None], 1)
    found = standard.infer(moved)[0]
    if found is None:
        raise Unknown
    return [(call.kind(), tuple(dim.dim_value for dim in found.tensor_type.shape.dim))]


def _transposed(dims: Dims, call: Call, side: str) -> Dims:
    """``transBatch`` moves the first axis behind the batch axes, ``trans`` swaps the last two; vectors stay."""
    if len(dims) < 2:
        return dims
    if call.attribute(f"transBatch{side}", 0):
        dims = (*dims[1:-1], dims[0], dims[-1])
    return (*dims[:-2], dims[-1], dims[-2]) if call.attribute(f"trans{side}", 0) else dims


def _integer_matmul(call: Call) -> Outputs:
    return [(INT32, _matmul(call)[0][1])]


def _packed_matmul(call: Call) -> Outputs:
    columns = call.attribute("N" if call.attribute("transB", 1) else "K")
    return [(call.kind(), (*call.dims()[:-1], int(columns)))]


def _split_gelu(call: Call) -> Outputs:
    return [(call.kind(), (*call.dims()[:-1], call.dims()[-1] // 2))]


def _gemm(call: Call) -> Outputs:
    rows = call.dims()[1 if call.attribute("transA", 0) else 0]
    columns = call.dims(3)[0 if call.attribute("transB", 0) else 1]
    return [(call.kind(8) if call.given(8) else FLOAT, (rows, columns))]


def _lstm(call: Call) -> Outputs:
    steps, batch, _ = call.dims()
    directions, hidden, _ = call.dims(2)
    state = (call.kind(), (directions, batch, hidden))
    return [(call.kind(), (steps, directions, batch, hidden)), state, state][: call.outputs]


def _gather_blocks(call: Call) -> Outputs:
    data, indices = call.dims(), call.dims(1)
    if call.kind() == UINT8:
        data = (*data[:-1], data[-1] * 8 // call.attribute("bits", 4))
    axis = call.attribute("gather_axis", 0) % len(data)
    return [(call.kind(2), (*data[:axis], *indices, *data[axis + 1 :]))]


def _unfold(call: Call) -> Outputs:
    dims, size = call.dims(), call.attribute("size")
    axis = call.attribute("dim", -1) % len(dims)
    count = (dims[axis] - size) // call.attribute("step", 1) + 1
    return [(call.kind(), (*dims[:axis], count, *dims[axis + 1 :], size))]


def _attention(call: Call) -> Outputs:
    """A projection to queries, keys and values first: hidden sizes come from the weight's columns."""
    dims, columns, heads = call.dims(), call.dims(1)[1], call.attribute("num_heads")
    sizes = call.attribute("qkv_hidden_sizes") or [columns // 3] * 3
    past = call.given(8 if call.operator == "QAttention" else 4)
    kind = call.kind(2) if call.operator == "QAttention" else call.kind()
    output = (kind, (*dims[:-1], int(sizes[2])))
    if call.outputs == 1:
        return [output]
    total = dims[1] + (past[1][3] if past is not None else 0)
    return [output, (kind, (2, dims[0], heads, total, int(sizes[1]) // heads))]


def _multi_head(call: Call) -> Outputs:
    """Queries, keys and values apart, or packed in one tensor; keys and values may have their heads apart already."""
    query, heads, kind = call.dims(), call.attribute("num_heads"), call.kind()
    batch, steps = query[:2]
    key, value = call.given(1), call.given(2)
    decoder = call.operator == "DecoderMaskedMultiHeadAttention"
    if len(query) == 5:
        total, head, v_head = steps, query[4], query[4]
    elif key is None:
        total, head = steps, query[2] // 3 // heads
        v_head = head
    elif value is None:
        total, head, v_head = key[1][1], query[2] // heads, key[1][4]
    elif len(key[1]) == 4:
        total, head, v_head = key[1][2], query[2] // heads, value[1][3]
    else:
        total, head, v_head = key[1][1], query[2] // heads, value[1][2] // heads
    past = call.given(5 if decoder else 6)
    if past is not None:
        total += past[1][2]
    states = [(kind, (batch, heads, total, size)) for size in (head, v_head)]
    scores = (kind, (batch, heads, steps, total))
    return [(kind, (batch, steps, heads * v_head)), *states, scores][: call.outputs]


def _grouped_query(call: Call) -> Outputs:
    query, kind, heads, shared = call.dims(), call.kind(), *_counts(call)
    packed = call.given(1) is None
    head = query[2] // (heads + 2 * shared) if packed else query[2] // heads
    past = call.given(3)
    total = query[1] + (past[1][2] if past is not None else 0)
    state = (kind, (query[0], shared, total, head))
    scores = (kind, (query[0], heads, query[1], total))
    return [(kind, (*query[:2], heads * head)), state, state, scores][: call.outputs]


def _counts(call: Call) -> tuple[int, int]:
    return int(call.attribute("num_heads")), int(call.attribute("kv_num_heads"))


def _packed_multi_head(call: Call) -> Outputs:
    query, value = call.dims(), call.given(2)
    columns = value[1][1] if value is not None else query[1] * query[3]
    return [(call.kind(), (query[0], columns))]


def _linear_attention(call: Call) -> Outputs:
    query, key, value = (call.dims(k) for k in range(3))
    queries, shared = call.attribute("q_num_heads"), call.attribute("kv_num_heads")
    state: Dims = (query[0], shared, key[2] // shared, value[2] // shared)
    if call.attribute("state_window", 0):
        state = (call.attribute("state_window"), *state)
    hidden = max(queries, shared) * (value[2] // shared)
    return [(call.kind(), (*query[:2], hidden)), (call.kind(), state)][: call.outputs]


def _causal_conv(call: Call) -> Outputs:
    """Only the states that are common: channels first and no window of them."""
    dims, taps = call.dims(), call.dims(1)[-1]
    if call.attribute("channels_last", 0) or call.attribute("state_window", 0):
        raise Unknown
    state = (*dims[:-1], (taps - 1) * call.attribute("dilation", 1))
    return [(call.kind(), dims), (call.kind(), state)][: call.outputs]


FUNCTIONS: dict[str, Callable[[Call], Outputs]] = {
    **dict.fromkeys(
        [
            *(
                "BiasGelu",
                "BiasSoftmax",
                "BranchwiseRMSNorm",
                "FastGelu",
                "GatedRMSNorm",
                "Gelu",
                "GroupNorm",
            ),
            *("Inverse", "MoE", "QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax", "QMoE", "QuickGelu"),
            *("RotaryEmbedding", "ScaledSiLU", "SkipGroupNorm"),
        ],
        _same,
    ),
    "DequantizeLinear": _unquantized,
    "QuantizeLinear": _quantized,
    "BiasDropout": _dropout,
    "SkipLayerNormalization": _skip_norm,
    "SkipSimplifiedLayerNormalization": _skip_norm,
    "EmbedLayerNormalization": _embed_norm,
    "QEmbedLayerNormalization": _embed_norm,
    "FusedMatMul": _matmul,
    "TransposeMatMul": _matmul,
    "MatMulInteger16": _integer_matmul,
    "MatMulNBits": _packed_matmul,
    "MatMulBnb4": _packed_matmul,
    "BiasSplitGelu": _split_gelu,
    "QGemm": _gemm,
    "DynamicQuantizeLSTM": _lstm,
    "GatherBlockQuantized": _gather_blocks,
    "UnfoldTensor": _unfold,
    "Attention": _attention,
    "QAttention": _attention,
    "PackedAttention": _attention,
    "MultiHeadAttention": _multi_head,
    "DecoderMaskedMultiHeadAttention": _multi_head,
    "GroupQueryAttention": _grouped_query,
    "PackedMultiHeadAttention": _packed_multi_head,
    "LinearAttention": _linear_attention,
    "CausalConvWithState": _causal_conv,
}
