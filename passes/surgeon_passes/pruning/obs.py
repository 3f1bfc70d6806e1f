"""The score ``obs``: what removing each index adds to the error of the model's outputs, from calibration data.

Elimination gives each group's error at its consumers, see `surgeon.refit.curves`. What is left of an error at the
outputs, once everything behind has been refitted, grows slower than the error itself: over the groups of a ResNet-20 the
logarithms of the two lie on lines of slope 0.8 to 0.9 (plans hardly change between 0.7 and 1). The height of the line is measured for some groups, with one cut of each
alone, see `surgeon.refit.sensitivity`, and foretold for the others, see `surgeon_passes.pruning.heights`. What a cut leans on most is
not left to that: groups that it takes much from are tried after all, and if one of them surprises, another cut is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from surgeon.refit.curves import Curve, error_curves
from surgeon.refit.sensitivity import PROBES, Probe, in_order, inside, sensitivities, spread, trials
from surgeon_passes.pruning.heights import between
from surgeon_passes.pruning.influence import influences

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.engine import Model
    from surgeon.groups import Group
    from surgeon.passes import Context
    from surgeon.refit.carry import Current
    from surgeon.scores import Slopes
    from surgeon.stats.data import Dataset

    Floats = NDArray[np.float64]

SLOPE = 0.85
MOST_SAMPLES, FEWEST_SAMPLES = 256, 8
MOST_MACS = 1e12  # multiply-accumulates that the probes at the beginning may take together
CLOSER, MOST_CLOSER = 4, 16  # groups that are tried after all, for one cut and for all of them
SURPRISE = 2.0  # times as much, or as little, as was foretold
TINY = 1e-12


@dataclass
class Eliminator:
    """Curves and sensitivities of one model, each measured once.

    Attributes:
        model: The model.
        context: The run.
        memory: Bytes of activations held in memory.
        probing: Whether sensitivities are measured.
        curves: Of the original, by group id.
        probes: What cutting single groups did, by group id.
        slopes: The squared slopes of the indices that go where a group is tried, by group id; none if all are tried.
    """

    model: Model
    context: Context
    memory: int
    probing: bool = True
    curves: dict[str, Curve] = field(default_factory=dict)
    probes: dict[str, Probe] = field(default_factory=dict)
    slopes: dict[str, float] = field(default_factory=dict)
    _able: list[Group] = field(default_factory=list)
    _looked: set[str] = field(default_factory=set)
    _influence: Mapping[str, Slopes] = field(default_factory=dict)

    def scores(self, groups: Sequence[Group], current: Current | None) -> dict[str, Floats]:
        """Per group what removing each index adds to the error of the outputs, in the order in which they go best.

        Groups that no product sums over, with weights or other activations, are left out; indices gone score nothing.
        """
        if not self.curves:
            self.curves = self._curves(groups, None)
            if self.probing:
                self._able = [group for group in groups if group.id in self.curves]
                self.probes = self._probes(spread(self.model.analysis, self._able))
                self.slopes = self._slopes(self._able) if len(self.probes) < len(self._able) else {}
        curves = self.curves if current is None else self._curves(groups, current)
        factors = self._factors([group for group in groups if group.id in self.curves])
        return {
            group.id: self._rises(curves[group.id], self.curves[group.id], factors[group.id], group.size)
            for group in groups
            if group.id in curves and group.id in self.curves
        }

    def look_closer(self, kept: Mapping[str, NDArray[np.bool_]], scores: Mapping[str, Floats]) -> bool:
        """Try the groups that a cut leans on most, of those that were only foretold.

        Args:
            kept: The flags of a cut, by group id.
            scores: What it was chosen by.

        Returns:
            Whether one of them does something else than was foretold, so that another cut may be better.
        """
        leans = {
            group.id: float(scores[group.id][~kept[group.id]].sum())
            for group in inside(self.model.analysis, self._able)
            if group.id in kept.keys() & scores.keys() - self.probes.keys() - self._looked
        }
        most = sorted((name for name in leans if leans[name] > 0), key=lambda name: -leans[name])
        chosen = most[: min(CLOSER, MOST_CLOSER - len(self._looked))]
        if not chosen:
            return False
        self._looked |= {*chosen}
        foretold = self._factors(self._able)
        found = self._probes([group for group in self._able if group.id in chosen])
        self.probes |= found
        self.slopes |= self._summed([group for group in self._able if group.id in found])
        errors = {name: foretold[name] * max(probe.local, TINY) ** SLOPE for name, probe in found.items()}
        return any(
            not 1 / SURPRISE < probe.outputs / errors[name] < SURPRISE for name, probe in found.items()
        )

    def _curves(self, groups: Sequence[Group], current: Current | None) -> dict[str, Curve]:
        with self.context.progress("measure", len(self.model.analysis.ops)) as advance:
            return error_curves(
                self.model.analysis,
                groups,
                [batch[0] for batch in self.context.calibration()],
                current=current,
                seed=self.context.seed_for("obs"),
                threads=self.context.threads,
                limit_bytes=self.memory,
                progress=advance,
            )

    def _probes(self, groups: Sequence[Group]) -> dict[str, Probe]:
        with self.context.progress("probe", len(groups)) as advance:
            return sensitivities(
                self.model.analysis,
                groups,
                self.curves,
                [feeds for feeds, _ in self._sample(len(self._able))],
                seed=self.context.seed_for("sensitivity"),
                threads=self.context.threads,
                limit_bytes=self.memory,
                progress=advance,
            )

    def _slopes(self, groups: Sequence[Group]) -> dict[str, float]:
        context = replace(self.context, data=self._sample(len(groups)))
        self._influence = influences(self.model, groups, context, self.memory, labels=False).slopes
        return self._summed(groups)

    def _summed(self, groups: Sequence[Group]) -> dict[str, float]:
        """The squared slopes of the indices that go where each of some groups is tried."""
        result = {}
        for group in groups:
            if group.id in self._influence:
                found = self._influence[group.id]
                removed, _ = self._trial(group)
                first = list(self.curves[group.id].order[:removed])
                result[group.id] = float(found.squares[first].sum() / found.count)
        return result

    def _trial(self, group: Group) -> tuple[int, float]:
        """How many indices went where a group was tried, or would go, and what its curve says of that."""
        probe = self.probes.get(group.id)
        if probe is not None:
            return probe.removed, probe.local
        return next(trials(group, self.curves[group.id]), (0, 0.0))

    def _sample(self, groups: int) -> Dataset:
        """Two batches or more, as many samples as time and memory allow."""
        data = self.context.calibration()
        analysis = self.model.analysis
        largest = sum(4 * prod(dims[1:]) for dims in analysis.shapes.dims.values() if dims)
        macs = max(self.model.cost.evaluate().macs, 1.0) * max(1, min(PROBES, groups))
        affordable = min(self.memory / 2 / max(largest, 1), MOST_MACS / macs, MOST_SAMPLES)
        wanted = max(FEWEST_SAMPLES, int(affordable))
        batch = data.rebatched(max(1, wanted // 4)).batch  # what the model takes, where it takes no other
        wanted = max(2, wanted // batch) * batch
        if wanted < data.total():
            _, data = data.split(wanted / data.total(), self.context.seed_for("sensitivity"))
        return data.rebatched(batch)

    def _factors(self, groups: Sequence[Group]) -> dict[str, float]:
        """The height of each group's line; of those that were not tried, as foretold."""
        ordered = in_order(self.model.analysis, groups)
        tried = [k for k, group in enumerate(ordered) if group.id in self.probes]
        if not tried:
            return dict.fromkeys((group.id for group in ordered), 1.0)
        local = [self._trial(group)[1] for group in ordered]
        errors = SLOPE * np.log(np.maximum(local, TINY))
        outputs = np.log([self.probes[ordered[k].id].outputs for k in tried])
        slopes = [self.slopes.get(group.id, 0.0) for group in ordered]
        unrefitted = np.log([slope if slope > 0 else np.nan for slope in slopes])
        found = np.exp(between(tried, outputs, errors, unrefitted) - errors)
        return {group.id: float(factor) for group, factor in zip(ordered, found, strict=True)}

    def _rises(self, curve: Curve, first: Curve, factor: float, size: int) -> Floats:
        left = set(curve.order)
        gone = sum(
            max(step, 0.0) for index, step in zip(first.order, first.steps, strict=True) if index not in left
        )
        # a later step never counts less than an earlier one: what goes first has to be the cheapest
        steps = np.maximum.accumulate(np.maximum(curve.steps, 0.0))
        total = factor * (gone + np.concatenate([[0.0], np.cumsum(steps)]) + TINY) ** SLOPE
        scores = np.zeros(size)
        scores[list(curve.order)] = np.maximum.accumulate(np.diff(total)) * (
            1 + 1e-9 * np.arange(len(curve.order))
        )
        return scores
