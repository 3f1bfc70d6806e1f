"""Which weights of a model a pass changes."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

from surgeon.errors import UsageError
from surgeon.stats.matrices import Weight, weights_of
from surgeon_passes.training.excluded import excluded_by

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surgeon.passes import Context, Graph


def chosen_weights(
    graph: Graph, context: Context, name: str, include: Sequence[str], exclude: Sequence[str]
) -> list[Weight]:
    """The weights that match patterns.

    Args:
        graph: The model.
        context: The run, whose exclusions count too.
        name: Of the pass.
        include: Only weights with a matching name, or of an operator with one; all if there are no patterns.
        exclude: None of these.

    Raises:
        UsageError: There is none.
    """
    found = matching_weights(graph, context, include, exclude)
    if not found:
        raise UsageError(
            "there is no weight to change",
            where=f"pass {name}",
            hint="weights are those of Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN that are not excluded",
        )
    return found


def matching_weights(
    graph: Graph, context: Context, include: Sequence[str], exclude: Sequence[str]
) -> list[Weight]:
    """The same, or none."""
    excluded = excluded_by(context, exclude)
    found = []
    for weight in weights_of(graph):
        readers = [str(node.name) for node in weight.readers()]
        names = [each for each in (*readers, weight.node.name, weight.name, weight.tensor.name) if each]
        wanted = not include or any(
            fnmatch.fnmatchcase(each, pattern) for each in names for pattern in include
        )
        if wanted and not any(map(excluded, names)):
            found.append(weight)
    return found
