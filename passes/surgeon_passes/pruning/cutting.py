"""From targets to a cut model: choose, cut, prove and refit, in as many steps as asked for."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from surgeon.errors import DataError, GateError, InternalError, UnsupportedModelError
from surgeon.refit.carry import Current, carry_over
from surgeon.refit.fit import Effort
from surgeon.refit.sampling import Places
from surgeon.refit.sweep import refit
from surgeon.stats.variants import filled_up, samples_in
from surgeon.surgery import keep_of
from surgeon_passes.pruning.choose import Choice, choose
from surgeon_passes.pruning.datafree import with_data
from surgeon_passes.pruning.proved import Proved, cut_and_prove
from surgeon_passes.pruning.rank import Ranking

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from surgeon.engine import Model
    from surgeon.passes import Context, Graph
    from surgeon.refit.sweep import Refitted
    from surgeon_passes.prune import Prune

    Kept = Mapping[str, NDArray[np.bool_]]
    Feeds = Sequence[Mapping[str, NDArray[Any]]]

SAMPLES = 1024  # that weights are refitted to, variants among them
PATIENT = 2  # times as many, and as many places, where a later pass learns, which takes minutes anyway
# of a refit whose result is compared with others and thrown away: most of the time goes into places
QUICK: dict[str, Any] = {"places": Places(per_input=15, fewest=20_000), "effort": Effort(steps=4, joint=4)}


@dataclass
class Cut:
    """A cut model.

    Attributes:
        graph: The model; the original where nothing could be cut.
        choice: What was kept and why the rest was not cut.
        proved: The cut with its plan and certificate, or None where nothing could be cut.
        refitted: What the refit did, or None.
        seconds: How long all refits took.
    """

    graph: Graph
    choice: Choice
    proved: Proved | None = None
    refitted: Refitted | None = None
    seconds: float = 0.0


@dataclass
class Cutting:
    """Cuts of one model; what was measured of it serves all of them.

    Attributes:
        options: The options of the pass.
        model: The analysed model.
        graph: The model as it came.
        context: The run.
        measuring: The run with the data that statistics come from, perhaps made-up ones.
    """

    options: Prune
    model: Model
    graph: Graph
    context: Context
    ranking: Ranking = field(init=False)
    measuring: Context = field(init=False)
    refused: dict[str, str] = field(default_factory=dict)
    _choices: dict[tuple[Any, ...], Choice] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.measuring = with_data(self.options, self.model, self.context)
        self.ranking = Ranking(self.options, self.model, self.measuring)

    def to(self, targets: Mapping[str, float] | None, *, quick: bool = False) -> Cut:
        """Cut to targets, or by the pass's ratio without any; groups whose cut cannot be proved are left alone.

        Args:
            targets: What is to be left at most.
            quick: Whether the refit takes a fraction of the time, and is a little worse.

        Raises:
            GateError: The targets cannot be met, or the proof fails.
        """
        while True:
            found = self._try(targets, quick=quick)
            if isinstance(found, Cut):
                return found
            self.refused |= found

    def _try(self, targets: Mapping[str, float] | None, *, quick: bool) -> Cut | dict[str, str]:
        current: Current | None = None
        spent = 0.0
        if self._steps() > 1:  # what the whole cut leans on is tried before the first of its steps
            self.chosen(targets)
        for share in self.options.schedule_of().shares(self._steps())[:-1]:
            choice = self._choose(_eased(targets, share), share, current)
            if choice is None or _whole(choice):
                continue
            try:
                smaller, plan = self.model.cut(choice.kept)
                if plan.interface:  # the data fit the original's inputs only
                    current = None
                    break
                current, _, seconds = self._refit(smaller, plan.kept(), current, quick=quick)
            except (InternalError, UnsupportedModelError) as error:
                # the proof of the last step finds the groups that make this cut no model that runs
                self.context.warn(f"a step was left out, its cut does not run: {error.message}")
                continue
            spent += seconds
        return self._prove(self.chosen(targets, current), current, spent, quick=quick)

    def of(self, choice: Choice) -> Cut | dict[str, str]:
        """Cut in one step to what was chosen elsewhere, or say which groups' cuts cannot be proved and why."""
        return self._prove(choice, None, 0.0, quick=False)

    def _prove(
        self, choice: Choice, current: Current | None, spent: float, *, quick: bool
    ) -> Cut | dict[str, str]:
        kept = {name: flags for name, flags in choice.kept.items() if not flags.all()}
        if not kept:
            return Cut(self.graph, choice)
        outcome = cut_and_prove(self.model, kept, self.context)
        if not isinstance(outcome, Proved):
            return outcome
        if self._reconstructs and outcome.plan.interface:
            self.context.warn("inputs of the model were cut, which the data do not fit: nothing was refitted")
        if not self._reconstructs or outcome.plan.interface:
            return Cut(outcome.graph, choice, outcome)
        _, refitted, seconds = self._refit(outcome.graph, outcome.plan.kept(), current, quick=quick)
        return Cut(outcome.graph, choice, outcome, refitted, spent + seconds)

    def chosen(self, targets: Mapping[str, float] | None, current: Current | None = None) -> Choice:
        """What to keep in the end.

        Raises:
            GateError: The targets cannot be met.
        """
        # a ratio takes as much of every group, whatever it is worth
        if current is not None or targets is None:
            return self._choice(targets, current)
        key = (*sorted(targets.items()), *sorted(self.refused))
        while key not in self._choices:
            choice = self._choice(targets, None)
            if not self.ranking.look_closer(choice.kept):
                self._choices[key] = choice
        return self._choices[key]

    def _choice(
        self, targets: Mapping[str, float] | None, current: Current | None, share: float = 1.0
    ) -> Choice:
        return choose(
            self.options, self.model, self.context, self.ranking, targets, self.refused, current, share
        )

    @property
    def made_up(self) -> bool:
        """Whether statistics come from made-up inputs."""
        return self.measuring is not self.context

    @property
    def _reconstructs(self) -> bool:
        return self.options.reconstruct and self.measuring.data is not None

    @property
    def _patience(self) -> int:
        return PATIENT if self.context.trains else 1

    @property
    def _feeds(self) -> Feeds:
        """The batches that statistics come from."""
        return [batch[0] for batch in self.measuring.calibration()]

    @cached_property
    def _variants(self) -> Feeds:
        """Variants of few samples, for operators that have few places in them."""
        own = self._feeds
        count = sum(map(samples_in, own))
        size = sum(array.nbytes for batch in own for array in batch.values())
        affordable = count + int(self.options.memory * 2**20 / 4 / max(size, 1) * count)
        try:
            filled = filled_up(
                own,
                min(SAMPLES * self._patience, affordable),
                self.model.analysis.graph,
                augment=self.measuring.calibration().augment,
                seed=self.context.seed_for("variants"),
                threads=self.context.threads,
            )
        except DataError as error:  # a function that wants labels, say
            self.context.warn(f"weights are refitted to the samples alone: {error.message}")
            return ()
        return filled[len(own) :]

    def _steps(self) -> int:
        return self.options.steps if self._reconstructs else 1

    def _choose(
        self, targets: Mapping[str, float] | None, share: float, current: Current | None
    ) -> Choice | None:
        """What to keep after one of the steps before the last; None where limits allow nothing yet."""
        try:
            return self._choice(targets, current, share)
        except GateError:
            return None  # the last step says what is out of reach

    def _refit(
        self, smaller: Any, kept: Kept, current: Current | None, *, quick: bool
    ) -> tuple[Current, Refitted, float]:
        started = time.perf_counter()
        model, context = self.model, self.context
        keep = keep_of(kept, {group.id: group.atom for group in model.groups})
        after = Current(keep, smaller)
        if current is not None:
            carry_over(model.analysis, current, after)
        with context.progress("refit", len(model.analysis.ops)) as advance:
            refitted = refit(
                model.analysis,
                smaller,
                keep,
                self._feeds,
                seed=context.seed_for("refit"),
                threads=context.threads,
                limit_bytes=self.options.memory * 2**20,
                progress=advance,
                merge=self.options.merge,
                more=() if self.made_up else self._variants,
                **(QUICK if quick else {"places": Places().times(self._patience)}),
            )
        return after, refitted, time.perf_counter() - started


def _whole(choice: Choice) -> bool:
    return all(flags.all() for flags in choice.kept.values())


def _eased(targets: Mapping[str, float] | None, share: float) -> dict[str, float] | None:
    """Targets after a share of the way."""
    return None if targets is None else {name: 1 - (1 - value) * share for name, value in targets.items()}
