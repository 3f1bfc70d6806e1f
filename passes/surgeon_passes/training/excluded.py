"""Which weights the user wants left alone."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from surgeon.passes import Context


def excluded_by(context: Context, patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a name matches the run's patterns or the pass's own."""

    def excluded(name: str) -> bool:
        return context.excluded(name) or any(fnmatch.fnmatchcase(name, each) for each in patterns)

    return excluded
