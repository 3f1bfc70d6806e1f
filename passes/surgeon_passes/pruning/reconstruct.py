"""After the proof: the weights that are left learn, in closed form, to compute what the original computes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from surgeon.refit.sweep import refit
from surgeon.surgery import keep_of

if TYPE_CHECKING:
    from surgeon.engine import Model
    from surgeon.passes import Context
    from surgeon_passes.pruning.proved import Proved


def reconstruct(model: Model, proved: Proved, context: Context, memory: int) -> None:
    """Refit the cut graph in place and record the relative error of every operator before and after."""
    started = time.perf_counter()
    keep = keep_of(proved.plan.kept(), {group.id: group.atom for group in model.groups})
    feeds = [batch[0] for batch in context.calibration()]
    with context.progress("refit", len(model.analysis.ops)) as advance:
        result = refit(
            model.analysis,
            proved.graph,
            keep,
            feeds,
            seed=context.seed_for("refit"),
            threads=context.threads,
            limit_bytes=memory,
            progress=advance,
        )
    if not result.errors:
        context.warn("no weights were refitted: only constants of float32 are; expect to lose accuracy")
    context.record["reconstruct"] = {
        "seconds": time.perf_counter() - started,
        "operators": [
            {"node": name, "error_before": before, "error_after": after}
            for name, (before, after) in result.errors.items()
        ],
    }
