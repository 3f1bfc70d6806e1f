"""Accuracy control: the fewest operators go back to float so that the quantized model stays within its budget."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from surgeon.cost import count
from surgeon.errors import GateError, UnsupportedModelError
from surgeon.graph.load import from_model
from surgeon.judge import MEASURED, OFFERS, Judge, Verdict
from surgeon.stats.compare import Outputs
from surgeon_passes.quantizing.partly import Parts
from surgeon_passes.quantizing.sensitivity import Sensitivity, groups_of, sensitivities

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    import onnx

    from surgeon.passes import Context
    from surgeon_passes.quantizing.choose import Choice
    from surgeon_passes.quantizing.maker import Made, Maker
    from surgeon_passes.quantizing.spending import Spending

    Spend: TypeAlias = "Callable[[Mixes, Draft, Collection[str], Judge], Spending]"

FAITHFUL = 1e-3  # relative difference of divergences of models that are the same but for the order of sums
TRIES = 40  # models that are measured at most once the count is known, to put operators back
FLOAT = "operators that stay float for accuracy"  # where the run keeps them once found, for what is quantized after that
_MOST_SAMPLES, _FEWEST_SAMPLES = 128, 8  # of the calibration data, to measure sensitivities on
_MACS = 2e12  # multiply-accumulates that all models together may take for that: a minute or so


@dataclass(frozen=True)
class Draft:
    """A model with kernels for few bits, before other weights are stored and ballast is taken out.

    Attributes:
        model: The model.
        choice: What it was made of.
        stay: What stays float, and why.
    """

    model: onnx.ModelProto
    choice: Choice
    stay: Mapping[str, str]

    def of(self, model: onnx.ModelProto) -> Draft:
        """A copy with another model of the same form."""
        return Draft(copy.deepcopy(model), copy.deepcopy(self.choice), self.stay)


@dataclass(frozen=True)
class Mixes:
    """Models of float and quantized operators.

    Attributes:
        maker: What makes them.
        stay: What stays float in any case, and why.
        improve: Gives a quantized model better values; too slow for every trial.
        bare: Nodes of ``stay`` whose weights stay float in the file as well.
        folded: Operators, by type, that read stored weights as floats though they have a kernel for few bits.
    """

    maker: Maker
    stay: Mapping[str, str]
    improve: Callable[[onnx.ModelProto], onnx.ModelProto]
    bare: Collection[str] = ()
    folded: Collection[str] = ()

    def make(self, stay: Mapping[str, str], bare: Collection[str] = (), *, best: bool = False) -> Made:
        """Make one.

        Args:
            stay: Nodes whose arithmetic stays float as well, and why.
            bare: Those of them whose weights stay float in the file as well.
            best: Whether its values are improved.
        """
        return self.finished(self.draft(stay, best=best), bare)

    def draft(self, stay: Mapping[str, str], *, best: bool = False) -> Draft:
        """The same without what finishes it; arguments as above."""
        every = {**self.stay, **stay}
        choice = self.maker.choose(every)
        model = self.maker.draft(choice)
        if best and choice.weighted:
            model = self.improve(model)
        return Draft(model, choice, every)

    def finished(self, draft: Draft, bare: Collection[str]) -> Made:
        """What a draft becomes, of which nothing is used any more."""
        bare = {*bare, *self.bare}
        return self.maker.finished(draft.model, draft.choice, draft.stay, bare, self.folded)

    def tried(self, names: Collection[str], *, bare: bool = False) -> Made:
        """Make one with some operators in float, to be measured and thrown away."""
        return self.make(dict.fromkeys(names, "for the trial"), names if bare else ())

    def measured(
        self, names: Sequence[str], outputs: Outputs, *, bare: bool = False
    ) -> Callable[[Collection[str]], onnx.ModelProto]:
        """How to make models with some operators in float, to compare their outputs: the quick way where it is faithful.

        Args:
            names: All that may be quantized.
            outputs: Of the float model.
            bare: Whether weights of what is in float are floats in the file as well.
        """
        maker = self.maker
        choice = maker.choose(self.stay)
        if set(names) <= set(choice.weighted):
            whole = maker.draft(choice)
            parts = Parts(maker.model, whole, choice.nodes, choice.weighted)
            try:
                together = outputs.divergence(parts.with_quantized(names), 1) or 0.0
            except UnsupportedModelError:  # the quantizer renamed what the float model needs
                together = np.nan
            if abs(together - (outputs.divergence(whole, 1) or 0.0)) <= FAITHFUL * together:
                return lambda kept: parts.with_quantized(set(names) - set(kept))
        return lambda kept: self.tried(kept, bare=bare).model

    def operators(self, *, bare: bool = False) -> list[str]:
        """All that is quantized in one way or the other if it may, in the order of the graph.

        Args:
            bare: Whether those count that stay float in any case, but for their weights in the file.
        """
        made = self.make({})
        chosen = {*made.choice.weighted, *made.stored} - (set() if bare else set(self.stay))
        return [node.name for node in self.maker.model.graph.node if node.name in chosen]


@dataclass(frozen=True)
class Settled:
    """Operators that stay float, with the reasons, and whether their weights do so in the file as well."""

    reasons: Mapping[str, str]
    plain: bool

    @property
    def bare(self) -> Collection[str]:
        """Those whose weights stay float in the file."""
        return self.reasons if self.plain else ()


@dataclass(frozen=True)
class _Found:
    """The model within the budget, the draft of it, and the nodes whose weights stay float in the file."""

    made: Made
    draft: Draft
    bare: Collection[str]


def fewest(
    order: Sequence[str], holds: Callable[[frozenset[str]], bool], tries: int = TRIES
) -> frozenset[str] | None:
    """Look for the fewest operators that have to stay float.

    First their number along the order, by doubling and bisection; then, since the order is only a forecast, whatever of them
    can be quantized after all is, in halves as long as that fails. ``holds`` is believed where it was asked and nowhere else.

    Args:
        order: Most to blame first. The last is never float: at least one is to be quantized.
        holds: Whether the budget holds with these in float. It does not with none.
        tries: How often it is asked at most after the number is known.

    Returns:
        None where it never held.
    """
    holds = cache(holds)
    low, high, most = 0, 1, len(order) - 1
    if most < 1:
        return None
    while not holds(frozenset(order[:high])):
        if high == most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(frozenset(order[:middle])) else (middle, high)
    kept = frozenset(order[:high])
    left = [tuple(order[: high - 1])] if high > 1 else []  # without the last it was seen not to hold
    while left and tries:
        part, tries = left.pop(), tries - 1
        if holds(kept - set(part)):
            kept -= set(part)
        elif len(part) > 1:
            left += [part[: len(part) // 2], part[len(part) // 2 :]]  # the least to blame first
    return kept


def within_budget(
    mixes: Mixes, context: Context, max_drop: float | None, where: str, spend: Spend | None = None
) -> Made:
    """Quantize as much as the budget allows.

    Args:
        mixes: The models there are.
        context: The run; its record takes ``control``, ``sensitivity`` and ``narrow``.
        max_drop: The largest accepted loss of the metric; None for no budget.
        where: The option that gives it, for messages.
        spend: How what is left of the budget is spent on fewer bits; None where it is not.

    Raises:
        GateError: No mix of float and quantized operators is within the budget.
    """
    settled: Settled = context.kept.get(FLOAT, Settled({}, plain=False))
    draft, bare = mixes.draft(settled.reasons, best=not context.trial), settled.bare
    made = mixes.finished(draft.of(draft.model), bare)
    if max_drop is None or not (made.choice.weighted or made.stored):
        return made
    if context.trial:
        if spend is not None and OFFERS not in context.kept:
            spend(mixes, draft, bare, Judge.of(context, max_drop, where)).offer()
        return made
    control = _Control(mixes, context, Judge.of(context, max_drop, where), where)
    found = control.run(draft, made, settled)
    if spend is None:
        return found.made
    return spend(mixes, found.draft, found.bare, control.judge).run(control.accepts) or found.made


@dataclass
class _Control:
    """The mixes that were measured, and the best of them."""

    mixes: Mixes
    context: Context
    judge: Judge
    where: str
    curve: list[dict[str, Any]] = field(default_factory=list)
    confidence: float = 1.0

    def run(self, draft: Draft, made: Made, settled: Settled) -> _Found:
        """Keep the given model, with some in float already, if it is within the budget, otherwise find one with more."""
        already = frozenset(settled.reasons)
        first = self._note(already, self.judge.measure(made.model), plain=settled.plain)
        if not first.within:
            self._check_float(first)
        if first.within or self.accepts(first):
            self._record(made, settled)
            return _Found(made, draft, settled.bare)
        for plain in (False, True):  # float arithmetic with stored weights is smaller, and often enough
            ranked = self._ranked(self.mixes.operators(bare=plain), plain=plain)
            order = [name for each in ranked for name in each.nodes]
            kept = fewest(order, partial(self._holds, plain=plain))
            if kept is not None:
                break
        if kept is None:
            self._record(None, Settled({}, plain=False))
            raise self._nothing_holds(first)
        blame = {name: each for each in ranked for name in each.nodes}
        found = Settled({name: _reason(blame[name]) for name in order if name in kept}, plain=plain)
        self.context.kept[FLOAT] = found
        draft = self.mixes.draft(found.reasons, best=True)
        made = self.mixes.finished(draft.of(draft.model), found.bare)
        if not self.accepts(self._note(kept, self.judge.measure(made.model), plain=plain)):
            draft = self.mixes.draft(found.reasons)  # which was measured
            made = self.mixes.finished(draft.of(draft.model), found.bare)
        self._record(made, found)
        return _Found(made, draft, found.bare)

    def _holds(self, names: frozenset[str], *, plain: bool) -> bool:
        made = self.mixes.tried(names, bare=plain)
        return self.accepts(self._note(names, self.judge.measure(made.model), plain=plain))

    def accepts(self, verdict: Verdict) -> bool:
        """Whether a loss is within the budget, for sure or, where even the float model is not for sure, as measured."""
        return verdict.within if self.confidence > MEASURED else verdict.loss <= self.judge.max_drop

    def _check_float(self, first: Verdict) -> None:
        """Measure the model as it came: operators in float cannot do better."""
        came = self._note(None, self.judge.measure(self.mixes.maker.model))
        if came.within:
            return
        if came.loss > self.judge.max_drop and first.loss > self.judge.max_drop:
            raise GateError(
                f"the model loses {came.loss:.4f} of {self.judge.metric.name} before anything is quantized; at most "
                f"{self.judge.max_drop:g} may be lost",
                where=self.where,
                hint="ask less of the passes before quantize",
            )
        self.confidence = MEASURED
        self.context.warn(
            f"the model loses {came.loss:.4f} of {self.judge.metric.name} before anything is quantized, so that at most "
            f"{self.judge.max_drop:g} cannot be shown for other data: quantize is judged by what was measured"
        )

    def _note(self, names: frozenset[str] | None, verdict: Verdict, *, plain: bool = False) -> Verdict:
        self.curve.append(
            {
                "float": None if names is None else len(names),
                "nodes": sorted(names or ()),
                "weights": "float" if plain else "stored",
                "metric": verdict.metric,
                "bound": verdict.bound,
                "bytes": verdict.bytes,
                "within": verdict.within,
            }
        )
        return verdict

    def _ranked(self, names: list[str], *, plain: bool) -> list[Sensitivity]:
        """What each operator costs, measured once for the same names; ``plain``: the stored weights of it too."""
        context, model = self.context, self.mixes.maker.model
        content = hashlib.sha256(
            model.SerializeToString(deterministic=True) + repr(names).encode()
        ).hexdigest()
        key = f"sensitivities of {content}"
        if key not in context.kept:
            context.kept[key] = self._measured(names, plain=plain)
        found: list[Sensitivity] = context.kept[key]
        context.record["sensitivity"] = [{"nodes": list(each.nodes), "alone": each.alone} for each in found]
        return found

    def _measured(self, names: list[str], *, plain: bool) -> list[Sensitivity]:
        context, model = self.context, self.mixes.maker.model
        models = len(groups_of(names))
        samples = int(_MACS / max(models * count(from_model(model)).macs, 1))
        data = context.calibration().take(min(max(samples, _FEWEST_SAMPLES), _MOST_SAMPLES))
        outputs = Outputs.of(model, data)
        with context.progress("sensitivity", models) as advance:
            make = self.mixes.measured(names, outputs, bare=plain)
            found = sensitivities(make, names, outputs, context.threads, advance)
        context.record["sensitivity"] = [{"nodes": list(each.nodes), "alone": each.alone} for each in found]
        return found

    def _record(self, made: Made | None, found: Settled) -> None:
        judge, stored = self.judge, set() if made is None else {*made.choice.weighted, *made.stored}
        self.context.record["control"] = {
            "metric": judge.metric.name,
            "before": judge.before,
            "max_drop": judge.max_drop,
            "float": [
                {"node": name, "weights": "stored" if name in stored else "float", "reason": reason}
                for name, reason in found.reasons.items()
            ],
            "curve": self.curve,
        }

    def _nothing_holds(self, first: Verdict) -> GateError:
        judge = self.judge
        mixes = [point for point in self.curve if point["float"] is not None]
        best = min(mixes, key=lambda point: judge.metric.loss(judge.before, point["metric"]))
        return GateError(
            f"no mix of float and quantized operators costs at most {judge.max_drop:g} of {judge.metric.name}, "
            f"{judge.before:.4f} before: quantized as a whole it is {first.metric:.4f}, and {best['metric']:.4f} at best, with "
            f"{best['float']} operators in float",
            where=self.where,
            hint="allow more, give more calibration or evaluation data, or leave quantize out",
        )


def _reason(blame: Sensitivity) -> str:
    return (
        f"accuracy: quantized alone it changes the outputs by {blame.alone:.2g} of their variance, and the budget did not "
        "hold with it"
    )
