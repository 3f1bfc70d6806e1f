"""Which operators become 8-bit, and why the others do not."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import onnx
from onnx import TensorProto

_WEIGHT_INPUT = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "Gather": 0}
_NEVER = {"GRU", "RNN", "LSTM", "Einsum", "Attention", "MultiHeadAttention"}
_SMALLEST_TABLE = 1024  # elements; smaller Gathers pick constants, not embeddings
_FOLLOWERS = {"Relu", "Clip", "MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"}
_JOINS = {"Add", "Mul", "Sigmoid", "LeakyRelu", "AveragePool", "GlobalAveragePool"}
#: Operators whose results are some of the values that they read. ReduceMax is none: onnxruntime is slower at it in 8 bits.
SELECTING = {"Gather", "Slice"}
_SPREADING = {"DepthToSpace", "Expand", "Tile"}
# and which of their inputs are data
_MOVERS = {
    "Concat": slice(None),
    **dict.fromkeys(("Resize", "Split", *sorted(SELECTING | _SPREADING)), slice(1)),
}
# onnxruntime computes them in 8 bits wherever all they read and all that reads them has such
FUSED = {*_JOINS, *_MOVERS} - {"Split"}
_STREAM = {*_JOINS, *_FOLLOWERS, *_MOVERS, "Pad"}
_LAST = {
    "Flatten",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Identity",
    "Softmax",
    "LogSoftmax",
    "Sigmoid",
}


@dataclass
class Choice:
    """Operators to quantize.

    Attributes:
        nodes: Names of all nodes onnxruntime may touch.
        weighted: Those with weights, the point of it all: name to operator.
        left: Operators with weights that stay float: name to (operator, reason).
    """

    nodes: list[str] = field(default_factory=list)
    weighted: dict[str, str] = field(default_factory=dict)
    left: dict[str, tuple[str, str]] = field(default_factory=dict)

    def reached(self, model: onnx.ModelProto) -> float:
        """Returns the share of the weights, by elements, that the chosen operators hold."""
        sizes = {entry.name: math.prod(entry.dims) for entry in model.graph.initializer}
        chosen = left = 0
        for node in model.graph.node:
            held = sum(sizes.get(name, 0) for name in node.input)
            chosen += held if node.name in self.weighted else 0
            left += held if node.name in self.left else 0
        return chosen / max(chosen + left, 1)


def choose(
    model: onnx.ModelProto,
    excluded: Callable[[str], bool],
    *,
    static: bool,
    stay: Mapping[str, str] = MappingProxyType({}),
) -> Choice:
    """Chooses operators for 8-bit arithmetic.

    Operators with constant float weights are quantized; so is what merely passes their 8-bit results on, to other
    8-bit arithmetic where it is joined or split, and elementwise arithmetic inside a stream of convolutions. Softmax,
    normalisations and products of two activations stay float: they are where 8 bits cost accuracy, and on a CPU they gain nothing.

    Args:
        model: A model whose nodes have unique names.
        excluded: Whether a node or tensor name is to be left alone.
        static: Whether activations will have constant scales.
        stay: Nodes, by name, that stay float as well, and why.
    """
    choice = Choice()
    weights = {entry.name: entry for entry in model.graph.initializer}
    known = _with_casts(weights, model.graph)
    producers = {output: node for node in model.graph.node for output in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    results = _results(model.graph, producers, readers)
    # what is read in bodies is not rounded there: an activation that only its range stands for would be gone
    captured = {name for node in model.graph.node for name in read_by(node) if name not in node.input}
    for node in model.graph.node:
        reason = _why_float(node, known, static=static)
        if reason is None and any(map(excluded, _names(node))):
            reason = "excluded"
        if reason is None:
            reason = stay.get(node.name)
        if reason is None:
            choice.weighted[node.name] = node.op_type
            choice.nodes.append(node.name)
        elif reason:
            choice.left[node.name] = (node.op_type, reason)
        elif (
            static
            and results.isdisjoint(node.output)
            and captured.isdisjoint((*node.input, *node.output))
            and node.name not in stay
            and _may_follow(node, producers, readers, weights, choice.weighted)
            and not any(map(excluded, _names(node)))
        ):
            choice.nodes.append(node.name)
    for name, operator in _inside(model.graph, known, static=static):
        choice.left[name] = (operator, "inside a control-flow body")
    return choice


def needs_of(graph: onnx.GraphProto, choice: Choice) -> dict[str, set[str]]:
    """Says for each chosen operator which others have to be chosen for it to be: those with weights whose results it passes on.

    Args:
        graph: The graph, in topological order.
        choice: What `choose` made of it, or less.
    """
    chosen, needs = set(choice.nodes), dict[str, set[str]]()
    constants = {entry.name for entry in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.name not in chosen:
            continue
        before: set[str | None] = set()
        if node.op_type in _FOLLOWERS:  # as what makes its input
            maker = producers.get(node.input[0])
            before |= set() if maker is None else needs.get(maker.name) or {maker.name}
        elif node.name not in choice.weighted:
            before |= {
                _convolution_before(name, producers) for name in data_of(node) if name not in constants
            }
        needs[node.name] = {name for name in before if name in chosen}
    return needs


def read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Yields what a node reads, also inside its bodies (their own tensors have no names of the main graph)."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for body in [attribute.g, *attribute.graphs]:
            for inner in body.node:
                yield from read_by(inner)
            yield from (output.name for output in body.output)


def _names(node: onnx.NodeProto) -> Iterable[str]:
    return [name for name in (node.name, *node.input, *node.output) if name]


def _why_float(node: onnx.NodeProto, weights: Mapping[str, TensorProto], *, static: bool) -> str | None:
    """Says why a node with weights stays float; None if it need not, empty if it has no weights to speak of."""
    if node.domain not in ("", "ai.onnx"):
        return ""
    if node.op_type in _NEVER:
        if node.op_type == "LSTM" and not static:
            return (
                None if all(name in weights for name in node.input[1:3]) else "its weights are not constant"
            )
        return f"onnxruntime has no {'' if static else 'dynamic '}8-bit {node.op_type}"
    position = _WEIGHT_INPUT.get(node.op_type)
    if position is None:
        return ""
    weight = weights.get(node.input[position])
    if node.op_type == "Gather":
        if weight is None or len(weight.dims) != 2 or weight.data_type != TensorProto.FLOAT:
            return ""
        return None if math.prod(weight.dims) >= _SMALLEST_TABLE else ""
    if weight is None:
        if node.op_type in ("MatMul", "Gemm") and node.input[0] in weights:
            return "its constant is on the left"
        return "" if node.op_type == "MatMul" else "its weights are not constant"  # a product of activations
    if weight.data_type != TensorProto.FLOAT:
        return f"its weights are {TensorProto.DataType.Name(weight.data_type).lower()}"
    return _why_unusable(node, weight, weights, static=static)


def _why_unusable(
    node: onnx.NodeProto, weight: TensorProto, weights: Mapping[str, TensorProto], *, static: bool
) -> str | None:
    if node.op_type == "MatMul" and len(weight.dims) != 2:
        return f"its weights have {len(weight.dims)} axes, the 8-bit kernel takes 2"
    if node.op_type == "Gemm":
        bias = weights.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if len(node.input) > 2 and node.input[2] and (bias is None or len(bias.dims) != 1):
            return "its bias is not a constant vector"
        if _attribute(node, "transA", 0):
            return "it transposes its input"
    if node.op_type == "ConvTranspose" and _attribute(node, "group", 1) != 1:
        return "it is grouped: its output channels are no axis of its weights"
    if not static and node.op_type in ("Conv", "ConvTranspose"):
        return "convolutions with scales computed at run time are slower than float; quantize with data"
    return None


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    """Returns a number among a node's attributes."""
    found = [onnx.helper.get_attribute_value(each) for each in node.attribute if each.name == name]
    return float(found[0]) if found else default


