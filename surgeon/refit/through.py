"""What an operator's result passes through: where an activation is flat, the result need not be right.

A result that a Relu cuts off may be anything negative. So targets are compared behind the activation that follows:
``(f(p) - f(t))²`` is ``s² (p - t)²`` with s the slope of the secant, and every step of iteratively reweighted least
squares is made with the same matrix by moving the target towards the prediction where s is small:
``t' = p + (s / S)² (t - p)``, S a bound of the slopes. A step may make things worse, for s moves too; whoever takes it
keeps the best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.graph.weights import peek

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Function = Callable[[NDArray[np.float32]], NDArray[np.float32]]


GATES = ("Sigmoid", "HardSigmoid", "Tanh")  # bounded, so that the slope of ``x f(x)`` is


@dataclass(frozen=True)
class Activation:
    """An elementwise function that is applied to a result before anything else sees it.

    Attributes:
        function: Float32 array to array of the same shape.
        steepest: The largest slope of its secants, or what steeper ones are taken for.
    """

    function: Function
    steepest: float = 1.0

    def towards(self, prediction: Floats, target: Floats) -> Floats:
        """The target of the next least-squares step: nearer to the prediction where the difference matters less."""
        difference = target - prediction
        risen = self.function(target) - self.function(prediction)
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = np.where(difference == 0, 0.0, risen / difference) / self.steepest
        return np.asarray(prediction + np.minimum(np.square(slope), 1) * difference, np.float32)


def activation_after(tensor: gs.Tensor, outputs: Collection[str] = ()) -> Activation | None:
    """The activation that alone reads ``tensor``, or None: any other reader sees the tensor as it is.

    ``x * f(x)``, as exporters write SiLU and hard swish, counts as one.

    Args:
        tensor: The tensor.
        outputs: Names of the graph's outputs, which somebody else reads.
    """
    if tensor.name in outputs:
        return None
    users = list(tensor.outputs)
    if len(users) == 1:
        return _activation(users[0])
    if len(users) == 2:
        for gate, product in (users, users[::-1]):
            inner = _activation(gate) if gate.op in GATES else None
            alone = gate.outputs[0].name not in outputs and _multiplies(product, tensor, gate.outputs[0])
            if inner is not None and product.op == "Mul" and alone:
                return _gated(inner)
    return None


def _gated(gate: Activation) -> Activation:
    """``x * f(x)``; where f levels off at 1 the slope goes a little beyond that of x."""
    return Activation(lambda x: x * gate.function(x), 1.5)


def _multiplies(product: gs.Node, first: gs.Tensor, second: gs.Tensor) -> bool:
    return len(second.outputs) == 1 and {id(each) for each in product.inputs} == {id(first), id(second)}


def _activation(node: gs.Node) -> Activation | None:
    if node.domain not in (None, "", "ai.onnx"):
        return None
    if node.op == "Clip":
        return _clip(node)
    make = _FUNCTIONS.get(node.op)
    return None if make is None else make(node)


def _clip(node: gs.Node) -> Activation | None:
    """Bounds are attributes up to opset 10, inputs from opset 11 on."""
    bounds = [node.attrs.get("min", -np.inf), node.attrs.get("max", np.inf)]
    for k, tensor in enumerate(node.inputs[1:3]):
        if tensor.name:
            if not isinstance(tensor, gs.Constant):
                return None
            bounds[k] = float(peek(tensor).reshape(-1)[0])
    low, high = map(np.float32, bounds)
    return Activation(lambda x: np.clip(x, low, high))


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (np.tanh(0.5 * x) + 1), np.float32)


def _leaky(node: gs.Node) -> Activation:
    alpha = np.float32(node.attrs.get("alpha", 0.01))
    return Activation(lambda x: np.where(x > 0, x, alpha * x), max(1.0, float(abs(alpha))))


def _elu(node: gs.Node) -> Activation:
    alpha = np.float32(node.attrs.get("alpha", 1.0))
    return Activation(
        lambda x: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))), max(1.0, float(alpha))
    )


def _hard_sigmoid(node: gs.Node) -> Activation:
    alpha, beta = np.float32(node.attrs.get("alpha", 0.2)), np.float32(node.attrs.get("beta", 0.5))
    return Activation(lambda x: np.clip(alpha * x + beta, 0, 1), max(float(abs(alpha)), 1e-6))


def _fixed(function: Function, steepest: float = 1.0) -> Callable[[Any], Activation]:
    activation = Activation(function, steepest)
    return lambda _: activation


# largest slopes by calculus or, for the last two, from a table of the derivative; all rounded up
_FUNCTIONS: dict[str, Callable[[Any], Activation]] = {
    "Relu": _fixed(lambda x: np.maximum(x, 0)),
    "LeakyRelu": _leaky,
    "Elu": _elu,
    "Sigmoid": _fixed(_sigmoid, 0.25),
    "Tanh": _fixed(np.tanh),
    "HardSigmoid": _hard_sigmoid,
    "Softplus": _fixed(lambda x: np.logaddexp(x, np.float32(0))),
    "HardSwish": _fixed(lambda x: x * np.clip(x / 6 + np.float32(0.5), 0, 1), 1.5),
    "Gelu": _fixed(lambda x: x * _sigmoid(np.float32(1.702) * x), 1.13),
}
