"""What cutting a group does to the outputs, for groups that were not tried alone: from those that were, and from gradients.

The squared slopes of the indices that would go (see `surgeon_passes.pruning.influence`) add up to the change of the
outputs if nothing were refitted. On logarithmic scales what is left after a refit lies near a line over that, with what
is off the line changing slowly along the graph. Whether the line foretells more than the neighbours do is seen where groups were
tried, leaving out one at a time; in a chain of groups that are all alike it does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Places = NDArray[np.int64]
    Guess = Callable[[Places, Places], Floats]

FEWEST = 6  # groups that were tried, for a line to be put through them


def between(tried: Sequence[int], outputs: Floats, errors: Floats, unrefitted: Floats) -> Floats:
    """Logarithms of the change of the outputs for all groups; those of groups that were tried stay.

    Args:
        tried: Places of the groups that were tried in the order of all groups, ascending.
        outputs: What was found of them: logarithms of the change of the outputs.
        errors: For every group, what its height above is read off between neighbours: its error curve says this.
        unrefitted: For every group the logarithm of its squared slopes, NaN where there are none.
    """
    places, count = np.asarray(tried, np.int64), len(errors)
    found = np.full(count, np.nan)
    found[places] = outputs

    def by_neighbours(known: Places, wanted: Places) -> Floats:
        return errors[wanted] + np.interp(wanted, known, (found - errors)[known])

    def by_slopes(known: Places, wanted: Places) -> Floats:
        steepness, offset = np.polyfit(unrefitted[known], found[known], 1)
        line = offset + steepness * unrefitted
        return np.asarray(line[wanted] + np.interp(wanted, known, (found - line)[known]))

    sloped = places[np.isfinite(unrefitted[places])]
    guess = by_neighbours
    if len(sloped) >= FEWEST and np.ptp(unrefitted[sloped]) > 0:
        guess = min(by_neighbours, by_slopes, key=lambda each: missed(each, sloped, found))
    everyone = np.arange(count)
    result = guess(sloped if guess is by_slopes else places, everyone)
    unknown = ~np.isfinite(result)
    result[unknown] = by_neighbours(places, everyone[unknown])
    result[places] = outputs
    return np.asarray(result)


def missed(guess: Guess, places: Places, found: Floats) -> float:
    """The mean squared error of foretelling each group from the others."""
    errors = [
        guess(np.delete(places, k), places[k : k + 1])[0] - found[places[k]] for k in range(len(places))
    ]
    return float(np.mean(np.square(errors)))
