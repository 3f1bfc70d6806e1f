"""Samples to learn from and samples to judge by, divided once for all that is trained, and put into batches apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.grad.rows import rows_are_apart
from surgeon.grad.samples import Samples

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Feeds = Mapping[str, Array]

HELD_OUT = 0.125


@dataclass(frozen=True)
class Division:
    """Batches by what they are for.

    Whatever a piece of a graph takes for its samples, rows or windows of them or whole batches: those of the one never
    depend on a sample of the other.

    Attributes:
        learn: Batches to learn from.
        judge: Batches to judge by; none if there is one sample alone.
        size: Samples per batch at most; 1 where a batch as a whole is one.
    """

    learn: Sequence[Feeds]
    judge: Sequence[Feeds]
    size: int = 1

    @property
    def feeds(self) -> list[Feeds]:
        """All of them, those to learn from first."""
        return [*self.learn, *self.judge]

    def numbers(self, samples: Samples) -> tuple[Array, Array]:
        """The numbers of samples of ``feeds`` to learn from, and of those to judge by."""
        bound = sum(samples.sizes[: len(self.learn)])
        return np.arange(bound), np.arange(bound, len(samples))


def divide(
    graphs: Sequence[gs.Graph],
    feeds: Sequence[Feeds],
    seed: int,
    *,
    variants: int = 0,
    judged: Collection[str] | None = None,
    threads: int = 1,
) -> Division:
    """Hold an eighth of the samples out: single ones where the graphs keep samples of a batch apart, else whole batches.

    Args:
        graphs: What will be run.
        feeds: Batches of their inputs.
        seed: Of what is held out.
        variants: How many variants of the samples follow them in ``feeds``, each with as many batches. Of what is held out
            only variants are judged by: what was fitted to the samples before would look too good on these.
        judged: Names of tensors in which samples have to be apart; by default the outputs.
        threads: Threads for onnxruntime.
    """
    inputs = sorted({tensor.name for each in graphs for tensor in each.inputs})
    count = len(feeds) // (1 + variants)
    if not inputs:
        return Division(feeds, [])

    def of(first: int, *, rows: bool) -> Samples:
        return Samples.of(inputs, lambda name, batch: feeds[first + batch][name], count, rows=rows)

    kinds = [of(k * count, rows=True) for k in range(1 + variants)]
    own = kinds[0]
    rows = all(each.rows and each.sizes == own.sizes for each in kinds)
    rows = rows and all(rows_are_apart(each, own, threads, judged) for each in graphs)
    if not rows:
        kinds = [of(k * count, rows=False) for k in range(1 + variants)]
    learn, held = kinds[0].split(HELD_OUT, np.random.default_rng(seed))
    size = max(own.sizes)
    return Division(
        [batch for each in kinds for _, batch in each.take(learn, size)],
        [batch for each in kinds[1:] or kinds for _, batch in each.take(held, size)],
        size if rows else 1,
    )
