"""What an accuracy budget leaves is spent on weights of 4 bits: as many bytes of the file as it allows.

The weights that cost the outputs least for the bytes they save come first. How many of them, the metric decides, measured as the
run measures its result. A pass that looks for the smallest model within the same budget is told beforehand what they cost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.judge import OFFERS, Offer
from surgeon.reference import Reference
from surgeon.refit.fit import Effort
from surgeon.refit.gptq import round_again, round_apart
from surgeon.refit.sampling import Places
from surgeon.stats.compare import Outputs
from surgeon_passes.quantizing.narrow import mixed, narrow, places
from surgeon_passes.quantizing.sensitivity import sensitivities

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    import onnx

    from surgeon.judge import Judge, Verdict
    from surgeon.passes import Context
    from surgeon_passes.quantizing.control import Draft, Mixes
    from surgeon_passes.quantizing.maker import Made
    from surgeon_passes.quantizing.narrow import Place

NARROW = "weights of 4 bits"  # where the run keeps the names of their integers, to store them so in the end
TRIES = 12  # models that are measured at most once the number of weights is known
_ORDER = "weights by what 4 bits cost"
_SHARES = (1.0, 0.75, 0.5, 0.25)  # of what can be saved, that are offered
_SAMPLES = 64  # of the calibration data, to see which weights cost least
_MEGABYTE = 2**20
# many outputs share a product's inputs, and 4 bits are far apart: fewer places than a refit needs tell them from one another
_PLACES = Places(per_input=15, fewest=8_000)
_EFFORT = Effort(strengths=(1e-2,), steps=4)


@dataclass
class Spending:
    """A quantized model, the same with 4 bits wherever that can be, and mixes of both.

    Attributes:
        mixes: What made it.
        draft: The model.
        bare: Nodes whose weights stay float in the file.
        judge: Measures.
        context: The run.
        memory: Megabytes of activations held in memory.
        samples: Calibration samples used at most.
    """

    mixes: Mixes
    draft: Draft
    bare: Collection[str]
    judge: Judge
    context: Context
    memory: int
    samples: int
    places: dict[str, Place] = field(init=False)
    few: onnx.ModelProto = field(init=False)
    curve: list[dict[str, Any]] = field(default_factory=list)
    seen: dict[frozenset[str], Verdict] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.places = places(self.draft.model, self.draft.choice.weighted)
        self.few = self._narrow(self.places, apart=True)

    def offer(self) -> None:
        """Tell a pass that looks for the smallest model what 4 bits save and cost."""
        if not self.places:
            self.context.kept[OFFERS] = ()
            return
        order = self._order()
        whole = self.judge.measure(self._made(()).model)
        total = sum(place.saved for place in self.places.values())
        offers = []
        for share in _SHARES:
            chosen = _first(order, share * total, self.places)
            verdict = self.judge.measure(self._made(chosen).model)
            saved = sum(self.places[name].saved for name in chosen)
            offers.append(Offer(max(verdict.loss - whole.loss, 0.0), 1 - saved / whole.bytes))
        self.context.kept[OFFERS] = tuple(offers)

    def run(self, accepts: Callable[[Verdict], bool]) -> Made | None:
        """The model with as many weights of 4 bits as are accepted; None where none is.

        Args:
            accepts: Whether a loss is within the budget.
        """
        from surgeon_passes.quantizing.control import fewest

        order = self._order()[::-1] if self.places else []  # what is to keep 8 bits comes first

        def holds(wide: frozenset[str]) -> bool:
            names = [name for name in order if name not in wide]
            self.seen[frozenset(names)] = self._note(
                names, self.judge.measure(self._made(names).model, early="clear")
            )
            return accepts(self.seen[frozenset(names)])

        wide: frozenset[str] | None = None
        if order and holds(frozenset()):
            wide = frozenset()
        elif order:
            wide = fewest(order, holds, TRIES)
        chosen = [] if wide is None else [name for name in order if name not in wide]
        made = self._best(chosen, accepts) if chosen else None
        chosen = [] if made is None else chosen
        if chosen:
            self.context.kept[NARROW] = tuple(self.places[name].weight for name in chosen)
        self._record(chosen)
        return made

    def _best(self, chosen: list[str], accepts: Callable[[Verdict], bool]) -> Made | None:
        """The mix with these, or the same rounded anew beside the weights that keep 8 bits, whichever loses less."""
        anew = self.mixes.improve(self._narrow({name: self.places[name] for name in chosen}, apart=False))
        made = self.mixes.finished(self.draft.of(anew), self.bare), self._made(chosen)
        verdicts = [self._note(chosen, self.judge.measure(made[0].model)), self.seen[frozenset(chosen)]]
        if verdicts[1].part:
            verdicts[1] = self._note(chosen, self.judge.measure(made[1].model))
        order = sorted(range(2), key=lambda k: verdicts[k].bound)
        return next((made[k] for k in order if accepts(verdicts[k])), None)

    def _made(self, names: Collection[str]) -> Made:
        model = mixed(self.draft.model, self.few, [self.places[name] for name in names])
        return self.mixes.finished(self.draft.of(model), self.bare)

    def _narrow(self, wanted: dict[str, Place], *, apart: bool) -> onnx.ModelProto:
        """The draft with 4 bits for some weights.

        Args:
            wanted: The weights.
            apart: Whether each is rounded as if the others had 8 bits, so that it suits any mix, or so that it makes up for what
                those before it lost.
        """
        model, context = self.draft.of(self.draft.model).model, self.context
        narrow(model, wanted.values())
        if not wanted:
            return model
        graph, reference = from_model(model), Reference(from_model(self.mixes.maker.model))
        feeds = [batch for batch, _ in context.calibration().take(self.samples)]
        with context.progress("4 bits", len(wanted)) as advance:
            options: dict[str, Any] = {
                "sweeps": 1,
                "seed": context.seed_for("4 bits"),
                "threads": context.threads,
                "limit_bytes": self.memory * _MEGABYTE,
                "places": _PLACES,
                "effort": _EFFORT,
                "excluded": partial(_is_none_of, frozenset(wanted), frozenset(self.draft.choice.nodes)),
                "progress": advance,
            }
            if apart:
                round_apart(from_model(self.draft.model), graph, reference, feeds, **options)
            else:
                round_again(graph, reference, feeds, **options)
        return to_model(graph)

    def _order(self) -> list[str]:
        """All that can have 4 bits, what changes the outputs least for what it saves first; found once in a run."""
        known: dict[str, int] = {name: k for k, name in enumerate(self.context.kept.get(_ORDER, ()))}
        if not set(self.places) <= set(known):
            names = list(self.places)
            outputs = Outputs.of(self.draft.model, self.context.calibration().take(_SAMPLES))

            def without(wide: Collection[str]) -> onnx.ModelProto:
                chosen = [self.places[name] for name in names if name not in set(wide)]
                return mixed(self.draft.model, self.few, chosen)

            with self.context.progress("sensitivity to 4 bits", None) as advance:
                found = sensitivities(without, names, outputs, self.context.threads, advance)
            cost = {name: each.alone for each in found for name in each.nodes}
            ordered = sorted(names, key=lambda name: cost[name] / self.places[name].saved)
            self.context.kept[_ORDER] = tuple(ordered)
            return ordered
        return sorted(self.places, key=known.__getitem__)

    def _note(self, names: Sequence[str], verdict: Verdict) -> Verdict:
        self.curve.append(
            {
                "nodes": sorted(names),
                "metric": verdict.metric,
                "bound": verdict.bound,
                "measured_on": verdict.units,
                "saved": sum(self.places[name].saved for name in names),
                "within": verdict.within,
            }
        )
        return verdict

    def _record(self, chosen: Sequence[str]) -> None:
        self.context.record["narrow"] = {
            "nodes": [{"node": name, "saved": self.places[name].saved} for name in chosen],
            "left": [name for name in self.places if name not in set(chosen)],
            "curve": self.curve,
        }


def _first(order: Sequence[str], saved: float, found: dict[str, Place]) -> list[str]:
    """As many from the front as save so much, at least one."""
    chosen: list[str] = []
    for name in order:
        if chosen and sum(found[each].saved for each in (*chosen, name)) > saved:
            break
        chosen.append(name)
    return chosen


def _is_none_of(wanted: frozenset[str], nodes: frozenset[str], name: str) -> bool:
    """Whether a name is that of another operator."""
    return name in nodes and name not in wanted
