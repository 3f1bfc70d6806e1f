"""LSTM, GRU and RNN written out as Scan, whose derivative is known.

The product with the input is taken for all steps at once; a step adds the product with the state. See
https://onnx.ai/onnx/operators/onnx__LSTM.html for the equations and the order of the gates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.grad.tape import Tape, Value
from surgeon.graph.schemas import opsets, standard
from surgeon.graph.shapes import infer
from surgeon.ops.operator import Operator

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from surgeon.grad.tape import Size

    #: From what a step reads (the input's share, its states, its weights) its next states, the first of them its result.
    Cell: TypeAlias = "Callable[[Weights, Value, Sequence[Value]], list[Value]]"

LEAST = 9  # the opset from which Scan is what it is now
LEAST_MASKED = 11  # from which there is Range
HAS_OUTPUTS = 18  # from which Split is told its number of outputs
DIRECTIONS = {"forward": (0,), "reverse": (1,), "bidirectional": (0, 1)}
FUNCTIONS = {name.lower(): name for name in ("Relu", "Sigmoid", "Tanh")}
DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


class Weights(NamedTuple):
    """What the steps of one direction use.

    Attributes:
        recurrent: ``[hidden, gates × hidden]``.
        bias: Added to the last gate's product with the state, where a GRU resets after it.
        peepholes: Of an LSTM, for its gates i, o and f.
        functions: The activations' names.
    """

    recurrent: Value
    bias: Value | None
    peepholes: list[Value]
    functions: list[str]
    after: bool


def written_out(graph: gs.Graph, sizes: Mapping[str, int] | None = None) -> gs.Graph:
    """The graph with recurrent operators replaced, in place, but for those with a `refusal`."""
    opset = opsets(graph)[""]
    found = {id(node) for node in graph.nodes if node.op in DEFAULTS and not standard(node.domain)}
    if not found or opset < LEAST:
        return graph
    tape = Tape(graph, infer(graph, sizes), "unrolled")
    nodes: list[gs.Node] = []
    for node in list(graph.nodes):
        op = Operator(node, opset, tape.shapes)
        if id(node) not in found or refusal(op) is not None:
            nodes.append(node)
            continue
        outputs = list(node.outputs)
        values = _Layer(op, tape).outputs()
        node.outputs.clear()
        for tensor, value in zip(outputs, values, strict=False):
            if tensor.name:
                tape.nodes.append(gs.Node("Identity", tensor.name, {}, [value.tensor], [tensor]))
        node.inputs.clear()
        nodes += tape.nodes
        tape.nodes = []
    graph.nodes = nodes
    return graph


def refusal(op: Operator) -> str | None:
    """Why a recurrent operator is not written out."""
    names = _activations(op)
    if op.opset < LEAST or (op.has(4) and op.opset < LEAST_MASKED):
        return "it is not written out as Scan before opset 9, nor sequences of several lengths before 11"
    if op.attribute("clip"):
        return "its activations are clipped"
    if op.attribute("input_forget"):
        return "its input and forget gates are coupled"
    if any(name not in FUNCTIONS for name in names):
        return f"the activations {', '.join(names)}"
    if any(op.shapes.dims.get(op.node.inputs[index].name) is None for index in (0, 1, 2)):
        return "the shapes of its inputs are not known"
    return None


def _activations(op: Operator) -> list[str]:
    names = op.attribute("activations") or ()
    return [(name.decode() if isinstance(name, bytes) else str(name)).lower() for name in names]


class _Layer:
    """One operator, while it is written out."""

    def __init__(self, op: Operator, tape: Tape) -> None:
        self.op, self.tape = op, tape
        self.batched = bool(op.attribute("layout", 0))  # whether the batch comes before the sequence
        self.hidden = op.dims(2)[2]
        self.gates = op.dims(1)[1] // self.hidden
        self.states = 2 if op.node.op == "LSTM" else 1
        self.x = self._turned(self._input(0))
        self.mask = self._mask() if op.has(4) else None

    def _input(self, index: int) -> Value:
        return self.tape.value(self.op.node.inputs[index])

    def _turned(self, value: Value) -> Value:
        return value.transpose(1, 0, 2) if self.batched else value

    def outputs(self) -> list[Value]:
        """Every state, then the last of each kind."""
        runs = [
            self._run(place, walk) for place, walk in enumerate(DIRECTIONS[self.op.attribute("direction")])
        ]
        *lasts, every = ([run[k] for run in runs] for k in range(self.states + 1))
        whole = self._joined(every, 1)
        if self.batched:
            whole = whole.transpose(2, 0, 1, 3)
        return [whole, *(self._turned(self._joined(last, 0)) for last in lasts)]

    def _joined(self, values: Sequence[Value], axis: int) -> Value:
        parts = [value.unsqueeze(axis) for value in values]
        return parts[0] if len(parts) == 1 else self.tape.op("Concat", *parts, axis=axis)

    def _part(self, index: int, place: int, sizes: Sequence[int]) -> Value:
        """What an input holds for one direction."""
        value = self._input(index)
        value = self._turned(value) if len(self.op.dims(index)) == 3 and index > 4 else value
        return value.slice([0], [place], [place + 1]).reshape(sizes)

    def _run(self, place: int, walk: int) -> list[Value]:
        """The last states of one direction, and every one of the first kind."""
        hidden, gates, tape = self.hidden, self.gates, self.tape
        w, r = (self._part(k, place, [gates * hidden, self.op.dims(k)[2]]) for k in (1, 2))
        given = self.x @ w.transpose(1, 0)
        after = bool(self.op.attribute("linear_before_reset", 0))
        own = None
        if self.op.has(3):
            whole = self._part(3, place, [2 * gates * hidden])
            of_w, of_r = (whole.slice([0], [k * gates * hidden], [(k + 1) * gates * hidden]) for k in (0, 1))
            if after:
                own = of_r.slice([0], [2 * hidden], [3 * hidden])
                of_r = of_r.slice([0], [0], [2 * hidden]).pad([0], [hidden])
            given += of_w + of_r
        peepholes = []
        if self.states == 2 and self.op.has(7):
            all_three = self._part(7, place, [3 * hidden])
            peepholes = [all_three.slice([0], [k * hidden], [(k + 1) * hidden]) for k in range(3)]
        names = [FUNCTIONS[name] for name in _activations(self.op)]
        count = len(DEFAULTS[self.op.node.op])
        functions = names[place * count : (place + 1) * count] or DEFAULTS[self.op.node.op]
        weights = Weights(r.transpose(1, 0), own, peepholes, functions, after)
        begins = [self._begin(5 + k, place) for k in range(self.states)]
        streams = [given] if self.mask is None else [given, self.mask]
        walks = [walk] * len(streams)
        return tape.ops(
            "Scan",
            *begins,
            *streams,
            outputs=self.states + 1,
            body=self._body(weights),
            num_scan_inputs=len(streams),
            scan_input_directions=walks,
            scan_output_directions=[walk],
        )

    def _begin(self, index: int, place: int) -> Value:
        """The first state."""
        if self.op.has(index):
            return self._part(index, place, [-1, self.hidden])
        dims, axis = self.op.dims(0), 0 if self.batched else 1
        dynamic = self.tape.shapes.dynamic[self.op.node.inputs[0].name][axis]
        batch: Size = self._input(0).size(axis) if dynamic else dims[axis]
        zero = gs.Constant("value", np.zeros(1, self.x.dtype))
        shape = self.tape.sizes([batch, self.hidden])
        return self.tape.op("ConstantOfShape", shape, dtype=self.x.dtype, value=zero)

    def _mask(self) -> Value:
        """Whether a step belongs to a sequence, ``[steps, batch, 1]``."""
        tape, axis = self.tape, 1 if self.batched else 0
        steps = tape.op("Gather", self._input(0).shape(), tape.constant(np.asarray(axis)), axis=0)
        numbers = tape.op("Range", tape.constant(np.asarray(0)), steps, tape.constant(np.asarray(1)))
        lengths = self._input(4).cast(np.int64)
        return numbers.unsqueeze(1, 2) < lengths.unsqueeze(0, 2)

    def _body(self, weights: Weights) -> gs.Graph:
        graph = self.tape.graph
        body = gs.Graph(opset=graph.opset, import_domains=graph.import_domains, name=self.tape.name("body"))
        inner = self.tape.inside(body)
        kinds = [self.x.dtype] * (self.states + 1) + [np.dtype(np.bool_)] * (self.mask is not None)
        read = [Value(inner, gs.Variable(inner.name("read"), kind), kind) for kind in kinds]
        states, given = read[: self.states], read[self.states]
        ends = CELLS[self.op.node.op](weights, given, states)
        result = ends[0]
        if self.mask is not None:
            inside = read[-1]
            result = inner.where(inside, result, result.zeros())
            ends = [inner.where(inside, end, state) for end, state in zip(ends, states, strict=True)]
        body.outputs = [inner.op("Identity", value).tensor for value in (*ends, result)]
        body.inputs = [value.tensor for value in read]
        body.nodes = inner.nodes
        return body


def _split(value: Value, count: int) -> list[Value]:
    if value.tape.opset < HAS_OUTPUTS:
        return value.tape.ops("Split", value, outputs=count, axis=-1)
    return value.tape.ops("Split", value, outputs=count, axis=-1, num_outputs=count)


def _lstm(weights: Weights, given: Value, states: Sequence[Value]) -> list[Value]:
    """The gates i, o, f and c; c' = f c + i g and h' = o tanh(c')."""
    (h, c), tape, (gate, new, out) = states, given.tape, weights.functions
    i, o, f, g = _split(given + h @ weights.recurrent, 4)
    if weights.peepholes:
        i, f = i + c * weights.peepholes[0], f + c * weights.peepholes[2]
    kept = tape.op(gate, f) * c + tape.op(gate, i) * tape.op(new, g)
    if weights.peepholes:
        o += kept * weights.peepholes[1]
    return [tape.op(gate, o) * tape.op(out, kept), kept]


def _gru(weights: Weights, given: Value, states: Sequence[Value]) -> list[Value]:
    """The gates z, r and h; h' = (1 − z) n + z h, where n sees the state that r lets through."""
    (h,), tape, (gate, new) = states, given.tape, weights.functions
    of_z, of_r, of_n = _split(given, 3)
    if weights.after:
        z, r, n = _split(h @ weights.recurrent, 3)
        z, r = tape.op(gate, of_z + z), tape.op(gate, of_r + r)
        n = n if weights.bias is None else n + weights.bias
        n = tape.op(new, of_n + r * n)
    else:
        by_z, by_r, by_n = _split(weights.recurrent, 3)
        z, r = tape.op(gate, of_z + h @ by_z), tape.op(gate, of_r + h @ by_r)
        n = tape.op(new, of_n + (r * h) @ by_n)
    return [n + z * (h - n)]


def _rnn(weights: Weights, given: Value, states: Sequence[Value]) -> list[Value]:
    """One function of the input's and the state's share."""
    return [given.tape.op(weights.functions[0], given + states[0] @ weights.recurrent)]


CELLS: dict[str, Cell] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}
