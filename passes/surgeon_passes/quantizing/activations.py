"""Which activations need a range, and which of them have the same one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx
from onnx import TensorProto

from surgeon_passes.quantizing.choose import SELECTING, Choice, read_by

#: A float result straight from the integer product is more accurate and saves a rounding.
UNROUNDED = ("MatMul", "Gemm")
# operators with the same values in their result as in their first input, in other places
_RESHAPING = frozenset(
    {
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Identity",
        "Reshape",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
#: What passes rounded values on unchanged to who judges them; what picks some of them shows no reader all of them.
PASSING = _RESHAPING | {"MaxPool"}
_CLIPPING = frozenset({"Clip", "Relu"})
_ROUNDABLE = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16})


@dataclass(frozen=True)
class Activations:
    """The float tensors of a model's main graph that onnxruntime's quantizer can round.

    Attributes:
        types: Their element types.
        readers: The nodes that read a tensor, by its name.
        outputs: Names of the model's outputs.
        leaders: Which tensor the range of another comes from. What a Relu or Clip alone reads has the range of what
            that makes of it; what is only reshaped has the range of what it was before, and so has what is selected in
            8 bits.
    """

    types: Mapping[str, int]
    readers: Mapping[str, list[onnx.NodeProto]]
    outputs: frozenset[str]
    leaders: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(model: onnx.ModelProto, choice: Choice | None = None) -> Activations:
        """Reads a model whose tensors have inferred types, and of which the chosen nodes may have 8 bits."""
        chosen = set(choice.nodes) if choice is not None else set[str]()
        graph = model.graph
        constants = {entry.name for entry in graph.initializer}
        types = {
            info.name: info.type.tensor_type.elem_type
            for info in (*graph.value_info, *graph.output, *graph.input)
            if info.name not in constants and info.type.tensor_type.elem_type in _ROUNDABLE
        }
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in dict.fromkeys(read_by(node)):
                readers.setdefault(name, []).append(node)
        outputs = frozenset(output.name for output in graph.output)
        leaders: dict[str, str] = {}
        for node in graph.node:
            if node.domain not in ("", "ai.onnx") or not node.input:
                continue
            source, target = node.input[0], node.output[0]
            if source not in types or target not in types:
                continue
            if node.op_type in _CLIPPING and len(readers[source]) == 1 and source not in outputs:
                leaders[source] = target
            elif node.op_type in _RESHAPING or (node.op_type in SELECTING and node.name in chosen):
                leaders.setdefault(target, source)
        return Activations(types, readers, outputs, leaders)

    def leader(self, name: str) -> str:
        """Returns the tensor whose range ``name`` has."""
        while name in self.leaders:
            name = self.leaders[name]
        return name

    def rounded(self, node: onnx.NodeProto) -> Iterator[str]:
        """Yields the tensors that are rounded where ``node`` is quantized."""
        results = () if node.op_type in UNROUNDED else tuple(node.output)
        yield from (name for name in (*node.input, *results) if name in self.types)

    def needed(self, model: onnx.ModelProto, choice: Choice) -> list[str]:
        """Returns the leaders of all tensors that the chosen nodes round, in order of the graph."""
        chosen = set(choice.nodes)
        found = (name for node in model.graph.node if node.name in chosen for name in self.rounded(node))
        return list(dict.fromkeys(self.leader(name) for name in found))
