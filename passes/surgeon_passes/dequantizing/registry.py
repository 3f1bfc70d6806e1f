"""Where the rules that turn quantized operators into float ones are declared and found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from surgeon.ops.registry import Rules

if TYPE_CHECKING:
    from surgeon_passes.dequantizing.writer import Given, Writer

#: Writes what stands for one node into the float graph; returns False where the node stays as it is.
Dequantize: TypeAlias = "Callable[[Writer, Given], bool]"


@dataclass(frozen=True)
class DequantizeRule:
    """One rule and where it holds; see `dequantizes`."""

    name: str
    domain: str
    since: int
    function: Dequantize


DEQUANTIZE_RULES: Rules[DequantizeRule] = Rules()


def dequantizes(*names: str, domain: str = "", since: int = 1) -> Callable[[Dequantize], Dequantize]:
    """Declare the rule of one or several operators.

    Args:
        names: ONNX operator types.
        domain: Their domain; empty for the standard operators.
        since: The first opset of that domain in which the rule holds.
    """

    def declare(function: Dequantize) -> Dequantize:
        for name in names:
            DEQUANTIZE_RULES.add(DequantizeRule(name, domain, since, function))
        return function

    return declare
