"""The text form of positions of one tensor axis: ``tensor:axis=0-7+12``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from surgeon.errors import UsageError

_ENTRY = re.compile(
    r"(?P<tensor>.+):(?P<axis>-?\d+)=(?P<places>\d+(?:-\d+)?(?:\+\d+(?:-\d+)?)*)\Z", re.DOTALL
)


@dataclass(frozen=True)
class Positions:
    """Positions of one axis of a tensor.

    Attributes:
        text: As the user wrote it.
        tensor: Its name.
        axis: Counted from the end where negative.
        ranges: First and last position of each run.
    """

    text: str
    tensor: str
    axis: int
    ranges: tuple[tuple[int, int], ...]


def parse(text: str, where: str) -> Positions:
    """Read one entry.

    Raises:
        UsageError: It is not of that form.
    """
    found = _ENTRY.match(text)
    if found is None:
        raise UsageError(
            f"expected tensor:axis=positions, got {text!r}", where=where, hint="as in conv1.weight:0=0-7+12"
        )
    ranges = []
    for part in found["places"].split("+"):
        first, _, last = part.partition("-")
        ranges.append((int(first), int(last or first)))
        if ranges[-1][0] > ranges[-1][1]:
            raise UsageError(f"the range {part} of {text!r} runs backwards", where=where)
    return Positions(text, found["tensor"], int(found["axis"]), tuple(ranges))
