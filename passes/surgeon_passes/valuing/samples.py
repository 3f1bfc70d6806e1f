"""The batches that weights are fitted to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from surgeon.stats.variants import filled_up

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from surgeon.passes import Context, Graph
    from surgeon.stats.data import Dataset


def batches(data: Dataset, samples: int, graph: Graph, context: Context) -> list[Mapping[str, NDArray[Any]]]:
    """Samples without labels and, where there are fewer than asked for, variants of them.

    Args:
        data: Where they come from.
        samples: So many at most.
        graph: What the pass was given; decides about mirrored images where the run has no reference.
        context: The run.
    """
    return filled_up(
        [feeds for feeds, _ in data.take(samples)],
        samples,
        graph if context.reference is None else context.reference.graph,
        augment=data.augment,
        seed=context.seed_for("variants"),
        threads=context.threads,
    )
