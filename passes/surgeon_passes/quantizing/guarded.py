"""What the guard leaves in float: what is not faster with 8 bits on this machine, or makes too much of the error."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from surgeon.errors import DataError, UnsupportedModelError
from surgeon.measure import one_sample
from surgeon.names import pattern_of
from surgeon_passes.quantizing.control import Mixes
from surgeon_passes.quantizing.folding import folding
from surgeon_passes.quantizing.speed import LEAST_GAIN, guard
from surgeon_passes.quantizing.worth import light_of, spared

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from surgeon.passes import Context
    from surgeon_passes.quantizing.maker import Maker
    from surgeon_passes.quantizing.speed import Verdict


@dataclass(frozen=True)
class Guarded:
    """What is better left in float.

    Attributes:
        stay: The nodes, with the reasons.
        bare: Those of them whose weights stay float in the file as well.
        folded: Operators, by type, that read stored weights as floats though they have a kernel for few bits.
    """

    stay: Mapping[str, str] = field(default_factory=dict)
    bare: Collection[str] = ()
    folded: Collection[str] = ()


def guarded(maker: Maker, context: Context) -> Guarded:
    """Find what is better left in float; the record takes ``speed``.

    Args:
        maker: What makes the models that are timed.
        context: The run.
    """
    found = Guarded()
    try:
        if maker.whole.weighted:
            found = Guarded(*_slow(maker, context))
        found = replace(found, stay={**found.stay, **_slow_layers(maker, found.stay, context)})
    except (DataError, UnsupportedModelError) as error:
        context.warn(f"nothing stays float for speed, which could not be measured: {error.message}")
        return found
    if maker.options.mode != "auto":
        return found
    try:
        return replace(found, folded=_folded(maker, found, context))
    except (DataError, UnsupportedModelError) as error:
        context.warn(f"kernels for stored weights could not be timed, and are used: {error.message}")
        return found


def _folded(maker: Maker, found: Guarded, context: Context) -> Collection[str]:
    """Of what reads stored weights, and has kernels for that."""
    result = folding(Mixes(maker, found.stay, lambda model: model, found.bare), context)
    if result is None:
        return ()
    context.record["speed"] = {**_facts(context, result.float_ms), "stored": result.facts}
    return result.folded


def _facts(context: Context, float_ms: float) -> dict[str, Any]:
    """What the record says of speed so far, with the time of the float model if nothing does."""
    known: dict[str, Any] = context.record.get("speed", {})  # type: ignore[assignment]  # JSON facts
    return {"float_ms": float_ms, "candidates": [], "exclude": [], **known}


def _slow(maker: Maker, context: Context) -> tuple[Mapping[str, str], Collection[str]]:
    """Of what has 8-bit kernels in this mode."""
    with context.progress("measure 8-bit operators"):
        verdict = guard(
            maker.model,
            maker.whole,
            maker.choose,
            maker.draft,
            one_sample(context),
            conversions=maker.mode == "static",
        )
    facts = verdict.facts()
    context.record["speed"] = facts
    ratio = verdict.taken.latency.ratio
    if maker.options.mode == "auto" and ratio > 1 - LEAST_GAIN:  # few bits are worth storing all the same
        _refuse(facts["candidates"])
        facts["exclude"] = _patterns(maker.whole.nodes)
        reason = f"with any operator in 8 bits the model takes {ratio:.2f} times as long here"
        return dict.fromkeys(maker.whole.nodes, reason), ()
    stay = dict(verdict.taken.stay)
    if maker.static is None:
        return stay, ()
    try:
        found = spared(Mixes(maker, stay, lambda model: model), verdict.times, ratio, context)
    except (DataError, UnsupportedModelError) as error:
        context.warn(f"nothing stays float for its error, which could not be measured: {error.message}")
        return stay, ()
    facts["spared"] = [each.facts() for each in found]
    stay.update((each.node, each.reason) for each in found)
    facts["exclude"] = _patterns(stay)
    return stay, light_of(found)


def _slow_layers(maker: Maker, stay: Mapping[str, str], context: Context) -> Mapping[str, str]:
    """Of LSTMs whose dynamic kernel stands beside static arithmetic, with that as it will be."""
    layers = maker.recurrent(stay)
    if not layers.weighted:
        return {}
    model = maker.draft(maker.choose(stay))
    with context.progress("measure 8-bit LSTMs"):
        verdict = guard(
            model,
            layers,
            lambda more: maker.recurrent({**stay, **more}),
            lambda choice: maker.with_recurrent(model, choice),
            one_sample(context),
            conversions=False,
        )
    slow = _slow_of(verdict, layers.nodes)
    measured = verdict.facts()
    facts = _facts(context, verdict.float_ms)
    if len(slow) == len(layers.nodes):
        _refuse(measured["candidates"])
    facts["recurrent"] = measured["candidates"]
    facts["exclude"] = sorted([*facts["exclude"], *_patterns(slow)])
    context.record["speed"] = facts
    return slow


def _slow_of(verdict: Verdict, layers: Collection[str]) -> Mapping[str, str]:
    """Those that stay float: their weights have 8 bits in the file in any case, so what saves no time saves nothing."""
    ratio = verdict.taken.latency.ratio
    if ratio <= 1 - LEAST_GAIN:
        return verdict.taken.stay
    return dict.fromkeys(layers, f"with LSTMs in 8 bits the model takes {ratio:.2f} times as long here")


def _refuse(candidates: list[dict[str, Any]]) -> None:
    """Note that none of them was taken."""
    for each in candidates:
        each["taken"] = False


def _patterns(names: Collection[str]) -> list[str]:
    return sorted(pattern_of(name) for name in names)
