"""What the pass `sparsify` says of its work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from surgeon.sizes import weigh

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surgeon.passes import Context, Graph
    from surgeon.refit.pattern import Pattern
    from surgeon.refit.settle import Settled
    from surgeon_passes.sparsifying.zeros import Job


def describe(
    graph: Graph,
    jobs: Sequence[Job],
    pattern: Pattern,
    found: Settled,
    errors: tuple[float, float] | None,
    context: Context,
) -> None:
    """Put what was done into the report, and what the user should know into the warnings.

    Args:
        graph: The result.
        jobs: Its weights.
        pattern: Where their zeros were asked for.
        found: What was refitted; nothing where that was not better than nothing.
        errors: Of the outputs, refitted and with zeros of the smallest numbers only; None where that was not compared.
        context: The run.
    """
    sizes = weigh(graph).to_json()
    measured = {entry["name"]: entry for entry in sizes["tensors"]}
    tensors = []
    for job in jobs:
        entry = measured.get(job.weight.name, {"name": job.weight.name})
        before, after = found.errors.get(job.label, (None, None))
        tensors.append(
            {
                "node": job.label,
                **entry,
                "pattern_ok": pattern.fits(job.weight.matrices() != 0),
                "error_before": before,
                "error_after": after,
            }
        )
    whole = sum(int(np.count_nonzero(job.weight.matrices() == 0)) for job in jobs)
    context.record["tensors"] = tensors
    context.record["total"] = {**sizes["total"], "pattern_ok": all(each["pattern_ok"] for each in tensors)}
    context.record["left"] = [{"node": name, "reason": reason} for name, reason in found.left.items()]
    if errors is not None:
        context.record["output_error"] = {"refitted": errors[0], "magnitude": errors[1]}
        if errors[1] < errors[0]:
            context.warn(
                "sparsify: what the data say is no better here than to keep the largest weights as they are, which was done"
            )
    if found.spilled:
        context.warn(
            "activations took more than sparsify.memory and went to temporary files, which takes longer; "
            "fewer samples or more memory avoid it"
        )
    if not whole:
        context.warn("sparsify: the pattern leaves no weight of this model to make zero")
