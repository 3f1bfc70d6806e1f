"""One choice for each of several operators, within a limit of the summed cost and with the least summed error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from surgeon.allocate.candidate import SLACK

if TYPE_CHECKING:
    from collections.abc import Sequence

HALVINGS = 100


@dataclass(frozen=True)
class Choice:
    """What an operator may become.

    Attributes:
        cost: In any unit.
        error: Comparable between operators.
    """

    cost: float
    error: float


def choose(options: Sequence[Sequence[Choice]], limit: float) -> list[int] | None:
    """Which choice of each operator to take.

    Each takes what has the least sum of its error and its cost times a price, the lowest price at which the limit holds
    (Everett, "Generalized Lagrange multiplier method", 1963). What is left of the limit then goes where it saves most
    error for its cost.

    Args:
        options: Of each operator, at least one.
        limit: Of the summed cost.

    Returns:
        The position of each choice; None where even the cheapest choices cost more.
    """
    if sum(min(each.cost for each in some) for some in options) > limit * (1 + SLACK):
        return None
    low, high = 0.0, 1.0
    while _cost(options, _at_price(options, high)) > limit * (1 + SLACK):
        low, high = high, high * 4
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _cost(options, _at_price(options, middle)) <= limit * (1 + SLACK):
            high = middle
        else:
            low = middle
    taken = _at_price(options, high)
    if _cost(options, _at_price(options, 0.0)) <= limit * (1 + SLACK):
        taken = _at_price(options, 0.0)
    return _filled(options, taken, limit)


def _at_price(options: Sequence[Sequence[Choice]], price: float) -> list[int]:
    """The best of each; of equals the cheaper one."""
    return [
        min(range(len(some)), key=lambda k: (some[k].error + price * some[k].cost, some[k].cost))
        for some in options
    ]


def _cost(options: Sequence[Sequence[Choice]], taken: Sequence[int]) -> float:
    return sum(some[k].cost for some, k in zip(options, taken, strict=True))


def _filled(options: Sequence[Sequence[Choice]], taken: list[int], limit: float) -> list[int]:
    """The choices once what is left of the limit is spent."""
    left = limit * (1 + SLACK) - _cost(options, taken)
    while True:
        best: tuple[float, int, int] | None = None
        for n, some in enumerate(options):
            now = some[taken[n]]
            for k, each in enumerate(some):
                more, less = each.cost - now.cost, now.error - each.error
                if less > 0 and more <= left:
                    entry = (-less / max(more, SLACK), n, k)
                    best = entry if best is None else min(best, entry)
        if best is None:
            return taken
        _, n, k = best
        left -= options[n][k].cost - options[n][taken[n]].cost
        taken[n] = k
