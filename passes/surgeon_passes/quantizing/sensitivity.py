"""How much of the outputs' error each quantized operator is to blame for, measured with that operator alone quantized.

Divergence is the squared error of the float outputs relative to their variance. What operators do alone nearly adds up to what they do
together. The other way round, all quantized but one, foretells worse which ones to give up: where two operators share a rounded
tensor neither brings much without the other, and small errors drown in the large.
"""

from __future__ import annotations

import itertools
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    import onnx

    from surgeon.stats.compare import Outputs

    Make = Callable[[Collection[str]], onnx.ModelProto]
    Advance = Callable[[int], None]

MOST_GROUPS = 96  # of operators that are measured; where there are more, neighbours go together
FIRST = 8  # groups that the largest are looked for in
HALVED = 4  # of them at a time
TINY = 1e-12
LEAST = 0.01  # share of the error below which nobody looks closer


@dataclass(frozen=True)
class Sensitivity:
    """What some neighbouring operators cost.

    Attributes:
        nodes: Their names; one, unless there are very many.
        alone: The divergence of the outputs with only these quantized.
    """

    nodes: tuple[str, ...]
    alone: float


def groups_of(names: Sequence[str], most: int = MOST_GROUPS) -> list[tuple[str, ...]]:
    """Operators in the order of the graph, one by one or, where there are more than ``most``, neighbours together."""
    count = min(len(names), most)
    edges = [round(k * len(names) / count) for k in range(count + 1)] if count else [0]
    return [tuple(names[start:end]) for start, end in itertools.pairwise(edges)]


def sensitivities(
    make: Make, names: Sequence[str], outputs: Outputs, threads: int, progress: Advance = lambda _: None
) -> list[Sensitivity]:
    """Measure every operator, most to blame first.

    Args:
        make: Builds the model with all quantized but the operators of the given names.
        names: All quantized operators with weights, in the order of the graph.
        outputs: What the float model makes of some samples.
        threads: How many models are measured at a time, each on one thread.
        progress: Called with 1 after each model that was measured.
    """
    groups = groups_of(names)
    others = [tuple(name for name in names if name not in nodes) for nodes in groups]
    measured = _divergences(make, others, outputs, threads, progress)
    found = [Sensitivity(nodes, alone) for nodes, alone in zip(groups, measured, strict=True)]
    return sorted(found, key=lambda each: -each.alone)


def largest(make: Make, names: Sequence[str], outputs: Outputs, threads: int, most: int) -> list[Sensitivity]:
    """Find those to blame most, most of all first, by halving the groups of neighbours that make most of the error.

    Args:
        make: Builds the model with all quantized but the operators of the given names.
        names: All quantized operators with weights, in the order of the graph.
        outputs: What the float model makes of some samples.
        threads: How many models are measured at a time, each on one thread.
        most: How many models are measured, about.
    """
    done: list[Sensitivity] = []
    groups, error, asked = groups_of(names, FIRST), 0.0, 0
    while groups:
        others = [tuple(name for name in names if name not in nodes) for nodes in groups]
        measured = _divergences(make, others, outputs, threads, lambda _: None)
        asked, error = asked + len(groups), error or sum(measured)
        done += [Sensitivity(nodes, alone) for nodes, alone in zip(groups, measured, strict=True)]
        done.sort(key=lambda each: -each.alone)
        large = [each for each in done if len(each.nodes) > 1 and each.alone >= max(LEAST * error, TINY)]
        split = large[:HALVED] if asked < most else []
        done = [each for each in done if each not in split]
        groups = [half for each in split for half in groups_of(each.nodes, 2)]
    return done


def _divergences(
    make: Make, wanted: Sequence[Collection[str]], outputs: Outputs, threads: int, progress: Advance
) -> list[float]:
    """The divergence of each model. Models are made one after the other, few ahead of those that run in parallel."""
    found: list[float] = []
    running: deque[Future[float | None]] = deque()

    def finish() -> None:
        found.append(running.popleft().result() or 0.0)
        progress(1)

    with ThreadPoolExecutor(threads) as pool:
        for names in wanted:
            running.append(pool.submit(outputs.divergence, make(names), 1))
            if len(running) > threads:
                finish()
        while running:
            finish()
    return found
