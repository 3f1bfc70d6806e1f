"""The accuracy budget: the smallest cut that costs no more of the metric than is allowed, by bisection.

Where other passes follow, a cut is judged by what they make of it, so that they need no part of the budget set aside.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from surgeon.errors import GateError
from surgeon.judge import MEASURED, OFFERS, Judge, Verdict, bytes_left
from surgeon.reference import narrowed
from surgeon_passes.pruning.choose import OutOfReachError, least_left

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from surgeon.judge import Offer
    from surgeon.passes import Graph, Later
    from surgeon_passes.prune import Prune
    from surgeon_passes.pruning.cutting import Cut, Cutting

BRACKET = 0.02
WORDS = {"macs": "MACs", "params": "parameters", "size": "weight bytes"}


@dataclass(frozen=True)
class Trial:
    """One cut that was measured.

    Attributes:
        asked: The fraction of the original that was asked for.
        left: The fraction that was left, at most ``asked``.
        metric: What was measured.
        within: Whether that is within the budget.
    """

    asked: float
    left: float
    metric: float
    within: bool


def smallest(attempt: Callable[[float], Trial | None], least: float, tries: int) -> list[Trial]:
    """Look for the smallest cut within the budget.

    The metric need not be monotone: it is only believed where it was measured.

    Args:
        attempt: Cuts to a fraction and measures; None where that cannot be reached after all.
        least: The smallest fraction that can be reached.
        tries: How many cuts are measured at most.

    Returns:
        Everything that was measured, the smallest first. The first that is within the budget is the answer.
    """
    low, high = least, 1.0
    measured: list[Trial] = []
    begun = False
    while len(measured) < tries and (not begun or high - low > BRACKET):
        begun = True
        asked = round((low + high) / 2, 4)  # few digits, so that a target can repeat it
        trial = attempt(asked)
        if trial is not None:
            measured.append(trial)
        if trial is not None and trial.within:
            high = min(asked, trial.left)
        else:
            low = asked
    return sorted(measured, key=lambda trial: (trial.left, trial.asked))


def cut_within(cutting: Cutting, max_drop: float) -> Cut:
    """Cut as much as the metric allows, and record every cut that was measured.

    Raises:
        UsageError: There is nothing to measure the metric on, or it cannot tell models apart.
        GateError: Even the mildest cut costs more than is allowed, or what the later passes make of the model as it is.
    """
    options, context = cutting.options, cutting.context
    least = least_left(options, cutting.model, context, cutting.ranking, cutting.refused, options.by)
    if (
        least >= 1.0 or context.trial
    ):  # nothing can go, the choice says why; or a pass before this looks for its share
        return cutting.to({options.by: 1.0})
    search = _Search(cutting, Judge.of(context, max_drop, _option(options)))
    with context.progress("budget", options.tries) as advance:
        if search.later is not None:
            search.start()

        def attempt(fraction: float) -> Trial | None:
            trial = search.attempt(fraction)
            advance(1)
            return trial

        trials = smallest(attempt, least, options.tries)
    context.record["budget"] = search.record()
    if search.best is None:
        raise _too_much(search, trials)
    return search.best


@dataclass
class _Search:
    """The cuts that were measured, and the best of those within the budget.

    Attributes:
        cutting: Makes the cuts.
        judge: Measures them.
        best: The best one.
        least: How small that is, see `_worth`.
        confidence: The least that any was held to.
        curve: What is left of each, and what the report says of it.
        whole: What the original has.
    """

    cutting: Cutting
    judge: Judge
    best: Cut | None = None
    least: float = 1.0
    confidence: float = 1.0
    curve: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    whole: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self.whole = _sizes(self.cutting.model.original)

    @property
    def later(self) -> Later | None:
        """The passes by whose result a cut is judged; a budget of the pass's own is for its own cut."""
        return self.cutting.context.later if self.cutting.options.max_drop is None else None

    def start(self) -> None:
        """Measure what the later passes make of the model as it is: if nothing better is found, nothing is cut.

        Where that is too much already, they do their best with it first, and what they found is used for the cuts.
        """
        uncut = self.cutting.to({self.cutting.options.by: 1.0})
        if not self._take(uncut, 1.0).within and self.later is not None:
            self.later(uncut.graph, settle=True)
            self._take(uncut, 1.0)

    def attempt(self, fraction: float) -> Trial | None:
        """Cut to a fraction, measure, and remember it where it is the smallest within the budget so far."""
        try:
            found = self.cutting.to({self.cutting.options.by: fraction})
        except OutOfReachError:
            return None
        return self._take(found, fraction)

    def _take(self, found: Cut, asked: float) -> Trial:
        by = self.cutting.options.by
        sizes, verdict = _sizes(found.graph), self._verdict(found)
        self.confidence = min(self.confidence, verdict.confidence)
        left = sizes[by] / max(self.whole[by], 1.0)
        trial = Trial(asked, left, verdict.metric, verdict.within)
        worth = self._worth(left, verdict)
        if trial.within and (self.best is None or worth < self.least):
            self.best, self.least = found, worth
        point = {
            "asked": asked,
            "macs": int(sizes["macs"]),
            "params": int(sizes["params"]),
            "bytes": verdict.bytes,
            "metric": verdict.metric,
            "bound": verdict.bound,
            "within": trial.within,
        }
        self.curve.append((left, point))
        return trial

    def _worth(self, left: float, verdict: Verdict) -> float:
        """How small a result is: what is left or, where later passes make use of a part of the budget, that times the bytes.

        What a cut does not take of the budget goes there, so that the most is got for both together.
        """
        offers: Sequence[Offer] = self.judge.context.kept.get(OFFERS, ()) if self.later is not None else ()
        if not offers:
            return left
        size = verdict.bytes * bytes_left(offers, self.judge.max_drop - verdict.bound)
        return size if self.cutting.options.by == "size" else left * size

    def _verdict(self, found: Cut) -> Verdict:
        """What is measured of a cut, or of what the later passes make of it."""
        if self.later is None:
            return self.judge.measure(found.graph)
        if found.proved is None:
            return self.judge.measure(self.later(found.graph))
        plan = found.proved.plan
        reference = narrowed(self.cutting.context.reference, self.cutting.model, plan)
        return self.judge.measure(self.later(found.graph, plan=plan, reference=reference))

    def record(self) -> dict[str, Any]:
        """The trade-off curve, the smallest model first."""
        ordered = sorted(self.curve, key=lambda entry: (entry[0], entry[1]["asked"]))
        return {
            "metric": self.judge.metric.name,
            "before": self.judge.before,
            "max_drop": self.judge.max_drop,
            "confidence": self.confidence,
            "by": self.cutting.options.by,
            "judged_after": [] if self.later is None else list(self.later.names),
            "curve": [point for _, point in ordered],
        }


