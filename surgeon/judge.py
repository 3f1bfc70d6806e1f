"""Judging a candidate as the run judges its result: by the metric on the evaluation data, and how sure that is."""

from __future__ import annotations

import math
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from surgeon.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

    from surgeon.passes import Context, Graph
    from surgeon.stats.metrics import Metric
    from surgeon.stats.paired import Scores

    Early: TypeAlias = Literal["no", "lost", "clear"]


OFFERS = "what is left of the budget buys"  # where the run keeps what later passes offer
MEASURED = 0.5  # the confidence at which the bound of a loss is the loss that was measured


@dataclass(frozen=True)
class Verdict:
    """What was measured of a candidate.

    Attributes:
        metric: Its metric.
        loss: How much worse than the original that is; negative where it is better.
        bound: The loss that is not exceeded with the confidence asked for, on data like these.
        confidence: That confidence; 0.5 where the data could not show a loss within the budget with the one asked for.
        within: Whether the bound is within the budget.
        bytes: The size of its file.
        units: The samples, or batches, that it was measured on.
        part: Whether these were not all.
    """

    metric: float
    loss: float
    bound: float
    confidence: float
    within: bool
    bytes: int
    units: int = 0
    part: bool = False


@dataclass(frozen=True)
class Offer:
    """What a pass would do with a part of the budget, measured on the model that no cut was made in.

    Attributes:
        loss: How much worse the metric would be.
        factor: What would be left of the bytes of its file.
    """

    loss: float
    factor: float


def bytes_left(offers: Sequence[Offer], spare: float) -> float:
    """What is left of the bytes of a file if so much more may be lost, as foretold by the offers."""
    return min((each.factor for each in offers if each.loss <= spare), default=1.0)


@dataclass(frozen=True)
class Judge:
    """Measures models on the evaluation data, exactly as the run does in the end.

    Attributes:
        metric: What is measured.
        context: The run.
        max_drop: The largest loss that is accepted.
        original: The scores of the original.
    """

    metric: Metric
    context: Context
    max_drop: float
    original: Scores

    @staticmethod
    def of(context: Context, max_drop: float, where: str) -> Judge:
        """Measure the original, once in a run.

        Args:
            context: The run.
            max_drop: The largest loss that is accepted.
            where: The option that asks for it, for messages.

        Raises:
            UsageError: There is nothing to measure the metric on, or it cannot tell models apart.
        """
        from surgeon.graph.sessions import session
        from surgeon.stats.metrics import find_metric, scores

        if context.evaluation is None:
            hint = "give --eval, or --max-drop for the whole run, which holds some of --data out"
            raise UsageError("needs data to measure accuracy on", where=where, hint=hint)
        metric = find_metric(context.metric)
        key = f"scores of the original by {metric.name}"
        if key not in context.kept:
            original = session(context.source_path, threads=context.threads)
            context.kept[key] = scores(original, context.evaluation, metric, original)
        before: Scores = context.kept[key]
        if metric.higher_is_better and before.value == 0:
            raise UsageError(
                "is 0 for the original already, so that no loss would show",
                where=f"--metric {metric.name}",
                hint="check that the labels fit the outputs, or take another metric",
            )
        if math.isnan(before.value):
            raise UsageError(
                "is not a number for the original already, so that no loss would show",
                where=f"--metric {metric.name}",
                hint="look for NaN and infinity in the labels and in what the model puts out",
            )
        return Judge(metric, context, max_drop, before)

    @property
    def before(self) -> float:
        """The original's metric."""
        return self.original.value

    def measure(self, candidate: Graph | onnx.ModelProto, *, early: Early = "no") -> Verdict:
        """Run a candidate over the evaluation data.

        Args:
            candidate: The model.
            early: Whether a part of the data will do where it says clearly that the loss is beyond the budget (``lost``), or on
                which side of it (``clear``). The metric is then what the original has on all data, less the loss on these.
        """
        from surgeon.stats.metrics import SLACK
        from surgeon.stats.paired import largest_loss

        found, size = self._scores(candidate, early=early)
        before = self.original.first(found.units)
        loss = self.metric.loss(before.value, found.value)
        confidence = self._attainable(found)
        bound = loss
        if confidence > MEASURED:
            up = self.metric.higher_is_better
            sure = largest_loss(before, found, confidence, higher_is_better=up)
            bound = loss if sure is None else max(loss, sure)
        within = bound <= self.max_drop + SLACK
        metric = found.value if before is self.original else self.before + (found.value - before.value)
        return Verdict(
            metric, loss, bound, confidence, within, size, found.units, part=before is not self.original
        )

    def _attainable(self, found: Scores) -> float:
        """The confidence a candidate is held to: that of the run, where the data could show it at all."""
        from surgeon.stats.paired import least_loss

        if self.context.confidence <= MEASURED or found.value != found.value:
            return MEASURED
        whole = found if found.units >= self.original.units else self.original
        least = least_loss(self.original, whole, self.context.confidence)
        if least is not None and least <= self.max_drop:
            return self.context.confidence
        self.context.warn(
            f"{whole.units} evaluation samples cannot show with a confidence of {self.context.confidence:g} that at most "
            f"{self.max_drop:g} of {self.metric.name} is lost: judged by what was measured, which other data may not confirm"
        )
        return MEASURED

    def _is_enough(self, found: Scores, early: Early) -> bool:
        from surgeon.stats.paired import decided

        before, up = self.original.first(found.units), self.metric.higher_is_better
        if early == "lost" and self.metric.loss(before.value, found.value) <= self.max_drop:
            return False
        return decided(before, found, self.max_drop, higher_is_better=up)

    def _scores(self, candidate: Graph | onnx.ModelProto, *, early: Early) -> tuple[Scores, int]:
        from surgeon.graph.save import save
        from surgeon.graph.sessions import session
        from surgeon.stats.metrics import scores

        threads, evaluation = self.context.threads, self.context.evaluation
        assert evaluation is not None
        compares = self.metric.against == "reference" or not evaluation.has_labels
        reference = session(self.context.source_path, threads=threads) if compares else None

        def enough(found_so_far: Scores) -> bool:
            return early != "no" and self._is_enough(found_so_far, early)

        if hasattr(candidate, "SerializeToString"):
            runner = session(candidate, threads=threads)
            return scores(runner, evaluation, self.metric, reference, enough), candidate.ByteSize()
        with tempfile.TemporaryDirectory(
            prefix=".surgeon-", dir=self.context.scratch, ignore_cleanup_errors=True
        ) as folder:
            path = Path(folder) / "candidate.onnx"
            save(candidate, path)
            size = sum(each.stat().st_size for each in path.parent.iterdir())
            runner = session(path, threads=threads)
            with suppress(OSError):  # what is open can go: nothing is left even if the process is killed
                shutil.rmtree(folder)
            return scores(runner, evaluation, self.metric, reference, enough), size
