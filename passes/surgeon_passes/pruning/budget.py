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

    from surgeon.judge import Early, Offer
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
        worth: How small the result is, with what later passes make of what is left of the budget.
    """

    asked: float
    left: float
    metric: float
    within: bool
    worth: float = 1.0


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


def best(attempt: Callable[[float], Trial | None], least: float, tries: int, uncut: Trial) -> list[Trial]:
    """Look for the cut with the best result, where the smallest need not be that one.

    The next cut is in the middle of the widest gap beside the best one so far, rather towards the smaller ones.

    Args:
        attempt: Cuts to a fraction and measures; None where that cannot be reached after all.
        least: The smallest fraction that can be reached.
        tries: How many cuts are measured at most.
        uncut: What was measured without a cut.

    Returns:
        Everything that was measured but ``uncut``, the smallest first.
    """
    measured: list[Trial] = []
    edges = {least, 1.0}
    leading = uncut if uncut.within else None
    low = high = 1.0  # what is left of the best, and what was asked for: nothing is in between
    for _ in range(tries):
        below = max((edge for edge in edges if edge < low), default=low)
        above = min((edge for edge in edges if edge > high), default=high)
        if max(low - below, above - high) <= BRACKET:
            break
        asked = round((below + low) / 2 if low - below >= above - high else (high + above) / 2, 4)
        trial = attempt(asked)
        edges.add(asked)
        if trial is None:
            continue
        measured.append(trial)
        edges.add(trial.left)
        if trial.within and (leading is None or trial.worth < leading.worth):
            leading, low, high = trial, min(asked, trial.left), asked
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

        def attempt(fraction: float) -> Trial | None:
            trial = search.attempt(fraction, quick=True)
            advance(1)
            return trial

        uncut = search.start() if search.later is not None else None
        if uncut is not None and search.offers:
            trials = best(attempt, least, options.tries, uncut)
        else:
            trials = smallest(attempt, least, options.tries)
        search.finish(trials)
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
        taken: Its place in the curve.
        confidence: The least that any was held to.
        known: What was measured of each choice, quick or not.
        final: The fractions asked for whose cuts were refitted for good.
        curve: What is left of each, and what the report says of it.
        whole: What the original has.
    """

    cutting: Cutting
    judge: Judge
    best: Cut | None = None
    least: float = 1.0
    taken: int = -1
    confidence: float = 1.0
    final: set[float] = field(default_factory=set)
    known: dict[tuple[Any, ...], Trial] = field(default_factory=dict)
    curve: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    whole: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self.whole = _sizes(self.cutting.model.original)

    @property
    def later(self) -> Later | None:
        """The passes by whose result a cut is judged; a budget of the pass's own is for its own cut."""
        return self.cutting.context.later if self.cutting.options.max_drop is None else None

    @property
    def offers(self) -> Sequence[Offer]:
        """What later passes make of a part of the budget."""
        found: Sequence[Offer] = self.judge.context.kept.get(OFFERS, ())
        return found if self.later is not None else ()

    def start(self) -> Trial:
        """Measure what the later passes make of the model as it is: if nothing better is found, nothing is cut.

        Where that is too much already, they do their best with it first, and what they found is used for the cuts.
        """
        uncut = self.cutting.to({self.cutting.options.by: 1.0})
        trial = self._take(uncut, 1.0, quick=False)
        if not trial.within and self.later is not None:
            self.later(uncut.graph, settle=True)
            trial = self._take(uncut, 1.0, quick=False)
        return trial

    def attempt(self, fraction: float, *, quick: bool) -> Trial | None:
        """Cut to a fraction, measure, and remember it where it is the best within the budget so far."""
        targets: dict[str, float] = {self.cutting.options.by: fraction}
        try:
            kept = self.cutting.chosen(targets).kept
            key: tuple[Any, ...] = (quick, *((name, flags.tobytes()) for name, flags in sorted(kept.items())))
            if (
                self.cutting.options.steps > 1
            ):  # what the steps before the last choose depends on the fraction
                key = (quick, fraction)
            if key not in self.known:  # several fractions may lead to one cut
                self.known[key] = self._take(self.cutting.to(targets, quick=quick), fraction, quick=quick)
        except OutOfReachError:
            return None
        return self.known[key]

    def finish(self, trials: Sequence[Trial]) -> None:
        """Refit for good, and measure, what promises most, until a cut is found that is within the budget.

        A little less than what was found may be within it with a better refit. What was measured of a quick one is no result.
        """
        promising = sorted((trial for trial in trials if trial.within), key=lambda trial: trial.worth)
        if not promising:
            promising = list(trials[-1:])  # the mildest
        elif not self.offers:
            smaller = [trial for trial in trials if trial.left < promising[0].left]
            promising = [*smaller[-1:], *promising]
        for trial in promising:
            if trial.within and self.best is not None and trial.worth >= self.least:
                return
            if trial.asked not in self.final:
                found = self.attempt(trial.asked, quick=False)
                if found is not None and found.within:
                    return

    def _take(self, found: Cut, asked: float, *, quick: bool) -> Trial:
        by, quick = self.cutting.options.by, quick and found.refitted is not None
        if not quick:
            self.final.add(asked)
        sizes, verdict = _sizes(found.graph), self._verdict(found, early="lost" if quick else "no")
        self.confidence = min(self.confidence, verdict.confidence)
        left = sizes[by] / max(self.whole[by], 1.0)
        trial = Trial(asked, left, verdict.metric, verdict.within, self._worth(left, verdict))
        if trial.within and not quick and (self.best is None or trial.worth < self.least):
            self.best, self.least, self.taken = found, trial.worth, len(self.curve)
        point = {
            "asked": asked,
            "macs": int(sizes["macs"]),
            "params": int(sizes["params"]),
            "bytes": verdict.bytes,
            "metric": verdict.metric,
            "bound": verdict.bound,
            "measured_on": verdict.units,
            "within": trial.within,
            "quick": quick,
        }
        self.curve.append((left, point))
        return trial

    def _worth(self, left: float, verdict: Verdict) -> float:
        """How small a result is: what is left or, where later passes make use of a part of the budget, that times the bytes.

        What a cut does not take of the budget goes there, so that the most is got for both together.
        """
        if not self.offers:
            return left
        size = verdict.bytes * bytes_left(self.offers, self.judge.max_drop - verdict.bound)
        return size if self.cutting.options.by == "size" else left * size

    def _verdict(self, found: Cut, *, early: Early) -> Verdict:
        """What is measured of a cut, or of what the later passes make of it."""
        if self.later is None:
            return self.judge.measure(found.graph, early=early)
        if found.proved is None:
            return self.judge.measure(self.later(found.graph), early=early)
        plan = found.proved.plan
        reference = narrowed(self.cutting.context.reference, self.cutting.model, plan)
        return self.judge.measure(self.later(found.graph, plan=plan, reference=reference), early=early)

    def record(self) -> dict[str, Any]:
        """The trade-off curve, the smallest model first."""
        marked = [(left, {**point, "taken": k == self.taken}) for k, (left, point) in enumerate(self.curve)]
        ordered = sorted(marked, key=lambda entry: (entry[0], entry[1]["asked"], entry[1]["quick"]))
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