def _sizes(graph: Graph) -> dict[str, float]:
    from surgeon.cost import count
    from surgeon.measure import parameters

    cost = count(graph)
    return {"macs": cost.macs, "params": float(parameters(graph)), "size": cost.bytes}


def _option(options: Prune) -> str:
    return "--max-drop" if options.max_drop is None else "prune.max_drop"


def _too_much(search: _Search, trials: list[Trial]) -> GateError:
    options, judge = search.cutting.options, search.judge
    where = _option(options)
    if not trials:
        return GateError("no cut could be reached within the limits of its groups", where=where)
    name, mildest = judge.metric.name, trials[-1]
    best = min(trials, key=lambda trial: judge.metric.loss(judge.before, trial.metric)).metric
    lost = judge.metric.loss(judge.before, mildest.metric)
    bound = max(search.curve, key=lambda entry: entry[0])[1]["bound"]
    sure = (
        f", up to {bound:.4f} on other data ({search.confidence:g})" if search.confidence > MEASURED else ""
    )
    return GateError(
        f"no cut costs at most {judge.max_drop:g} of {name}, {judge.before:.4f} before: the mildest of "
        f"{len(trials)} that were measured leaves {mildest.left:.3f} of the {WORDS[options.by]} and loses {lost:.4f}{sure}; "
        f"the best {name} was {best:.4f}",
        where=where,
        hint="allow more, or give more calibration or evaluation data",
    )
