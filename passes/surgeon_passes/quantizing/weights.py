"""Mode weights: weights with 4 or 8 bits in the file, activations as they were; needs no data.

Matrix products get onnxruntime's kernel for blocks (MatMulNBits), 4-bit embeddings its look-up (GatherBlockQuantized). The
weights of other operators are stored as ``Cast(integers) * scales``, which onnxruntime computes once, when it loads the
model: the file is smaller, the arithmetic the same. (A DequantizeLinear it would compute again in every run.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx.helper as oh
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from surgeon.graph.halves import graphs_of
from surgeon.stats.promises import Promise
from surgeon_passes.quantizing.blocks import Blocks, around_zero, in_blocks, scaled_axes, with_common_scale
from surgeon_passes.quantizing.promised import eight_bits, few_values

MICROSOFT = "com.microsoft"
_SMALLEST = 1024  # elements; fewer are not worth two nodes
_SMALLEST_PRODUCT = (
    2**14
)  # elements; below, the 8-bit kernel is slower than a float product with folded weights
_INT8_INSIDE = (
    4  # MatMulNBits' accuracy level: activations in 8 bits inside; other kernels are slower than floats
)
# operators with weights, and which of their inputs may be weights
_WEIGHTED = {
    **dict.fromkeys(["Conv", "ConvTranspose", "FusedConv"], (1,)),
    **dict.fromkeys(["MatMul", "Gemm", "FusedMatMul", "FusedGemm"], (0, 1)),
    **dict.fromkeys(["LSTM", "GRU", "RNN", "DeformConv", "Attention"], (1, 2)),
    "Gather": (0,),
    "Einsum": (0, 1, 2),
}
_OTHER_FLOATS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class Storage:
    """How weights are stored.

    Attributes:
        bits: 4 or 8, for matrix products and embeddings; other weights take 8.
        block: How many weights share a scale: 16, 32, 64, 128 or 256.
        symmetric: Whether zero is the middle of every block's range.
        folded: Operators, by type, whose weights become floats when the model is loaded though there is a kernel for few bits.
    """

    bits: int = 8
    block: int = 32
    symmetric: bool = False
    folded: Collection[str] = ()


@dataclass
class Stored:
    """Whose weights are stored with few bits, name to operator.

    Attributes:
        kernels: Those with a kernel that reads these weights.
        folded: Those whose weights become floats when the model is loaded.
        left: Those that stay float, with the reason: name to (operator, reason).
    """

    kernels: dict[str, str] = field(default_factory=dict)
    folded: dict[str, str] = field(default_factory=dict)
    left: dict[str, tuple[str, str]] = field(default_factory=dict)


@dataclass
class _Run:
    """What is the same for all graphs of a model."""

    storage: Storage
    excluded: Callable[[str], bool]
    result: Stored = field(default_factory=Stored)


@dataclass
class _Scope:
    """One graph while its nodes are replaced; its constants include those it sees from outside."""

    graph: onnx.GraphProto
    outer: _Scope | None
    run: _Run
    constants: dict[str, TensorProto] = field(default_factory=dict)
    first: list[onnx.NodeProto] = field(default_factory=list)
    made: dict[str, list[str]] = field(default_factory=dict)

    def home(self, name: str) -> _Scope | None:
        """The graph that holds a constant, or None where ``name`` is none."""
        if name in self.constants:
            return self
        computed = {output for node in self.graph.node for output in node.output}
        hidden = name in computed or any(entry.name == name for entry in self.graph.input)
        return None if self.outer is None or hidden else self.outer.home(name)

    def weight(self, name: str) -> TensorProto | None:
        """The float constant of that name."""
        home = self.home(name) if name else None
        found = None if home is None else home.constants[name]
        return found if found is not None and found.data_type == TensorProto.FLOAT else None

    def other_type(self, name: str) -> str | None:
        """The type of large constants whose floats are not float32, also where they are cast to it."""
        casts = (node for node in self.graph.node if node.op_type == "Cast" and node.output[0] == name)
        name = next((node.input[0] for node in casts), name)
        home = self.home(name) if name else None
        found = None if home is None else home.constants[name]
        if found is None or found.data_type not in _OTHER_FLOATS or not _large(found):
            return None
        return str(TensorProto.DataType.Name(found.data_type)).lower()

    def put(self, name: str, *arrays: tuple[str, NDArray[np.generic]]) -> list[str]:
        """Adds constants next to the weight ``name`` they are made of, once, and returns what they are called."""
        home = self.home(name)
        assert home is not None  # it was found before
        names = [f"{name}_{suffix}" for suffix, _ in arrays]
        for given, (_, array) in zip(names, arrays, strict=True):
            if given not in home.made:
                home.made[given] = [given]
                home.graph.initializer.append(numpy_helper.from_array(array, given))
        return names


def store_weights(
    model: onnx.ModelProto,
    excluded: Callable[[str], bool],
    storage: Storage,
) -> Stored:
    """Stores weights with few bits, those inside control-flow bodies too.

    Args:
        model: A model whose nodes have names; it is changed in place.
        excluded: Whether a node or tensor name is to be left alone.
        storage: Bits and blocks.

    Returns:
        Which operators' weights are stored so, and which are left, and why.
    """
    run = _Run(storage, excluded)
    _replace(_Scope(model.graph, None, run))
    domains = {entry.domain for entry in model.opset_import}
    used = {node.domain for graph in graphs_of(model.graph) for node in graph.node}
    if MICROSOFT in used - domains:
        model.opset_import.append(oh.make_opsetid(MICROSOFT, 1))
    return run.result


def _replace(scope: _Scope) -> None:
    graph = scope.graph
    overridable = {entry.name for entry in graph.input}
    scope.constants = {entry.name: entry for entry in graph.initializer if entry.name not in overridable}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                _replace(_Scope(body, scope, scope.run))
        nodes += _replaced(node, scope)
    del graph.node[:]
    graph.node.extend([*scope.first, *nodes])
    _drop_unused(graph)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Drops the float weights nobody reads any more."""
    used = {name for each in graphs_of(graph) for node in each.node for name in node.input}
    used |= {entry.name for each in graphs_of(graph) for entry in each.output}
    kept = [entry for entry in graph.initializer if entry.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _replaced(node: onnx.NodeProto, scope: _Scope) -> list[onnx.NodeProto]:
    """What stands for a node: itself, with other weights, or the operator for blocks."""
    run = scope.run
    name = node.name or node.output[0]
    held = [k for k, each in enumerate(node.input) if _large(scope.weight(each))]
    weighted = _WEIGHTED.get(node.op_type, ())
    if not held:
        kinds = [kind for k in weighted if k < len(node.input) and (kind := scope.other_type(node.input[k]))]
        if kinds:
            run.result.left[name] = (node.op_type, f"its weights are {kinds[0]}")
        return [node]
    places = [k for k in held if k in weighted or _loses_nothing(scope.weight(node.input[k]), scope)]
    reason = _why_float(node, [node.input[k] for k in places], scope)
    if reason is not None:
        run.result.left[name] = (node.op_type, reason)
        return [node]
    rule = _RULES.get((node.domain if node.domain not in _STANDARD else "", node.op_type))
    if node.op_type in run.storage.folded:
        rule = None
    nodes = rule(node, scope) if rule is not None else None
    (run.result.folded if nodes is None else run.result.kernels)[name] = node.op_type
    return _folded(node, places, scope) if nodes is None else nodes


def _large(weight: TensorProto | None) -> bool:
    """Whether a constant is more than a vector, and worth two nodes."""
    return (
        weight is not None
        and sum(size > 1 for size in weight.dims) >= 2
        and math.prod(weight.dims) >= _SMALLEST
    )


def _loses_nothing(weight: TensorProto | None, scope: _Scope) -> bool:
    """Whether 8 bits hold a constant exactly, as they do masks: then it need not be a weight."""
    if weight is None:
        return False
    values = numpy_helper.to_array(weight)
    if not np.isfinite(values).all():
        return False
    integers, scales = around_zero(values, scaled_axes(values.shape, scope.run.storage.block))
    return bool((integers.astype(np.float32) * scales == values).all())


def _why_float(node: onnx.NodeProto, weights: list[str], scope: _Scope) -> str | None:
    if not weights:
        return f"its constant is not a weight, as {node.op_type} is no operator with weights"
    if any(map(scope.run.excluded, (name for name in (node.name, *node.input, *node.output) if name))):
        return "excluded"
    for name in weights:
        weight = scope.weight(name)
        if weight is not None and not np.isfinite(numpy_helper.to_array(weight)).all():
            return "its weights are not finite"
    return None


def _folded(node: onnx.NodeProto, places: list[int], scope: _Scope) -> list[onnx.NodeProto]:
    for place in places:
        node.input[place] = _unpacked(node, place, scope)
    return [node]


def _unpacked(node: onnx.NodeProto, place: int, scope: _Scope) -> str:
    """A weight as ``Cast(integers) * scales``, computed at the beginning of the graph that holds it."""
    name = node.input[place]
    home = scope.home(name)
    assert home is not None  # it was found before
    result = f"{name}_restored"
    if result not in home.made:
        home.made[result] = [result]
        values = numpy_helper.to_array(home.constants[name])
        promise = few_values(node, place, values)
        if promise is None:
            integers, scales = around_zero(values, scaled_axes(values.shape, scope.run.storage.block))
        else:
            integers, scales = eight_bits(node, place, values, promise)
        quantized, scale = scope.put(name, ("kept_quantized", integers), ("kept_scale", scales))
        home.first += [
            oh.make_node("Cast", [quantized], [f"{name}_cast"], name=f"{name}_Cast", to=TensorProto.FLOAT),
            oh.make_node("Mul", [f"{name}_cast", scale], [result], name=f"{name}_Mul"),
        ]
    return result


def _blocks_of(rows: NDArray[np.float32], storage: Storage, promise: Promise | None) -> Blocks | None:
    """Rows in blocks, or None where padding would eat up most of what is gained.

    Few values get one scale, but for as many as there are integers.
    """
    length = rows.shape[1]
    if -(-length // storage.block) * storage.block > 2 * length:
        return None
    rows = np.ascontiguousarray(rows)
    if promise is None or promise.values >= 2**storage.bits:
        return in_blocks(rows, storage.block, storage.bits, symmetric=storage.symmetric)
    whole = promise.sharing == "tensor"
    return with_common_scale(rows, storage.block, storage.bits, symmetric=storage.symmetric, whole=whole)


def _product(
    node: onnx.NodeProto, scope: _Scope, output: str, *, transposed: bool = False, factor: float = 1.0
) -> list[onnx.NodeProto] | None:
    """The product with the second input as MatMulNBits."""
    name = node.input[1]
    weight = scope.weight(name)
    storage = scope.run.storage
    if weight is None or len(weight.dims) != 2:
        return None
    if storage.bits == 8 and math.prod(weight.dims) < _SMALLEST_PRODUCT:
        return None
    values = numpy_helper.to_array(weight) * np.float32(factor)
    blocks = _blocks_of(values if transposed else values.T, storage, few_values(node, 1, values))
    if blocks is None:
        return None
    rows, length = values.shape if transposed else values.shape[::-1]
    way = f"{'rows' if transposed else 'columns'}{'' if factor == 1 else f'_by_{factor:g}'}"
    arrays: list[tuple[str, NDArray[np.generic]]] = [
        (f"{way}_quantized", blocks.packed()),
        (f"{way}_scale", blocks.scales),
    ]
    if not storage.symmetric:
        arrays.append((f"{way}_zero_point", blocks.packed_zeros()))
    return [
        oh.make_node(
            "MatMulNBits",
            [node.input[0], *scope.put(name, *arrays)],
            [output],
            name=node.name,
            domain=MICROSOFT,
            K=length,
            N=rows,
            bits=storage.bits,
            block_size=storage.block,
            accuracy_level=_INT8_INSIDE,
        )
    ]


def _matmul(node: onnx.NodeProto, scope: _Scope) -> list[onnx.NodeProto] | None:
    return _product(node, scope, node.output[0])


def _gemm(node: onnx.NodeProto, scope: _Scope) -> list[onnx.NodeProto] | None:
    """A product and a sum; a Gemm that transposes its input or scales a computed bias stays one."""
    given = {each.name: oh.get_attribute_value(each) for each in node.attribute}
    if given.get("transA", 0) or given.get("beta", 1.0) != 1:
        return None
    biased = len(node.input) > 2 and node.input[2] != ""
    output = f"{node.output[0]}_product" if biased else node.output[0]
    transposed, factor = bool(given.get("transB", 0)), given.get("alpha", 1.0)
    nodes = _product(node, scope, output, transposed=transposed, factor=factor)
    if nodes is not None and biased:
        nodes.append(oh.make_node("Add", [output, node.input[2]], list(node.output), name=f"{node.name}_Add"))
    return nodes


def _embedding(node: onnx.NodeProto, scope: _Scope) -> list[onnx.NodeProto] | None:
    """Rows of a table: in 4-bit blocks, or as 8-bit integers and a scale per row, which are looked up alike."""
    name, storage = node.input[0], scope.run.storage
    weight = scope.weight(name)
    axis = next((each.i for each in node.attribute if each.name == "axis"), 0)
    if weight is None or len(weight.dims) != 2 or axis not in (0, -2):
        return None
    values = numpy_helper.to_array(weight)
    if storage.bits == 8:
        return _looked_up(node, values, scope)
    if weight.dims[1] % storage.block:
        return None
    blocks = in_blocks(values, storage.block, storage.bits, symmetric=storage.symmetric)
    arrays: list[tuple[str, NDArray[np.generic]]] = [
        ("table_quantized", blocks.packed().reshape(len(values), -1)),
        ("table_scale", blocks.scales),
    ]
    if not storage.symmetric:
        arrays.append(("table_zero_point", blocks.packed_zeros()))
    quantized, *rest = scope.put(name, *arrays)
    return [
        oh.make_node(
            "GatherBlockQuantized",
            [quantized, node.input[1], *rest],
            list(node.output),
            name=node.name,
            domain=MICROSOFT,
            bits=storage.bits,
            block_size=storage.block,
            gather_axis=0,
            quantize_axis=1,
        )
    ]


def _looked_up(node: onnx.NodeProto, values: NDArray[np.float32], scope: _Scope) -> list[onnx.NodeProto]:
    """Only the rows that are looked up are multiplied by their scales; every version of onnxruntime can."""
    integers, scales = around_zero(values, 1)
    quantized, scale = scope.put(node.input[0], ("quantized", integers), ("scale", scales))
    rows, cast, steps = (f"{node.output[0]}_{part}" for part in ("rows", "cast", "steps"))
    return [
        oh.make_node("Gather", [quantized, node.input[1]], [rows], name=node.name, axis=0),
        oh.make_node("Gather", [scale, node.input[1]], [steps], name=f"{node.name}_Steps", axis=0),
        oh.make_node("Cast", [rows], [cast], name=f"{node.name}_Cast", to=TensorProto.FLOAT),
        oh.make_node("Mul", [cast, steps], list(node.output), name=f"{node.name}_Mul"),
    ]


LOOK_UPS, PRODUCTS = frozenset({"Gather"}), frozenset({"MatMul", "Gemm"})
_RULES: Mapping[tuple[str, str], Callable[[onnx.NodeProto, _Scope], list[onnx.NodeProto] | None]] = {
    ("", "MatMul"): _matmul,
    ("", "Gemm"): _gemm,
    ("", "Gather"): _embedding,
}
