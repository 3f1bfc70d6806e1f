"""Did you mean: the nearest known name to a mistyped one, worded for the hint of an error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], *, what: str = "known") -> str | None:
    """Words the hint for an unknown name.

    Args:
        word: What the user typed.
        known: The names that would have been accepted.
        what: How to call the full list when nothing is near, as in ``known: a, b``.

    Returns:
        ``did you mean 'prune'?``, or the list of names when it is short, or None.
    """
    names = sorted(set(known))
    near = difflib.get_close_matches(word.lower(), [name.lower() for name in names], n=1, cutoff=0.6)
    if near:
        nearest = next(name for name in names if name.lower() == near[0])
        return f"did you mean {nearest!r}?"
    return f"{what}: {', '.join(names)}" if 0 < len(names) <= 16 else None
