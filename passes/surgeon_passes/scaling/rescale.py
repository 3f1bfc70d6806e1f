"""The frame of a pass that scales channels: finding what may be scaled, ranges, the new graph, and what is reported."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.engine import analyse
from surgeon.graph.copy import copy_of
from surgeon.scaling import Scaling
from surgeon.scaling.apply import check_unchanged, scaled
from surgeon.scaling.classes import Class, find_classes, why_fixed
from surgeon.scaling.ranges import Range, find_ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.passes import Context, Graph
    from surgeon.stats.data import Dataset

    Array = NDArray[Any]

CHECKED = 2  # batches of real inputs that outputs are compared on
_CLIPPING = ("Relu", "Clip")


class Rescaling:
    """One run of such a pass.

    Attributes:
        scaling: What may be scaled.
        classes: The classes of channels.
    """

    def __init__(self, name: str, graph: Graph, context: Context, exclude: Sequence[str]) -> None:
        self.name, self.graph, self.context = name, graph, context
        self.model = analyse(copy_of(graph))

        def excluded(each: str) -> bool:
            return context.excluded(each) or any(fnmatch.fnmatchcase(each, pattern) for pattern in exclude)

        self.scaling = Scaling(self.model.analysis, excluded)
        self.classes = find_classes(self.scaling)

    def ranges(self, classes: Sequence[Class], data: Dataset) -> dict[str, Range]:
        """Ranges of the tensors that will be rounded, and of all that the weights around the classes multiply.

        A tensor that only a Relu or Clip reads is not rounded by itself.
        """
        users: dict[str, list[str]] = {}
        for op in self.model.analysis.ops:
            for tensor in op.node.inputs:
                users.setdefault(tensor.name, []).append(op.node.op)
        wanted: dict[str, tuple[int, ...]] = {}
        for each in classes:
            for name in each.tensors:
                if any(user not in _CLIPPING for user in users.get(name, [])) and self._steady(name):
                    wanted[name] = self._channels(name)
            for demand in (*each.readers, *each.writers):
                name = demand.op.node.inputs[0].name
                wanted.setdefault(name, self._channels(name))
        return (
            find_ranges(self.model.analysis.graph, wanted, data, threads=self.context.threads)
            if wanted
            else {}
        )

    def _steady(self, name: str) -> bool:
        """Whether no axis with channels changes with a dynamic dimension, as batch times heads does."""
        dynamic = self.model.analysis.shapes.dynamic.get(name) or ()
        return not any(
            changes and size > 1 for changes, size in zip(dynamic, self._channels(name), strict=False)
        )

    def _channels(self, name: str) -> tuple[int, ...]:
        known = self.scaling.labels.get(name)
        if known is not None and known.any():
            return known.shape
        return (1,) * len(self.model.analysis.shapes.dims[name] or ())

    def known(self, each: Class, ranges: Mapping[str, Range]) -> bool:
        """Whether every number around a class is finite."""
        names = [*each.tensors, *(d.op.node.inputs[0].name for d in (*each.readers, *each.writers))]
        return all(ranges[name].finite for name in names if name in ranges)

    def left(self, found: Collection[str], why_not: Callable[[Class], str]) -> list[dict[str, Any]]:
        """The outputs of operators with weights whose channels keep their numbers, and why.

        Args:
            found: The names of the classes that were scaled.
            why_not: Why a class that could be scaled was not tried; '' where it was.
        """
        by_tensor = {name: each for each in self.classes for name in each.tensors}
        result = []
        for demand in self.scaling.demands:
            if demand.rows is None or demand.columns is None:
                continue
            name = demand.op.node.outputs[0].name
            each = by_tensor.get(name)
            if each is not None and each.name in found:
                continue
            reason = why_fixed(self.scaling, name)
            if not reason and each is not None:
                reason = why_not(each)
            result.append(
                {
                    "tensor": name,
                    "channels": int(demand.columns.max()) + 1,
                    "reason": reason or "its channels round well enough as they are",
                }
            )
        return result

    def finish(self, factors: Array) -> Graph:
        """The graph with these factors, compared with what it was; the graph as it came where all of them are 1.

        Raises:
            PassError: The outputs changed by more than rounding explains.
        """
        if np.all(factors == 1):
            self.context.record["max_rel_err"] = 0.0
            return self.graph
        changed = scaled(self.model, self.scaling, factors)
        batches = [feeds for (feeds, _), _ in zip(self.context.calibration(), range(CHECKED), strict=False)]
        self.context.record["max_rel_err"] = check_unchanged(
            self.model,
            changed,
            batches,
            self.name,
            threads=self.context.threads,
            folder=self.context.scratch,
        )
        if self.context.reference is not None:
            names = [name for name, labels in self.scaling.labels.items() if np.any(factors[labels] != 1)]
            scales = {name: self.scaling.factors(name, factors) for name in names}
            self.context.reference = self.context.reference.scaled(scales)
        return changed
