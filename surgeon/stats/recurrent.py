"""LSTM, GRU and RNN as two matrix products each: of the inputs ``x_t`` and of the last state ``h_{t-1}``.

Neither product is a tensor of the graph, but both follow from tensors of it, for the states are the operator's first
output. Where that output has no name, :func:`surgeon.stats.sequences.named_sequences` gives it one for a while.
Directions are groups; a place is a step and a sample. Layouts, gates and equations: https://onnx.ai/onnx/operators/onnx__GRU.html and the like.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.stats.bias import Bias, read_bias
from surgeon.stats.weight import weight_chain, weight_shape, weight_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from surgeon.ops import Op
    from surgeon.stats.linear import Read

    Array = NDArray[Any]
    Places = NDArray[np.int64]

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
X, _W, _R, _B, _LENGTHS, _INITIAL = range(6)


@dataclass(frozen=True)
class InputProduct:
    """``x_t W' + Wb``, all gates at once."""

    op: Op
    weight = _W
    output = ""
    channel_axis = None
    group_axes = ()

    @property
    def bias(self) -> Bias:
        """The first half of B."""
        gates = GATES[self.op.node.op]
        return Bias(str(self.op.node.outputs[0].name), _B, part=(0, gates, 2 * gates))

    @property
    def reads(self) -> tuple[str, ...]:
        """The sequence."""
        return (str(self.op.node.inputs[X].name),)

    @property
    def target_reads(self) -> tuple[str, ...]:
        """What the rows are made of."""
        return self.reads

    def groups(self, node: gs.Node) -> int:
        """Directions."""
        return weight_shape(node.inputs[_W])[0]

    def bias_shape(self, node: gs.Node) -> tuple[int, ...]:
        """``[directions, 2 * gates * hidden]``."""
        directions, rows, _ = weight_shape(node.inputs[_W])
        return directions, 2 * rows

    def matrices(self, node: gs.Node, values: Array) -> Array:
        """``[D, gates*H, I]`` to ``[D, I, gates*H]``."""
        del node
        return values.transpose(0, 2, 1)

    def weights(self, matrices: Array, shape: tuple[int, ...]) -> Array:
        """The inverse."""
        return matrices.transpose(0, 2, 1).reshape(shape)

    def count(self, read: Read) -> int:
        """Steps times samples."""
        return int(np.prod(read(self.reads[0]).shape[:2]))

    def rows(self, node: gs.Node, read: Read, places: Places) -> Array:
        """The inputs, the same for every direction."""
        x = _inputs(node, read)[places]
        return np.broadcast_to(x, (self.groups(node), *x.shape))

    def target(self, node: gs.Node, read: Read, places: Places) -> Array:
        """The product itself, computed."""
        return _product(self, node, self.rows(node, read, places))

    def results(self, y: Array, places: Places, groups: int) -> Array:
        """Raises ValueError: no tensor holds this product."""
        del y, places, groups
        raise ValueError(f"no tensor holds the products of {self.op.name}")


@dataclass(frozen=True)
class StateProduct(InputProduct):
    """``h_{t-1} R' + Rb``, all gates at once; :attr:`reads` has the output of the operator itself."""

    weight = _R

    @property
    def bias(self) -> Bias:
        """The second half of B."""
        gates = GATES[self.op.node.op]
        return Bias(str(self.op.node.outputs[0].name), _B, part=(gates, 2 * gates, 2 * gates))

    @property
    def reads(self) -> tuple[str, ...]:
        """The states, and the first one unless it is a constant."""
        names = [str(self.op.node.outputs[0].name)]
        if self.op.has(_INITIAL) and not isinstance(self.op.node.inputs[_INITIAL], gs.Constant):
            names.append(str(self.op.node.inputs[_INITIAL].name))
        return tuple(names)

    def count(self, read: Read) -> int:
        """Steps times samples."""
        shape = read(self.reads[0]).shape
        return int(shape[0] * (shape[1] if _batch_first(self.op.node) else shape[2]))

    def rows(self, node: gs.Node, read: Read, places: Places) -> Array:
        """The states before each step."""
        return _previous(node, read)[:, places]


