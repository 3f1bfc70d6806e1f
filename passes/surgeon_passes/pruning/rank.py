"""Ranking the indices of each group by a score over its weights or activations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.errors import UsageError
from surgeon.graph.weights import peek
from surgeon.scores import WEIGHT_SCORES, Slices
from surgeon.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from surgeon.engine import Model
    from surgeon.groups import Group
    from surgeon.passes import Context
    from surgeon_passes.prune import Prune

REDUCTIONS = {"mean": np.nanmean, "max": np.nanmax, "sum": np.nansum}


def rank(
    options: Prune, model: Model, groups: list[Group], context: Context
) -> dict[str, NDArray[np.float64]]:
    """Scores per index of each group; within a group they average 1, so that groups can be compared."""
    if options.score == "random":
        random = np.random.default_rng(context.seed_for("prune"))
        return {group.id: random.random(group.size) for group in groups}
    function = WEIGHT_SCORES.get(options.score)
    if function is None:
        raise UsageError(
            f"no such score {options.score!r}",
            where="prune.score",
            hint=did_you_mean(options.score, [*WEIGHT_SCORES, "random"], what="scores"),
        )
    constants = {t.name: t for op in model.analysis.ops for t in op.node.inputs if isinstance(t, gs.Constant)}
    result = {}
    for group in groups:
        each = [
            _normalised(function(slices), slices.covered()) for slices in _slices(model, group, constants)
        ]
        result[group.id] = REDUCTIONS[options.reduce](each, axis=0) if each else np.ones(group.size)
    return result


def _normalised(scores: NDArray[np.float64], covered: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Scores with mean 1; undefined for indices that the tensor does not have, so that they are left out of account."""
    mean = scores[covered].mean()
    return np.where(covered, scores / mean if mean > 0 else 1.0, np.nan)


def _slices(model: Model, group: Group, constants: dict[str, gs.Constant]) -> Iterable[Slices]:
    """The group's float weights of rank 2 and more; where there are none, those of rank 1."""
    mine = [(name, axis) for name, axis in group.members if name in constants]
    matrices = [(name, axis) for name, axis in mine if len(constants[name].shape) > 1]
    for name, axis in matrices or mine:
        values = peek(constants[name])
        if values.dtype.kind == "f":
            expression = (model.analysis.axes[name] or [])[axis]
            yield Slices.of(values, axis, expression, group.atom)
