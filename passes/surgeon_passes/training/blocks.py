"""What the report says of blocks that were trained one after the other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgeon.passes import Context
    from surgeon.refit.block import Reconstructed

LEFT = {0.0: "nothing", 0.25: "a quarter", 0.5: "half"}


def described(found: Reconstructed, context: Context) -> dict[str, Any]:
    """Facts for the report; warns of weights that could not be trained, and of blocks that were better for nothing."""
    if found.stopped:
        name, why = next(iter(found.stopped.items()))
        context.warn(f"{len(found.stopped)} weights cannot be trained, the first: {name}: {why}")
    facts: dict[str, Any] = {
        "blocks": [
            {"block": name, "error_before": before, "error_after": after, "kept": name in found.kept}
            for name, (before, after) in found.errors.items()
        ],
        "stopped": dict(found.stopped),
    }
    if (outcome := found.outcome) is not None:
        facts["outputs"] = {
            "error_before": outcome.before,
            "error_after": outcome.after,
            "share": outcome.share,
        }
        if not math.isfinite(outcome.before):
            context.warn(
                "what the model puts out could not be compared on held-out samples: blocks were judged one by one alone"
            )
        if outcome.share < 1:
            context.warn(
                "each block came nearer to the original, but with all of it the outputs were worse on held-out samples: "
                f"{LEFT[outcome.share]} of the way is kept; more samples may help"
            )
    return facts
