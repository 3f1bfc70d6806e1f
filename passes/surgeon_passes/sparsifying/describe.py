"""What the pass `sparsify` says of its work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surgeon.passes import Context
    from surgeon.refit.settle import Settled
    from surgeon_passes.sparsifying.zeros import Job


def describe(
    jobs: Sequence[Job], found: Settled, errors: tuple[float, float] | None, context: Context, memory: int
) -> None:
    """Put what was done into the report, and what the user should know into the warnings.

    Args:
        jobs: The weights.
        found: What was refitted.
        errors: Of the outputs, refitted and with zeros of the smallest numbers only; None where that was not compared.
        context: The run.
        memory: Megabytes of activations held in memory.
    """
    del memory
    context.record["tensors"] = [
        {"tensor": job.weight.name, "sparsity": 1 - np.mean(job.weight.matrices() != 0)} for job in jobs
    ]
    context.record["errors"] = errors
    context.record["left"] = found.left