@dataclass(frozen=True)
class GatedStateProduct(StateProduct):
    """``h_{t-1} R' + Rb`` of a GRU whose candidate sees the state after the reset gate.

    The rows of the candidate are ``r_t * h_{t-1}``, so that each gate of each direction is a group of its own.
    """

    @property
    def reads(self) -> tuple[str, ...]:
        """The reset gate needs the inputs as well."""
        return (*super().reads, str(self.op.node.inputs[X].name))

    def groups(self, node: gs.Node) -> int:
        """Directions times gates."""
        return 3 * super().groups(node)

    def matrices(self, node: gs.Node, values: Array) -> Array:
        """``[D, 3*H, H]`` to ``[D*3, H, H]``."""
        del node
        return values.reshape(3 * len(values), -1, values.shape[2]).transpose(0, 2, 1)

    def rows(self, node: gs.Node, read: Read, places: Places) -> Array:
        """The states before each step, for update and reset gate; reset, for the candidate."""
        states, x = _previous(node, read)[:, places], _inputs(node, read)[places]
        hidden = states.shape[-1]
        w, r = (weight_values(node.inputs[k])[:, hidden : 2 * hidden] for k in (_W, _R))
        sums = x @ w.transpose(0, 2, 1) + states @ r.transpose(0, 2, 1)
        if len(node.inputs) > _B and node.inputs[_B].name:
            b = weight_values(node.inputs[_B]).reshape(len(w), 6, 1, hidden)
            sums = sums + b[:, 1] + b[:, 4]
        limit = node.attrs.get("clip")
        sums = sums if limit is None else np.clip(sums, -limit, limit)
        reset = (states / (1 + np.exp(-sums))).astype(states.dtype)
        return np.stack([states, states, reset], axis=1).reshape(-1, *states.shape[1:])


def recurrent(op: Op) -> list[InputProduct]:
    """The products of a recurrent operator.

    None with ``sequence_lens``, for what is behind the end of a sequence has no states. None of the states where the
    first output has no name. None of the states of a GRU with a reset gate that is no Sigmoid, unless
    ``linear_before_reset`` is set.
    """
    if op.has(_LENGTHS) or not op.node.outputs or not op.node.outputs[0].name:
        return []
    if op.has(_B) and weight_chain(op.node.inputs[_B]) is None:
        return []
    known = {k: weight_chain(op.node.inputs[k]) is not None for k in (_W, _R)}
    views: list[InputProduct] = [InputProduct(op)] if known[_W] else []
    if op.node.op != "GRU" or op.attribute("linear_before_reset", 0):
        return [*views, StateProduct(op)] if known[_R] else views
    gates = op.attribute("activations") or ["Sigmoid"]
    if all(known.values()) and all(name.lower() == "sigmoid" for name in gates[::2]):
        views.append(GatedStateProduct(op))
    return views


def _batch_first(node: gs.Node) -> bool:
    return bool(node.attrs.get("layout", 0) == 1)


def _inputs(node: gs.Node, read: Read) -> Array:
    """``[steps * samples, I]``, step by step."""
    x = read(node.inputs[X].name)
    x = x.swapaxes(0, 1) if _batch_first(node) else x
    return x.reshape(-1, x.shape[-1])


def _previous(node: gs.Node, read: Read) -> Array:
    """The state before each step of each direction: ``[D, steps * samples, H]``."""
    y = read(node.outputs[0].name)
    y = y.transpose(2, 1, 0, 3) if _batch_first(node) else y.swapaxes(0, 1)  # [D, steps, samples, H]
    directions = y.shape[0]
    result = np.empty(y.shape, y.dtype)
    first: Array = np.zeros((directions, *y.shape[2:]), y.dtype)
    if len(node.inputs) > _INITIAL and node.inputs[_INITIAL].name:
        tensor = node.inputs[_INITIAL]
        first = weight_values(tensor) if isinstance(tensor, gs.Constant) else read(tensor.name)
        first = first.swapaxes(0, 1) if _batch_first(node) else first
    for k in range(directions):
        if k == 1 or node.attrs.get("direction", "forward") == "reverse":
            result[k, :-1], result[k, -1] = y[k, 1:], first[k]
        else:
            result[k, 1:], result[k, 0] = y[k, :-1], first[k]
    return result.reshape(directions, -1, y.shape[-1])


def _product(view: InputProduct, node: gs.Node, rows: Array) -> Array:
    """Rows times the node's own weights, plus its bias."""
    matrices = view.matrices(node, weight_values(node.inputs[view.weight]))
    bias = read_bias(view, {view.op.node.outputs[0].name: node})
    return np.asarray(rows @ matrices + bias.astype(matrices.dtype))
