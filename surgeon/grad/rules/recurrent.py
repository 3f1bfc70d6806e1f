"""Recurrent operators that could not be written out; see `surgeon.grad.recurrent`."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from surgeon.grad.recurrent import refusal
from surgeon.grad.registry import derivative

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surgeon.grad.step import Step
    from surgeon.grad.tape import Value

    Gradients: TypeAlias = Sequence[Value | None]


@derivative("LSTM", "GRU", "RNN", parameters=(1, 2, 3))
def recurrent(op: Step, *inputs: Value | None) -> Gradients:
    """The reason."""
    op.stop(refusal(op) or "it is inside of a body")