def _may_follow(
    node: onnx.NodeProto,
    producers: dict[str, onnx.NodeProto],
    readers: dict[str, list[onnx.NodeProto]],
    weights: dict[str, TensorProto],
    quantized: Collection[str],
) -> bool:
    if node.op_type in _FOLLOWERS:
        return True
    if node.op_type in _MOVERS:
        if not _moves_integers(node) or not _reaches_integers(node, readers):
            return False
    elif node.op_type not in _JOINS:
        return False
    data = [name for name in data_of(node) if name not in weights]
    return bool(data) and all(_convolution_before(name, producers) in quantized for name in data)


def _moves_integers(node: onnx.NodeProto) -> bool:
    """Tells whether onnxruntime moves 8-bit values as they are; a Resize that interpolates computes in float."""
    modes = [each.s for each in node.attribute if each.name == "mode"]
    return node.op_type != "Resize" or modes in ([], [b"nearest"])


def _reaches_integers(node: onnx.NodeProto, readers: dict[str, list[onnx.NodeProto]]) -> bool:
    """Tells whether what is moved ends in 8-bit arithmetic somewhere; if not, rounding it again would be in vain."""
    waiting, seen = [node], set()
    while waiting:
        for name in waiting.pop().output:
            for reader in readers.get(name, []):
                if reader.op_type in _WEIGHT_INPUT or reader.op_type in _JOINS:
                    return True
                if reader.op_type in {*_MOVERS, *_FOLLOWERS} and reader.name not in seen:
                    seen.add(reader.name)
                    waiting.append(reader)
    return False


