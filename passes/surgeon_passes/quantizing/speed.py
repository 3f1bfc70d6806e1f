"""The speed guard: operators whose 8-bit form does not pay on this machine stay float, by measurement."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx

from surgeon.names import pattern_of
from surgeon.stats.chunks import Array
from surgeon.stats.kernels import Kernel, profile
from surgeon.stats.latency import Latency, compare
from surgeon_passes.quantizing.choose import Choice
from surgeon_passes.quantizing.partition import Times, Unit, best, predicted

# a candidate with more 8-bit weights is preferred to one that takes this fraction less of the float model's time
TOLERANCE = 0.03
LEAST_GAIN = 0.01  # of the float model's time; less is not worth a trial, nor told from noise
LIGHT = 0.01  # of all weights; so many are no matter of size
_CAUTIONS = (
    0.4,
    0.6,
    0.8,
    1.0,
    1.25,
)  # below 1 only what clearly loses goes, above only what clearly wins stays
_PROFILE_SECONDS = 1.5
_RACE_SECONDS = 4.0
_FIRST_SECONDS = 1.5
_PER_KERNEL = 1.0  # microseconds onnxruntime takes to start one
_ENDINGS = ("_quant", "_MatMul")
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "Transpose")

Profile = Callable[[onnx.ModelProto, Mapping[str, Array]], Sequence[Kernel]]
Race = Callable[[Sequence[onnx.ModelProto], Mapping[str, Array], float], Sequence[Latency]]
Stay = Mapping[str, str]


def _profile(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Sequence[Kernel]:
    return profile(model, feeds, seconds=_PROFILE_SECONDS)


def race_models(
    models: Sequence[onnx.ModelProto], feeds: Mapping[str, Array], seconds: float
) -> Sequence[Latency]:
    """Times whole models in turns; ratios are against the first."""
    return compare(models, feeds, runs=400, seconds=seconds)


@dataclass(frozen=True)
class Stopwatch:
    """How models are timed.

    Attributes:
        profile: Times every kernel of a model.
        race: Times whole models in turns, for so many seconds; ratios are against the first.
    """

    profile: Profile = _profile
    race: Race = race_models


@dataclass(frozen=True)
class Candidate:
    """One choice of operators, and how long its model takes.

    Attributes:
        choice: The operators.
        stay: The nodes it leaves in float, and why.
        latency: Its time, and the ratio to the float model's.
        expected_us: Microseconds that it takes by the profile.
    """

    choice: Choice
    stay: Stay
    latency: Latency
    expected_us: float


@dataclass
class Verdict:
    """What the speed guard decided.

    Attributes:
        taken: The candidate that was taken.
        float_ms: Time of the float model.
        times: What operators take either way.
        candidates: All that were measured.
    """

    taken: Candidate
    float_ms: float
    times: Times
    candidates: list[Candidate] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """Returns what the report says."""
        return {
            "float_ms": self.float_ms,
            "candidates": [
                {
                    "operators": len(each.choice.weighted),
                    "ratio": each.latency.ratio,
                    "p10": each.latency.ratio_p10,
                    "p90": each.latency.ratio_p90,
                    "taken": each is self.taken,
                }
                for each in self.candidates
            ],
            "exclude": [pattern_of(name) for name in sorted(self.taken.stay)],
        }


def guard(
    model: onnx.ModelProto,
    whole: Choice,
    rechoose: Callable[[Stay], Choice],
    build: Callable[[Choice], onnx.ModelProto],
    feeds: Mapping[str, Array],
    *,
    conversions: bool = True,
    stopwatch: Stopwatch | None = None,
) -> Verdict:
    """Chooses the operators with which the 8-bit model is fastest on this machine.

    One profiled run of the float model and one of the model with everything in 8 bits say what each operator takes
    either way. The best splits by these times, cautious and bold ones, are built and raced as whole models against
    the float one. What is raced decides; the profile only proposes.

    Args:
        model: The prepared float model.
        whole: Everything that can become 8-bit.
        rechoose: Chooses again with some nodes left in float.
        build: Makes the 8-bit model of a choice.
        feeds: One sample, at the sizes the model will see.
        conversions: Whether values are converted between operators (static); if not, every operator does so by itself.
        stopwatch: How to time.

    Returns:
        The candidate that was taken: the fastest of those with the most 8-bit weights among those whose ratio to the float
        model is within `TOLERANCE` of the fastest one's; where nothing else differs, what the profile speaks for.
    """
    watch = stopwatch or Stopwatch()
    everything = build(whole)
    times = measure(watch.profile(model, feeds), watch.profile(everything, feeds), model, feeds)
    if not conversions:
        times = replace(times, per_element=0.0, per_kernel=0.0)
    proposals: list[tuple[Choice, Stay]] = [(whole, {})]
    proposals += _proposals(model, whole, rechoose, times)
    built = [everything, *(build(choice) for choice, _ in proposals[1:])]
    latencies = watch.race([model, *built], feeds, _FIRST_SECONDS)
    # most of the time goes to those that may still win
    ahead = min(each.ratio for each in latencies[1:])
    close = [index for index, each in enumerate(latencies[1:]) if each.ratio <= ahead * 1.25]
    final = watch.race([model, *(built[index] for index in close)], feeds, _RACE_SECONDS)
    measured = dict(zip(close, final[1:], strict=True))
    candidates = [
        Candidate(
            choice,
            stay,
            measured.get(index, latencies[index + 1]),
            predicted(model.graph, whole, times, stay),
        )
        for index, (choice, stay) in enumerate(proposals)
    ]
    taken = _pick([candidates[index] for index in close], model)
    return Verdict(taken, final[0].median_ms, times, candidates)


def _proposals(
    model: onnx.ModelProto, whole: Choice, rechoose: Callable[[Stay], Choice], times: Times
) -> list[tuple[Choice, Stay]]:
    """Returns the splits that promise to be faster than everything in 8 bits by more than can be measured."""
    least = LEAST_GAIN * sum(times.floats.values())
    everything = predicted(model.graph, whole, times, ())
    seen = {frozenset(whole.nodes)}
    proposals: list[tuple[Choice, Stay]] = []
    for caution, joined in itertools.product(_CAUTIONS, (True, False)):
        stay = reasons(best(model.graph, whole, times, caution=caution, joined=joined)[0])
        if not stay or everything - predicted(model.graph, whole, times, stay) < least:
            continue
        choice = rechoose(stay)
        if choice.weighted and frozenset(choice.nodes) not in seen:
            seen.add(frozenset(choice.nodes))
            proposals.append((choice, stay))
    return proposals


def _pick(candidates: Sequence[Candidate], model: onnx.ModelProto) -> Candidate:
    """The most 8-bit weights, then the least time; of those that differ in neither, the one that the profile speaks for."""
    fastest = min(each.latency.ratio for each in candidates)
    within = [each for each in candidates if each.latency.ratio <= fastest + TOLERANCE]
    most = max(each.choice.reached(model) for each in within)
    small = [each for each in within if each.choice.reached(model) >= most - LIGHT]
    least = min(each.latency.ratio for each in small)
    equal = [each for each in small if each.latency.ratio <= least + LEAST_GAIN]
    return min(equal, key=lambda each: each.expected_us)


def measure(
    floats: Sequence[Kernel],
    integers: Sequence[Kernel],
    model: onnx.ModelProto,
    feeds: Mapping[str, Array],
) -> Times:
    """Puts two profiles together: what nodes take, how large tensors are, and what converting them costs.

    A conversion between float and 8 bits is a QuantizeLinear or DequantizeLinear, and where convolutions keep
    channels last in one of them a Transpose that onnxruntime added.

    Args:
        floats: The profile of the float model.
        integers: The profile of the model with everything in 8 bits.
        model: The float model.
        feeds: What both ran on.
    """
    known = {node.name for node in model.graph.node}
    sizes = {name: int(np.size(array)) for name, array in feeds.items()}
    elements = {kernel.node: kernel.elements for kernel in (*floats, *integers) if kernel.elements}
    for node in model.graph.node:
        sizes.update(dict.fromkeys(node.output, elements.get(node.name, 0)))
    converting = [
        kernel for kernel in integers if kernel.operator in _CONVERSIONS and kernel.node not in known
    ]
    converted = sum(kernel.elements for kernel in converting if kernel.operator != "Transpose")
    time = sum(max(kernel.microseconds - _PER_KERNEL, 0.0) for kernel in converting)
    return Times(
        _by_node(floats, known), _by_node(integers, known), sizes, time / max(converted, 1), _PER_KERNEL
    )


def _by_node(kernels: Sequence[Kernel], known: Collection[str]) -> dict[str, float]:
    """Adds up the times of each node; onnxruntime's dynamic quantizer appends to the names of its nodes."""
    times: dict[str, float] = {}
    for kernel in kernels:
        name = kernel.node
        for ending in () if name in known else _ENDINGS:
            name = name.removesuffix(ending)
        times[name] = times.get(name, 0.0) + kernel.microseconds
    return times


def reasons(units: Sequence[Unit]) -> dict[str, str]:
    """Says for each node of the units, which stay float, why it does."""
    said = {}
    for unit in units:
        reason = "converting to 8 bits and back costs more here than it saves"
        if 0 < unit.float_us < unit.integer_us:
            reason = f"8 bits take {unit.integer_us / unit.float_us:.1f} times as long here"
        said.update(dict.fromkeys(unit.nodes, reason))
    return said
