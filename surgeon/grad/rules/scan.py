"""Scan: the way back is a Scan over the same steps in the opposite order, given the state that each began with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import onnx_graphsurgeon as gs

from surgeon.grad.differentiate import FLOATS, Backward, alive
from surgeon.grad.registry import derivative
from surgeon.grad.tape import Value
from surgeon.graph.order import bodies, ordered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surgeon.grad.step import Step
    from surgeon.grad.tape import Tape

    Gradients: TypeAlias = Sequence[Value | None]


class Stream(NamedTuple):
    """A tensor that steps walk along an axis; ``direction`` is 1 where they begin at its end."""

    axis: int
    direction: int
    inside: gs.Tensor
    outside: Value


@derivative("Scan", since=9)
def scan(op: Step, *inputs: Value) -> Gradients:
    """https://onnx.ai/onnx/operators/onnx__Scan.html; its body is differentiated like any graph.

    Gradients with respect to states, and to what the body captures, are states of the way back.
    """
    back = _Return(op)
    walk = Backward(back.tape.graph, back.tape, [back.begins[k] for k in back.wanted])
    carried = [back.twin(k) for k in back.carried]
    for k, value in zip(back.carried, carried, strict=True):  # what is captured collects its own gradient
        walk.arrive(back.ends[k] if k < back.states else back.begins[k], value)
    streams = [back.state(k) for k in range(back.states)]
    streams += [back.stream("input", k, back.begins[k], inputs[k]) for k in back.scanned]
    for k, found in enumerate(op.arriving):
        if k >= back.states and found is not None:
            inside = back.tape.value(_twin(back.tape, back.ends[k]))
            walk.arrive(back.ends[k], inside)
            streams.append(back.stream("output", k, inside.tensor, found))
    walk.walk()
    why = next((walk.lost[id(t)] for k in back.wanted if id(t := back.begins[k]) in walk.lost), None)
    if why is not None:
        op.stop(f"in its body: {why}")
    slopes = [walk.total(back.begins[k]) or back.tape.value(back.begins[k]).zeros() for k in back.wanted]
    return back.written(carried, streams, slopes)


class _Return:
    """The Scan on the way back, while its body is made.

    Attributes:
        states: How many states the operator has.
        scanned: The inputs it walks, by index.
        tape: Where the body is written: its graph is a copy of the operator's own body.
        begins: What the body reads: tensors of the copy in place of the inputs, then what is captured.
        ends: The outputs of the copy.
        carried: What gradients are states of: indices of what is read.
        wanted: The same, then the walked inputs whose gradients are wanted.
    """

    def __init__(self, op: Step) -> None:
        body, count = op.node.attrs["body"], len(op.inputs)
        if any(bodies(node) for node in body.nodes):
            op.stop("there are bodies in its body")
        if len(op.node.outputs) != len(body.outputs):
            op.stop("it does not have all outputs of its body")
        self.op, self.body = op, body
        self.states = count - int(op.attribute("num_scan_inputs"))
        self.scanned = range(self.states, count)
        graph = op.tape.graph
        self.tape = op.tape.inside(gs.Graph(opset=graph.opset, import_domains=graph.import_domains))
        copies = _copied(body, self.tape)
        self.begins = [*(copies[id(tensor)] for tensor in body.inputs), *op.reads[count:]]
        self.ends = [copies.get(id(tensor), tensor) for tensor in body.outputs]
        kinds = [op.shapes.dtypes.get(tensor.name) for tensor in self.begins]
        self.carried = [k for k in range(self.states) if kinds[k] in FLOATS]
        self.carried += [k for k in range(count, len(op.reads)) if id(op.reads[k]) in op.active]
        self.wanted = self.carried + [k for k in self.scanned if id(op.reads[k]) in op.active]

    def twin(self, index: int) -> Value:
        """A new input of the body, like one of those that are read."""
        return self.tape.value(_twin(self.tape, self.begins[index]))

    def stream(self, kind: str, index: int, inside: gs.Tensor, outside: Value) -> Stream:
        """How input or output ``index`` is walked."""
        axes, directions = (self.op.attribute(f"scan_{kind}_{each}") for each in ("axes", "directions"))
        place = index - self.states
        return Stream(axes[place] if axes else 0, directions[place] if directions else 0, inside, outside)

    def state(self, index: int) -> Stream:
        """The states that steps began with: one more output of the operator."""
        node, begin = self.op.node, self.body.inputs[index]
        dtype = self.op.tape.value(begin).dtype
        inside, outside = (gs.Variable(self.op.tape.name("state"), dtype) for _ in range(2))
        self.body.nodes.append(gs.Node("Identity", inside.name, {}, [begin], [inside]))
        self.body.outputs.append(inside)
        node.outputs.append(outside)
        for name in ("scan_output_axes", "scan_output_directions"):
            if node.attrs.get(name):
                node.attrs[name] = [*node.attrs[name], 0]
        return Stream(0, 0, self.begins[index], self.op.tape.value(outside))

    def written(
        self, carried: Sequence[Value], streams: Sequence[Stream], slopes: Sequence[Value]
    ) -> Gradients:
        """The node, and from its outputs the gradient with respect to each tensor that is read."""
        op, tape = self.op, self.tape
        made = {id(tensor) for node in tape.nodes for tensor in node.outputs}
        ends: list[gs.Tensor] = []
        for k, slope in zip(self.wanted, slopes, strict=True):
            # onnxruntime 1.32 mixes up names when it removes an Identity in front of an output that is read elsewhere
            again = id(slope.tensor) not in made or any(slope.tensor is end for end in ends)
            end = tape.op("Identity", slope).tensor if again else slope.tensor
            ends.append(end)
            end.shape = _sizes(tape, self.begins[k])
        graph = gs.Graph(
            nodes=alive([*tape.graph.nodes, *tape.nodes], ends),
            inputs=[*(value.tensor for value in carried), *(each.inside for each in streams)],
            outputs=ends,
            name=tape.name("body"),
            opset=tape.graph.opset,
            import_domains=tape.graph.import_domains,
        )
        firsts = [self._first(k) for k in self.carried]
        walked = {id(each.inside): each for each in streams}
        outward = [walked[id(self.begins[k])] for k in self.wanted[len(carried) :]]
        found = op.tape.ops(
            "Scan",
            *firsts,
            *(each.outside for each in streams),
            outputs=len(ends),
            dtype=slopes[0].dtype,
            body=graph,
            num_scan_inputs=len(streams),
            scan_input_axes=[each.axis for each in streams],
            scan_input_directions=[1 - each.direction for each in streams],
            scan_output_axes=[each.axis for each in outward],
            scan_output_directions=[1 - each.direction for each in outward],
        )
        of = dict(zip(self.wanted, found, strict=True))
        return [of.get(k) for k in range(len(op.reads))]

    def _first(self, index: int) -> Value:
        arrived = self.op.arriving[index] if index < self.states else None
        return self.op.tape.value(self.op.reads[index]).zeros() if arrived is None else arrived


def _copied(body: gs.Graph, tape: Tape) -> dict[int, gs.Tensor]:
    """Copy the nodes of a body to a tape's graph; returns the copies of its own tensors, by identity."""
    copies = {id(tensor): _twin(tape, tensor) for tensor in body.inputs}
    for node in ordered(body.nodes):
        copies |= {id(tensor): _twin(tape, tensor) for tensor in node.outputs if tensor.name}
        inputs, outputs = ([copies.get(id(t), t) for t in side] for side in (node.inputs, node.outputs))
        tape.graph.nodes.append(gs.Node(node.op, node.name, dict(node.attrs), inputs, outputs, node.domain))
    return copies


def _twin(tape: Tape, tensor: gs.Tensor) -> gs.Tensor:
    """A tensor of another name of which the same is known."""
    shapes = tape.shapes
    twin = gs.Variable(tape.name(tensor.name), tape.value(tensor).dtype, _sizes(tape, tensor))
    tables: list[dict[str, Any]] = [shapes.dims, shapes.dtypes, shapes.dynamic, shapes.values]
    for table in tables:
        if tensor.name in table:
            table[twin.name] = table[tensor.name]
    return twin


def _sizes(tape: Tape, tensor: gs.Tensor) -> list[int | None] | None:
    """The shape as far as it is the same for all inputs; onnxruntime wants to know at least the rank."""
    dims, dynamic = tape.shapes.dims.get(tensor.name), tape.shapes.dynamic.get(tensor.name, ())
    return (
        None if dims is None else [None if open_ else size for size, open_ in zip(dims, dynamic, strict=True)]
    )
