"""What the prices foretell is carried out and, where it is both cuts and splits, compared with either alone.

Errors are foretold one by one, and do not simply add up where an operator loses channels and is split as well. So what decides in
the end are the outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from surgeon.allocate.candidate import SLACK
from surgeon.cost import count
from surgeon.errors import GateError
from surgeon.graph.copy import copy_of
from surgeon.graph.save import to_model
from surgeon.stats.compare import Outputs
from surgeon_passes.pruning.describe import note

if TYPE_CHECKING:
    from surgeon.passes import Context, Graph
    from surgeon_passes.factorizing.curves import Curves
    from surgeon_passes.factorizing.split import Splitter
    from surgeon_passes.pruning.cutting import Cut, Cutting
    from surgeon_passes.shrink import Shrink

    Attempt = Callable[[Context], Graph]

SAMPLES = 256  # that attempts are compared on


@dataclass(frozen=True)
class Attempts:
    """Ways to meet the target.

    Attributes:
        options: Of the pass.
        cutting: Cuts.
        splitter: Splits, in place.
        curves: What splits leave out.
        fraction: Of the multiply-accumulates that may be left.
    """

    options: Shrink
    cutting: Cutting
    splitter: Splitter
    curves: Curves
    fraction: float

    def best(self, found: Cut) -> Graph:
        """The graph that the cut and what is then to be split lead to, or cuts or splits alone where they are better.

        Raises:
            GateError: None meets the target.
        """
        try:
            return self._best(found, self.cutting.context)
        except GateError as error:
            raise GateError(
                f"at most {self.fraction:g} of the multiply-accumulates is asked for, and neither cuts nor splits reach that; "
                f"the last that was tried: {error.message}",
                where="shrink.macs",
                hint="ask for less, or let multiple_of or round_to be smaller",
            ) from error

    def _best(self, found: Cut, context: Context) -> Graph:
        if found.proved is None:
            note(found, self.cutting, context)
            return self._split(context)
        if not self._is_too_large(found.graph):
            note(found, self.cutting, context)
            self.splitter.describe(self.curves, {})
            return found.graph
        attempts: dict[str, Attempt] = {
            "cuts and splits": lambda trial: self._both(found, trial),
            "cuts": self._cut,
            "splits": self._split,  # which changes the graph that the others start from
        }
        return self._compared(attempts, context)

    def _compared(self, attempts: dict[str, Attempt], context: Context) -> Graph:
        feeds = [batch for batch, _ in context.calibration().take(SAMPLES)]
        outputs = Outputs.on(to_model(copy_of(self.cutting.graph)), feeds, context.threads)
        errors: dict[str, float | None] = {}
        best: tuple[float, str, Graph, Context] | None = None
        refused: GateError | None = None
        for name, attempt in attempts.items():
            trial = replace(context, record={})
            try:
                graph = attempt(trial)
            except GateError as refusal:
                refused, errors[name] = refusal, None
                continue
            error = errors[name] = outputs.distance(to_model(graph), context.threads)
            if best is None or error < best[0]:
                best = error, name, graph, trial
        if best is None:
            raise refused or GateError("nothing can be cut or split", where="shrink.macs")
        _, name, graph, trial = best
        context.plan, context.left, context.reference = trial.plan, trial.left, trial.reference
        context.record |= trial.record
        context.record["attempts"] = {"errors": errors, "taken": name}
        return graph

    def _both(self, found: Cut, trial: Context) -> Graph:
        left = count(found.graph).macs / max(count(self.cutting.graph).macs, 1.0)
        note(found, self.cutting, trial)
        return self.options.factorizing(self.fraction / left).run(copy_of(found.graph), trial)

    def _cut(self, trial: Context) -> Graph:
        found = self.cutting.to({"macs": self.fraction})
        note(found, self.cutting, trial)
        self.splitter.describe(self.curves, {}, context=trial)
        return found.graph

    def _split(self, trial: Context) -> Graph:
        with trial.progress(self.options.name, None) as advance:
            self.splitter.split(self.curves, self.fraction, advance, context=trial)
        return self.splitter.graph

    def _is_too_large(self, graph: Graph) -> bool:
        return count(graph).macs > count(self.cutting.graph).macs * self.fraction * (1 + SLACK)
