"""When a proof fails: which groups it fails for, so that everything else can still be cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgeon.errors import GateError, InternalError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    Kept = Mapping[str, NDArray[np.bool_]]

MOST_TRIALS = 64


def unprovable(kept: Kept, attempt: Callable[[Kept], object]) -> dict[str, str]:
    """Find the groups whose cut cannot be proved, by halving.

    Args:
        kept: A cut whose proof failed, by group id.
        attempt: Cuts and proves; raises GateError or InternalError when that fails.

    Returns:
        Group id to what went wrong. Empty when the number of trials ran out.
    """
    trials = 0

    def search(names: list[str]) -> dict[str, str]:
        nonlocal trials
        trials += 1
        if trials > MOST_TRIALS:
            return {}
        try:
            attempt({name: kept[name] for name in names})
        except (GateError, InternalError) as error:
            if len(names) == 1:
                return {names[0]: error.message}
            middle = len(names) // 2
            # each half may pass alone and only fail with the other: then the whole is to blame
            return search(names[:middle]) | search(names[middle:]) or dict.fromkeys(names, error.message)
        return {}

    found = search(list(kept))
    return found if trials <= MOST_TRIALS else {}
