"""A model of which some operators are quantized, put together from the float model and the one quantized as a whole.

Quantizing anew with other operators left in float takes many times as long as putting together what is there already. It is not
quite the same: a tensor that a quantized operator makes is rounded for all who read it, one that only a quantized operator reads is
rounded for that one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import onnx

from surgeon_passes.quantizing.clipped import keep_integer
from surgeon_passes.quantizing.keep import keep_float
from surgeon_passes.quantizing.prepare import sort_nodes


class Parts:
    """Both models, taken apart once.

    Args:
        model: The float model, whose nodes have names.
        quantized: The same model with QuantizeLinear and DequantizeLinear, or dynamic quantization; nodes keep their names or at
            least the names of what they put out.
        nodes: Which nodes may be quantized; the weighted ones among them are said for each model, the others go with the
            last weighted one before them.
        weighted: The weighted ones.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        quantized: onnx.ModelProto,
        nodes: Collection[str],
        weighted: Collection[str],
    ) -> None:
        self.model = model
        self.known = {entry.name for entry in model.graph.input}
        self.known |= {output for node in model.graph.node for output in node.output if output}
        self.other = _renamed(quantized, model)
        self.makers = {output: node for node in self.other.graph.node for output in node.output if output}
        self.named = {node.name: node for node in self.other.graph.node}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.other.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.owners = _owners(model.graph.node, set(nodes), set(weighted))

    def with_quantized(self, names: Collection[str]) -> onnx.ModelProto:
        """Put a model together.

        Args:
            names: The weighted operators that are quantized.
        """
        chosen = [node for node in self.model.graph.node if self.owners.get(node.name) in names]
        taken = _Taken(self)
        for node in chosen:
            taken.take(self.named.get(node.name) or self.makers.get(node.output[0]))
        result = onnx.ModelProto()
        result.CopyFrom(self.model)
        del result.graph.node[:]
        gone = {node.name for node in chosen}
        for node in self.model.graph.node:
            if node.name in gone or taken.made & set(node.output):
                continue
            kept = result.graph.node.add()
            kept.CopyFrom(node)
            kept.input[:] = [taken.rounded.get(name, name) for name in node.input]
        result.graph.node.extend(taken.nodes.values())
        present = {entry.name for entry in self.model.graph.initializer}
        read = {name for node in taken.nodes.values() for name in node.input}
        result.graph.initializer.extend(
            entry for entry in self.other.graph.initializer if entry.name in read - present
        )
        domains = {entry.domain for entry in result.opset_import}
        result.opset_import.extend(entry for entry in self.other.opset_import if entry.domain not in domains)
        del result.graph.value_info[:]
        sort_nodes(result)
        keep_float(result)
        keep_integer(result)
        return result


@dataclass
class _Taken:
    """Nodes of the quantized model, with what they need up to tensors that the float model has as well."""

    parts: Parts
    nodes: dict[str, onnx.NodeProto] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)
    rounded: dict[str, str] = field(default_factory=dict)

    def take(self, node: onnx.NodeProto | None) -> None:
        """Take a node, what it reads, and how its results are rounded."""
        if node is None:  # it is part of another by now, as a Relu is that a range from zero stands for
            return
        self._needed(node)
        for output in node.output:
            self._round(output)

    def _needed(self, node: onnx.NodeProto) -> None:
        waiting = [node]
        while waiting:
            each = waiting.pop()
            if each.output[0] in self.nodes:
                continue
            self.nodes[each.output[0]] = each
            self.made |= set(each.output) & self.parts.known
            makers = self.parts.makers
            waiting += [makers[n] for n in each.input if n in makers and n not in self.parts.known]

    def _round(self, name: str) -> None:
        for quantize in self.parts.readers.get(name, ()):
            if quantize.op_type != "QuantizeLinear" or quantize.input[0] != name:
                continue
            for dequantize in self.parts.readers.get(quantize.output[0], ()):
                if dequantize.op_type == "DequantizeLinear" and dequantize.input[0] == quantize.output[0]:
                    self._needed(dequantize)
                    if name in self.parts.known:
                        self.rounded.setdefault(name, dequantize.output[0])


def _owners(nodes: Iterable[onnx.NodeProto], among: set[str], weighted: set[str]) -> dict[str, str]:
    """For each node that may be quantized the last weighted one it follows, itself for those."""
    owners: dict[str, str] = {}
    order: dict[str, int] = {}
    makers: dict[str, str] = {}
    for index, node in enumerate(nodes):
        if node.name in weighted:
            owners[node.name], order[node.name] = node.name, index
        elif node.name in among:
            before = [owners[makers[name]] for name in node.input if makers.get(name) in owners]
            if before:
                owners[node.name] = max(before, key=order.__getitem__)
        makers.update(dict.fromkeys(node.output, node.name))
    return owners


def _renamed(quantized: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which nothing else has the name of a constant of the float model, as integers of a bias have."""
    copy = onnx.ModelProto()
    copy.CopyFrom(quantized)
    ours = {entry.name: entry for entry in model.graph.initializer}
    names = {
        entry.name: f"{entry.name}_of_quantized"
        for entry in copy.graph.initializer
        if entry.name in ours and entry.SerializeToString() != ours[entry.name].SerializeToString()
    }
    computed = [name for node in copy.graph.node for name in node.output if name in ours]
    names.update({name: f"{name}_of_quantized" for name in computed})
    for entry in copy.graph.initializer:
        entry.name = names.get(entry.name, entry.name)
    for node in copy.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    return copy
