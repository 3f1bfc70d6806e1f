"""The accuracy budget: the smallest cut that costs no more of the metric than is allowed, by bisection."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.errors import GateError, UsageError
from surgeon_passes.pruning.choose import OutOfReachError, least_left

if TYPE_CHECKING:
    from collections.abc import Callable

    from surgeon.passes import Context, Graph
    from surgeon.stats.metrics import Metric
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
        GateError: Even the mildest cut costs more than is allowed.
    """
    options, context = cutting.options, cutting.context
    least = least_left(options, cutting.model, context, cutting.ranking, cutting.refused, options.by)
    if least >= 1.0:  # nothing can go; the choice says why
        return cutting.to({options.by: 1.0})
    search = _Search(cutting, _Judge.of(context, max_drop))
    with context.progress("budget", options.tries) as advance:

        def attempt(fraction: float) -> Trial | None:
            trial = search.attempt(fraction)
            advance(1)
            return trial

        trials = smallest(attempt, least, options.tries)
    context.record["budget"] = search.record()
    if search.best is None:
        raise _too_much(options, search.judge, trials)
    return search.best


@dataclass(frozen=True)
class _Judge:
    """Measures models on the evaluation data, exactly as the run does in the end."""

    metric: Metric
    context: Context
    max_drop: float
    before: float

    @staticmethod
    def of(context: Context, max_drop: float) -> _Judge:
        from surgeon.graph.sessions import session
        from surgeon.stats.metrics import evaluate, find_metric

        if context.evaluation is None:
            hint = "give --eval, or --max-drop for the whole run, which holds some of --data out"
            raise UsageError("needs data to measure accuracy on", where="prune.max_drop", hint=hint)
        metric = find_metric(context.metric)
        original = session(context.source_path, threads=context.threads)
        before = evaluate(original, context.evaluation, metric, original)
        if metric.higher_is_better and before == 0:
            raise UsageError(
                "is 0 for the original already, so that no loss would show",
                where=f"--metric {metric.name}",
                hint="check that the labels fit the outputs, or take another metric",
            )
        return _Judge(metric, context, max_drop, before)

    def measure(self, graph: Graph) -> float:
        from surgeon.graph.save import save
        from surgeon.graph.sessions import session
        from surgeon.stats.metrics import evaluate

        threads, evaluation = self.context.threads, self.context.evaluation
        assert evaluation is not None
        compares = self.metric.against == "reference" or not evaluation.has_labels
        reference = session(self.context.source_path, threads=threads) if compares else None
        with tempfile.TemporaryDirectory(
            prefix=".surgeon-", dir=self.context.scratch, ignore_cleanup_errors=True
        ) as folder:
            path = Path(folder) / "candidate.onnx"
            save(graph, path)
            runner = session(path, threads=threads)
            with suppress(OSError):  # what is open can go: nothing is left even if the process is killed
                shutil.rmtree(folder)
            return evaluate(runner, evaluation, self.metric, reference)

    def within(self, value: float) -> bool:
        return self.metric.within(self.before, value, self.max_drop)


@dataclass
class _Search:
    """The cuts that were measured, and the smallest of those within the budget."""

    cutting: Cutting
    judge: _Judge
    best: Cut | None = None
    least: float = 1.0
    curve: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    whole: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self.whole = _sizes(self.cutting.model.original)

    def attempt(self, fraction: float) -> Trial | None:
        by = self.cutting.options.by
        try:
            found = self.cutting.to({by: fraction})
        except OutOfReachError:
            return None
        sizes, value = _sizes(found.graph), self.judge.measure(found.graph)
        left = sizes[by] / max(self.whole[by], 1.0)
        trial = Trial(fraction, left, value, self.judge.within(value))
        if trial.within and (self.best is None or left < self.least):
            self.best, self.least = found, left
        point = {
            "asked": fraction,
            "macs": int(sizes["macs"]),
            "params": int(sizes["params"]),
            "metric": value,
            "within": trial.within,
        }
        self.curve.append((left, point))
        return trial

    def record(self) -> dict[str, Any]:
        """The trade-off curve, the smallest model first."""
        ordered = sorted(self.curve, key=lambda entry: (entry[0], entry[1]["asked"]))
        return {
            "metric": self.judge.metric.name,
            "before": self.judge.before,
            "max_drop": self.judge.max_drop,
            "by": self.cutting.options.by,
            "curve": [point for _, point in ordered],
        }


def _sizes(graph: Graph) -> dict[str, float]:
    from surgeon.cost import count
    from surgeon.measure import parameters

    cost = count(graph)
    return {"macs": cost.macs, "params": float(parameters(graph)), "size": cost.bytes}


def _too_much(options: Prune, judge: _Judge, trials: list[Trial]) -> GateError:
    where = "--max-drop" if options.max_drop is None else "prune.max_drop"
    if not trials:
        return GateError("no cut could be reached within the limits of its groups", where=where)
    name, mildest = judge.metric.name, trials[-1]
    best = min(trials, key=lambda trial: judge.metric.loss(judge.before, trial.metric)).metric
    lost = judge.metric.loss(judge.before, mildest.metric)
    return GateError(
        f"no cut costs at most {judge.max_drop:g} of {name}, {judge.before:.4f} before: the mildest of "
        f"{len(trials)} that were measured leaves {mildest.left:.3f} of the {WORDS[options.by]} and loses {lost:.4f}; "
        f"the best {name} was {best:.4f}",
        where=where,
        hint="allow more, or give more calibration data",
    )
