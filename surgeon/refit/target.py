"""What an operator of a cut graph should compute, and through what its result is seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from surgeon.refit.through import Activation, activation_after

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    Dims = tuple[int, ...]


@dataclass(frozen=True)
class Target:
    """What an operator should compute.

    Attributes:
        tensor: The tensor of the original whose values are wanted.
        other: The tensor of the cut graph that is added to the result, or ''.
        through: The activation behind the result, or behind the sum.
    """

    tensor: str
    other: str = ""
    through: Activation | None = None


def sums_into(result: gs.Tensor) -> list[str]:
    """The sums that a result may be a term of."""
    return [user.outputs[0].name for user in result.outputs if user.op == "Add"]


def target_of(
    result: gs.Tensor,
    dims: Mapping[str, Dims | None],
    ready: Callable[[str], bool],
    outputs: Collection[str] = (),
) -> Target:
    """What the operator with this result should compute.

    A result that only goes into a sum with something computed gets the sum as target, less what the other term is by
    now, if that is known.

    Args:
        result: The tensor in the cut graph.
        dims: Shapes in the original.
        ready: Whether a tensor of the cut graph can be computed without operators that are still to be refitted.
        outputs: Names of the graph's outputs.
    """
    users = list(result.outputs)
    if len(users) == 1 and users[0].op == "Add" and result.name not in outputs:
        total = users[0].outputs[0]
        others = [t for t in users[0].inputs if t.name != result.name]
        if len(others) == 1 and not isinstance(others[0], gs.Constant):
            same = dims.get(result.name) is not None and dims.get(result.name) == dims.get(others[0].name)
            if same and ready(others[0].name):
                return Target(total.name, others[0].name, activation_after(total, outputs))
    return Target(result.name, "", activation_after(result, outputs))