def _results(
    graph: onnx.GraphProto,
    producers: dict[str, onnx.NodeProto],
    readers: Mapping[str, Sequence[onnx.NodeProto]],
) -> set[str]:
    """Returns the outputs, and the tensors that become outputs without any arithmetic that rounding could hide in.

    What is only moved there, put together with others say, has no other reader: features that more is made of are rounded.
    """
    results: set[str] = set()
    waiting = [output.name for output in graph.output]
    while waiting:
        name = waiting.pop()
        if name in results:
            continue
        results.add(name)
        node = producers.get(name)
        if node is None:
            continue
        if node.op_type in _LAST:
            waiting.append(node.input[0])
        elif node.op_type in _MOVERS or node.op_type == "Slice":
            moved = node.input[_MOVERS.get(node.op_type, slice(1))]
            waiting += [each for each in moved if len(readers.get(each, ())) == 1]
    return results


def _convolution_before(name: str, producers: Mapping[str, onnx.NodeProto]) -> str | None:
    """Returns the convolution that a tensor comes out of, straight or by elementwise operators and the like; None if there is none."""
    node = producers.get(name)
    while node is not None and node.op_type not in ("Conv", "ConvTranspose"):
        node = producers.get(node.input[0]) if node.op_type in _STREAM else None
    return None if node is None else node.name


def data_of(node: onnx.NodeProto) -> list[str]:
    """Returns what of a node's inputs has to come in 8 bits for it to have them, constants aside."""
    return list(node.input[_MOVERS.get(node.op_type, slice(None))])


def _with_casts(weights: Mapping[str, TensorProto], graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """Returns constants also by the names of what those of other types than float are cast to."""
    others = {name for name, entry in weights.items() if entry.data_type != TensorProto.FLOAT}
    casts = [node for node in graph.node if node.op_type == "Cast" and node.input[0] in others]
    return {**weights, **{node.output[0]: weights[node.input[0]] for node in casts}}


def _inside(
    graph: onnx.GraphProto, weights: Mapping[str, TensorProto], *, static: bool
) -> Iterator[tuple[str, str]]:
    """Yields the weighted operators of all bodies inside the nodes of a graph; these see its constants."""
    for node in graph.node:
        for attribute in node.attribute:
            for body in [attribute.g, *attribute.graphs]:
                own = {entry.name: entry for entry in body.initializer}
                known = _with_casts({**weights, **own}, body)
                for inner in body.node:
                    if _why_float(inner, known, static=static) != "":
                        yield inner.name or inner.output[0], inner.op_type
                yield from _inside(body, known, static=static)
