"""Reverse-mode differentiation of a graph, as a graph: forward nodes, then the vector-Jacobian product of each.

See Griewank and Walther, Evaluating Derivatives (2008), chapter 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from surgeon.errors import UnsupportedModelError
from surgeon.grad.expand import expanded
from surgeon.grad.recurrent import written_out
from surgeon.grad.registry import DERIVATIVES
from surgeon.grad.step import Step
from surgeon.grad.tape import Tape, Value
from surgeon.grad.windows import floored
from surgeon.graph.copy import copy_of
from surgeon.graph.order import every_node, needs, ordered
from surgeon.graph.schemas import opsets, standard
from surgeon.graph.shapes import infer
from surgeon.ops.operator import Barrier

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from surgeon.grad.registry import DerivativeRule

FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16})


@dataclass(frozen=True)
class Gradient:
    """A graph that computes a loss and its gradients.

    Attributes:
        graph: Its inputs are those of the original and, by name, the constants that gradients were asked for; its outputs
            the loss, what was asked to be kept, and the gradients.
        loss: The name of the loss.
        of: The output that holds the gradient, by the tensor it belongs to.
        stopped: Tensors without a gradient, and why: no path to the loss, or none that can be differentiated.
        partial: Tensors part of whose influence on the loss cannot be differentiated and is left out, and why.
    """

    graph: gs.Graph
    loss: str
    of: Mapping[str, str]
    stopped: Mapping[str, str] = field(default_factory=dict)
    partial: Mapping[str, str] = field(default_factory=dict)


def gradient(
    graph: gs.Graph,
    loss: str | Callable[[Tape], Value],
    wrt: Sequence[str],
    *,
    inputs: Sequence[str] = (),
    also: Sequence[str] = (),
    sizes: Mapping[str, int] | None = None,
) -> Gradient:
    """Differentiate a graph.

    Args:
        graph: It is not changed. What its dynamic dimensions are stays open.
        loss: The name of a tensor with one element, or what writes it: called with a `Tape` on the copy.
        wrt: Names of constants, inputs or intermediate tensors.
        inputs: Further constants to become inputs.
        also: Further tensors to be outputs.
        sizes: Probe sizes for dynamic dimensions, see `surgeon.graph.shapes.infer`.

    Raises:
        UnsupportedModelError: A name is not in the graph, or names something that is not float.
    """
    work = expanded(written_out(copy_of(graph), sizes))
    tensors = {tensor.name: tensor for tensor in _tensors(work)}
    for name in (*wrt, *inputs, *also):
        if name not in tensors:
            raise UnsupportedModelError("no such tensor", where=name)
    given = dict.fromkeys((*wrt, *inputs))
    constants = [tensors[name] for name in given if isinstance(tensors[name], gs.Constant)]
    for tensor in constants:
        shape, dtype = tensor.shape, tensor.dtype
        tensor.to_variable(dtype, list(shape))
        tensor.type = "tensor_type"  # which graphsurgeon forgets
    work.inputs = [*work.inputs, *constants]
    shapes = infer(work, sizes)
    floored(work, shapes)
    tape = Tape(work, shapes)
    if callable(loss):
        end = loss(tape).tensor
        work.nodes = ordered([*work.nodes, *tape.nodes])
        tape.nodes = []
        tape.shapes = infer(work, sizes)
    else:
        end = tensors[loss]
    for name in wrt:
        if tape.shapes.dtypes.get(name) not in FLOATS:
            raise UnsupportedModelError("gradients are taken with respect to floats only", where=name)
    back = Backward(work, tape, [tensors[name] for name in wrt])
    back.begin(end)
    back.walk()
    return _finished(work, back, end, wrt, [tensors[name] for name in also])


def _tensors(graph: gs.Graph) -> list[gs.Tensor]:
    return [
        *graph.inputs,
        *(t for node in every_node(graph) for t in (*node.inputs, *node.outputs) if t.name),
    ]


class Backward:
    """The way back through one graph, or one body.

    Attributes:
        active: Tensors that gradients are wanted of, and what depends on them; by identity.
        lost: Why part of a tensor's gradient is not known, by identity.
    """

    def __init__(self, graph: gs.Graph, tape: Tape, wrt: Sequence[gs.Tensor]) -> None:
        self.graph, self.tape = graph, tape
        self.versions = opsets(graph)
        self.active = self._behind(wrt)
        self.arrived: dict[int, list[Value]] = {}
        self.lost: dict[int, str] = {}

    def _behind(self, wrt: Sequence[gs.Tensor]) -> set[int]:
        """Float tensors that depend on what is asked for, by identity."""
        found = {id(tensor) for tensor in wrt}
        for node in self.graph.nodes:
            read = [tensor for tensor in needs(node) if id(tensor) in found]
            if read:
                found |= {id(t) for t in node.outputs if self._is_float(t) or self._is_rounded(node, t, read)}
        return found

    def _is_rounded(self, node: gs.Node, output: gs.Tensor, read: Sequence[gs.Tensor]) -> bool:
        """Whether an integer output stands for real numbers: it was rounded here, or is made of what was."""
        kinds = self.tape.shapes.dtypes
        if any(kinds.get(t.name) == kinds.get(output.name) for t in read if not self._is_float(t)):
            return True
        rule = self._rule(node)
        return rule is not None and rule.rounds and output is node.outputs[0]

    def _rule(self, node: gs.Node) -> DerivativeRule | None:
        domain = standard(node.domain)
        return DERIVATIVES.find(node.op, domain, self.versions.get(domain, 1))

    def _is_float(self, tensor: gs.Tensor) -> bool:
        return self.tape.shapes.dtypes.get(tensor.name) in FLOATS

    def total(self, tensor: gs.Tensor) -> Value | None:
        """The gradient with respect to a tensor, summed over all who read it."""
        values = self.arrived.get(id(tensor))
        if not values:
            return None
        self.arrived[id(tensor)] = [self.tape.total(values)]
        return self.arrived[id(tensor)][0]

    def begin(self, end: gs.Tensor) -> None:
        """Start from a loss.

        Raises:
            UnsupportedModelError: It has more than one element.
        """
        loss, dims = self.tape.value(end), self.tape.shapes.dims.get(end.name)
        if dims is None or math.prod(dims) != 1:
            raise UnsupportedModelError(f"a loss has one element, not the shape {dims}", where=end.name)
        self.arrive(end, self.tape.constant(np.ones(dims, loss.dtype)))

    def arrive(self, tensor: gs.Tensor, gradient: Value) -> None:
        """Add to the gradient with respect to a tensor."""
        self.arrived.setdefault(id(tensor), []).append(gradient)

    def walk(self) -> None:
        """Walk from where gradients arrived to the inputs."""
        for node in reversed(list(self.graph.nodes)):
            wanted = [tensor for tensor in needs(node) if id(tensor) in self.active]
            reached = any(id(t) in self.arrived for t in node.outputs)
            unsure = next((self.lost[id(t)] for t in node.outputs if id(t) in self.lost), None)
            if not wanted or not (reached or unsure):
                continue
            if unsure is not None:
                self._lose(wanted, unsure)
            if reached:
                self._back(node, wanted)

    def _back(self, node: gs.Node, wanted: Sequence[gs.Tensor]) -> None:
        rule, opset = self._rule(node), self.versions.get(standard(node.domain), 1)
        step = Step(node, opset, self.tape, [self.total(tensor) for tensor in node.outputs], self.active)
        if rule is None:
            self._lose(wanted, f"{step.name}: the operator has no derivative rule")
            return
        try:
            gradients = list(rule.function(step, *step.inputs))[: len(step.reads)]
        except Barrier as stop:
            self._lose(wanted, f"{step.name}: {stop}")
            return
        gradients += [None] * (len(step.reads) - len(gradients))
        for index, (tensor, found) in enumerate(zip(step.reads, gradients, strict=True)):
            if id(tensor) not in self.active:
                continue
            if found is None:
                where = f"input {index}" if index < len(node.inputs) else "what its body reads"
                self._lose([tensor], f"{step.name}: no gradient reaches {where}")
                continue
            self.arrive(tensor, step.unbroadcast(found, index) if rule.broadcasts else found)

    def _lose(self, tensors: Collection[gs.Tensor], why: str) -> None:
        for tensor in tensors:
            self.lost.setdefault(id(tensor), why)


def _finished(
    graph: gs.Graph, back: Backward, end: gs.Tensor, wrt: Sequence[str], also: Sequence[gs.Tensor]
) -> Gradient:
    """Outputs are named, and what none of them needs is left out."""
    tensors = {tensor.name: tensor for tensor in _tensors(graph)}
    of, outputs, stopped, partial = {}, [], {}, {}
    for name in wrt:
        tensor = tensors[name]
        found, why = back.total(tensor), back.lost.get(id(tensor))
        if found is None:
            stopped[name] = why or "the loss does not depend on it"
            continue
        if why is not None:
            partial[name] = why
        named = gs.Variable(back.tape.name(f"of/{name}"), found.dtype)
        back.tape.nodes.append(gs.Node("Identity", named.name, {}, [found.tensor], [named]))
        of[name] = named.name
        outputs.append(named)
    nodes = alive([*graph.nodes, *back.tape.nodes], [end, *also, *outputs])
    result = gs.Graph(
        nodes=nodes,
        inputs=list(graph.inputs),
        outputs=[end, *also, *outputs],
        name=graph.name,
        opset=graph.opset,
        import_domains=graph.import_domains,
        ir_version=graph.ir_version,
    )
    return Gradient(result, end.name, of, stopped, partial)


def alive(nodes: Sequence[gs.Node], ends: Sequence[gs.Tensor]) -> list[gs.Node]:
    """Those of the nodes, which are in order, that tensors depend on."""
    wanted, kept = {id(tensor) for tensor in ends}, []
    for node in reversed(nodes):
        if any(id(tensor) in wanted for tensor in node.outputs):
            kept.append(node)
            wanted |= {id(tensor) for tensor in needs(node)}
    return kept[::-1]
