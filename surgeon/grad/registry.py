"""Where derivative rules are declared and found: by domain, name and the opset they hold from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from surgeon.ops.registry import Rules

if TYPE_CHECKING:
    from surgeon.grad.tape import Value

#: The vector-Jacobian product of one operator. Called with its `Step` and its inputs, named as the ONNX operator page
#: names them (None where an optional input is absent); returns the gradient with respect to each input (trailing ones
#: may be left out, and those of tensors that bodies capture follow), None where there is none: the input is not differentiable, or the slope is zero almost everywhere.
#: A rule that cannot say raises Barrier.
Derivative: TypeAlias = "Callable[..., Sequence[Value | None]]"


@dataclass(frozen=True)
class DerivativeRule:
    """One rule and where it holds; see `derivative`."""

    name: str
    domain: str
    since: int
    function: Derivative
    broadcasts: bool
    rounds: bool
    parameters: tuple[int, ...]


DERIVATIVES: Rules[DerivativeRule] = Rules()


def derivative(
    *names: str,
    domain: str = "",
    since: int = 1,
    broadcasts: bool = False,
    rounds: bool = False,
    parameters: tuple[int, ...] = (),
) -> Callable[[Derivative], Derivative]:
    """Declare the derivative of one or several operators.

    Args:
        names: ONNX operator types.
        domain: Their domain; empty for the standard operators.
        since: The first opset of that domain in which the rule holds.
        broadcasts: Whether inputs are broadcast to the output's shape: the rule then returns gradients of that shape,
            and what was repeated is summed up for it.
        rounds: Whether gradients pass through its integer outputs, as if they had not been rounded.
        parameters: The inputs that are learned where they are constants.
    """

    def declare(function: Derivative) -> Derivative:
        for name in names:
            DERIVATIVES.add(DerivativeRule(name, domain, since, function, broadcasts, rounds, parameters))
        return function

    return declare
