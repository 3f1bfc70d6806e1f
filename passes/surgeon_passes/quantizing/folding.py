"""Whether kernels that read stored weights pay on this machine, or these are better turned into floats at loading."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from surgeon.measure import one_sample
from surgeon_passes.quantizing import speed
from surgeon_passes.quantizing.weights import LOOK_UPS, PRODUCTS

if TYPE_CHECKING:
    from surgeon.passes import Context
    from surgeon_passes.quantizing.control import Mixes

_SECONDS = 3.0


@dataclass(frozen=True)
class Folding:
    """What a race of kernels for stored weights showed.

    Attributes:
        folded: Operators, by type, whose stored weights are better read as floats.
        float_ms: Time of the float model.
        facts: What the report says of each choice.
    """

    folded: frozenset[str]
    float_ms: float
    facts: list[dict[str, Any]]


def folding(mixes: Mixes, context: Context) -> Folding | None:
    """Time the model with and without kernels for stored weights, look-ups in tables and products apart.

    Returns:
        As few folded operators as take no longer than the fastest choice, but for `LEAST_GAIN` of the float model's time:
        with the kernels weights take less memory. None where there are no such kernels.
    """
    draft = mixes.draft({})
    made = mixes.finished(draft.of(draft.model), ())
    there = {operator for name, operator in made.choice.weighted.items() if name not in draft.choice.weighted}
    kinds = [kind & there for kind in (LOOK_UPS, PRODUCTS) if kind & there]
    if not kinds:
        return None
    choices = [frozenset[str](), *kinds, *([kinds[0] | kinds[1]] if len(kinds) > 1 else [])]
    models = [replace(mixes, folded=each).finished(draft.of(draft.model), ()).model for each in choices]
    race = speed.Stopwatch().race
    with context.progress("measure kernels for stored weights"):
        floats, *latencies = race([mixes.maker.model, *models], one_sample(context), _SECONDS)
    enough = min(latency.ratio for latency in latencies) + speed.LEAST_GAIN
    taken = next(each for each, latency in zip(choices, latencies, strict=True) if latency.ratio <= enough)
    facts = [
        {
            "folded": sorted(each),
            "ratio": latency.ratio,
            "p10": latency.ratio_p10,
            "p90": latency.ratio_p90,
            "taken": each == taken,
        }
        for each, latency in zip(choices, latencies, strict=True)
    ]
    return Folding(taken, floats.median_ms, facts)
