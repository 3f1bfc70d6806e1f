"""Where rules of scaling are declared and found: what factors of an operator's inputs do to its outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from surgeon.ops.registry import Rules

if TYPE_CHECKING:
    from collections.abc import Callable

    from surgeon.ops import Op
    from surgeon.scaling.fields import Fields

    #: States how the factors of one operator's tensors relate.
    ScalingFunction: TypeAlias = Callable[[Fields, Op], None]


@dataclass(frozen=True)
class ScalingRule:
    """One rule and where it holds."""

    name: str
    domain: str
    since: int
    function: ScalingFunction


SCALINGS: Rules[ScalingRule] = Rules()


def scaling(*names: str, domain: str = "", since: int = 1) -> Callable[[ScalingFunction], ScalingFunction]:
    """Declare how factors go through one or several operators; those without a rule let none through.

    Args:
        names: ONNX operator types.
        domain: Their domain; empty for the standard operators.
        since: The first opset of that domain in which the rule holds.
    """

    def declare(function: ScalingFunction) -> ScalingFunction:
        for name in names:
            SCALINGS.add(ScalingRule(name, domain, since, function))
        return function

    return declare
