"""The numbers that weights are stored as: floats, or the integers that quantized weights are made of.

A weight is what an operator multiplies by, where that depends on constants only. What is no constant itself is computed,
in onnxruntime: so a table that is looked up in, or indices of a few bits that are unpacked, count as the weight that
comes out. Where the last step scales integers, the integers count, and their zero point is zero.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from surgeon.graph import sessions
from surgeon.graph.order import bodies, every_node
from surgeon.graph.save import to_model
from surgeon.graph.weights import data_type, peek
from surgeon.quantized import spread
from surgeon.sizes.places import NBITS, PLACES
from surgeon.stats.weight import sortable

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from numpy.typing import NDArray

    from surgeon.sizes.places import Place

    Array = NDArray[Any]
    Meaning = Callable[[Array], tuple[Array, Array]]  # numbers, and what is zero among them

# what puts each number somewhere, once
_ARRANGING = frozenset({"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
_NONE = np.zeros((), np.int8)
_FLOATS = frozenset(getattr(onnx.TensorProto, name) for name in ("FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16"))


@dataclass(frozen=True)
class Stored:
    """One weight of a graph.

    Attributes:
        name: The constant that holds it, or the tensor that is computed from several.
        constants: What it is made of and no weight before was: also scales, zero points and tables.
        values: The numbers, in no particular shape.
        zero: What stands for zero among them; broadcasts to ``values``.
    """

    name: str
    constants: tuple[gs.Constant, ...]
    values: Array
    zero: Array


@dataclass(frozen=True)
class _Weight:
    """A weight before it is read: the tensor with its numbers, what they mean, and all that it is made of."""

    numbers: gs.Tensor
    meaning: Meaning
    made_of: tuple[gs.Tensor, ...]


def stored_weights(graph: gs.Graph) -> Iterator[Stored]:
    """The weights of a graph and of the bodies in it, one at a time, each once, in the order they are used in.

    Raises:
        UnsupportedModelError: A weight cannot be read, or not be computed.
    """
    folding = _Folding(graph)
    weights: set[Hashable] = set()
    counted: set[int] = set()
    for node in every_node(graph):
        for weight in _weights_of(node, folding):
            found = weight.numbers
            if id(found) in weights:
                continue
            numbers = folding.value(found)
            keys = {id(found), _identity(found, numbers, folding)}
            if weights.isdisjoint(keys):
                values, zero = weight.meaning(numbers)
                constants = [each for tensor in weight.made_of for each in folding.constants(tensor)]
                fresh = tuple(each for each in constants if id(each) not in counted)
                counted |= {id(each) for each in fresh}
                name = (found if isinstance(found, gs.Constant) else weight.made_of[0]).name
                yield Stored(name, fresh, sortable(values), sortable(zero))
            weights |= keys


def _identity(found: gs.Tensor, numbers: Array, folding: _Folding) -> Hashable:
    """The same for what is computed in several places, such as the branches of an If, from the same to the same."""
    if isinstance(found, gs.Constant):
        return id(found)
    sources = {id(each) for each in folding.constants(found) if data_type(each) != onnx.TensorProto.INT64}
    return frozenset(sources), hashlib.sha256(numbers.tobytes()).digest()


def _weights_of(node: gs.Node, folding: _Folding) -> Iterator[_Weight]:
    domain = "" if node.domain in (None, "ai.onnx") else node.domain
    if (domain, node.op) == NBITS:
        made_of = tuple(tensor for tensor in node.inputs[1:4] if tensor.name)
        if all(map(folding.is_constant, made_of)):
            yield _Weight(node.inputs[1], lambda values: _of_blocks(node, values, folding), made_of)
        return
    for place in PLACES.get((domain, node.op), ()):
        tensor = node.inputs[place.weight] if place.weight < len(node.inputs) else None
        if tensor is None or not folding.is_constant(tensor):
            continue
        weight = _of_integers(node, place, folding) if place.integers else _of_floats(tensor, folding)
        if weight is not None:
            yield weight


def _of_integers(node: gs.Node, place: Place, folding: _Folding) -> _Weight:
    """A weight that the operator itself reads as integers."""
    tensor, zero = node.inputs[place.weight], _given(node, place.zero)
    return _Weight(tensor, _with_zero(zero, place.axis, 0, folding), (tensor,))


def _of_floats(tensor: gs.Tensor, folding: _Folding) -> _Weight | None:
    """A weight that is read as floats, whatever it is stored as; None where it holds sizes or indices."""
    source = tensor
    while (maker := _maker(source)) is not None and maker.op in _ARRANGING:
        source = maker.inputs[0]
    if maker is None:
        is_float = data_type(source) in _FLOATS
        return _Weight(source, lambda values: (values, _NONE), (tensor,)) if is_float else None
    if maker.op == "DequantizeLinear":
        axis, block = int(maker.attrs.get("axis", 1)), int(maker.attrs.get("block_size", 0))
        meaning = _with_zero(_given(maker, 2), axis, block, folding)
        return _Weight(maker.inputs[0], meaning, (tensor,))
    return _scaled(maker, tensor, folding) or _Weight(source, lambda values: (values, _NONE), (tensor,))


def _scaled(node: gs.Node, tensor: gs.Tensor, folding: _Folding) -> _Weight | None:
    """A weight stored as ``(Cast(integers) - zero) * scale``, without zero perhaps."""
    zero = _NONE
    last = _maker(node.inputs[0]) if node.op == "Mul" else None
    if last is not None and last.op == "Sub":
        zero = folding.value(last.inputs[1])
        last = _maker(last.inputs[0])
    if last is None or last.op != "Cast":
        return None
    if folding.value(last.inputs[0]).dtype.kind == "f":
        return None
    return _Weight(last.inputs[0], lambda values: (values, zero), (tensor,))


def _with_zero(zero: gs.Tensor | None, axis: int, block: int, folding: _Folding) -> Meaning:
    if zero is None:
        return lambda values: (values, _NONE)
    return lambda values: (values, spread(folding.value(zero), values.shape, axis, block))


def _of_blocks(node: gs.Node, values: Array, folding: _Folding) -> tuple[Array, Array]:
    """``[N, K]`` integers of a MatMulNBits and their zero points; the last block of a row may be padded.

    https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits
    """
    bits, block = int(node.attrs.get("bits", 4)), int(node.attrs["block_size"])
    rows, length = int(node.attrs["N"]), int(node.attrs["K"])
    blocks = -(-length // block)
    numbers = _unpacked(values.view(np.uint8).reshape(rows, -1), bits)[:, :length]
    given = _given(node, 3)
    if given is None:
        return numbers, np.asarray(2 ** (bits - 1))
    zeros = folding.value(given)
    zeros = _unpacked(zeros.reshape(rows, -1), bits) if zeros.dtype == np.uint8 else zeros.reshape(rows, -1)
    return numbers, np.repeat(sortable(zeros)[:, :blocks], block, axis=1)[:, :length]


def _unpacked(rows: Array, bits: int) -> Array:
    """``[rows, numbers]`` of the bytes ``[rows, bytes]``, in which numbers lie next to each other, low bits first."""
    stream = np.unpackbits(rows, axis=1, bitorder="little")
    whole = stream.shape[1] // bits * bits
    places = stream[:, :whole].reshape(len(rows), -1, bits)
    numbers: Array = (places << np.arange(bits, dtype=np.uint8)).sum(axis=2, dtype=np.uint8)
    return numbers


def _maker(tensor: gs.Tensor) -> gs.Node | None:
    return tensor.inputs[0] if tensor.inputs else None


def _given(node: gs.Node, index: int | None) -> gs.Tensor | None:
    """An input that may be left out."""
    if index is None or index >= len(node.inputs) or not node.inputs[index].name:
        return None
    return node.inputs[index]


class _Folding:
    """What of a graph depends on constants only, and its values."""

    def __init__(self, graph: gs.Graph) -> None:
        self.graph = graph
        self._nodes: dict[int, int] = {}  # the nodes that could be computed beforehand, and their order
        for place, node in enumerate(every_node(graph)):
            if (
                not bodies(node)
                and node.inputs
                and all(not t.name or self.is_constant(t) for t in node.inputs)
            ):
                self._nodes[id(node)] = place

    def is_constant(self, tensor: gs.Tensor) -> bool:
        """Whether a tensor depends on constants only."""
        maker = _maker(tensor)
        return isinstance(tensor, gs.Constant) or (maker is not None and id(maker) in self._nodes)

    def constants(self, tensor: gs.Tensor) -> list[gs.Constant]:
        """The constants that a tensor depends on, each once."""
        inputs = [tensor, *(each for node in self._makers(tensor) for each in node.inputs)]
        return list({id(each): each for each in inputs if isinstance(each, gs.Constant)}.values())

    def value(self, tensor: gs.Tensor) -> Array:
        """What a tensor that depends on constants only holds.

        Raises:
            UnsupportedModelError: onnxruntime cannot compute it.
        """
        if isinstance(tensor, gs.Constant):
            return peek(tensor)
        part = gs.Graph(
            self._makers(tensor),
            inputs=[],
            outputs=[tensor],
            opset=self.graph.opset,
            import_domains=self.graph.import_domains,
        )
        (value,) = sessions.run(sessions.session(to_model(part)), {})
        return value

    def _makers(self, tensor: gs.Tensor) -> list[gs.Node]:
        """The nodes that compute a tensor, in the order they run in."""
        found: dict[int, gs.Node] = {}
        pending = [tensor]
        while pending:
            maker = _maker(pending.pop())
            if maker is not None and id(maker) not in found:
                found[id(maker)] = maker
                pending += maker.inputs
        return sorted(found.values(), key=lambda node: self._nodes[id(node)])
