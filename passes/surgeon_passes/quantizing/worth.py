"""Operators whose 8 bits save little time and make much of the error: they stay float, without a label being asked for.

In most models errors are spread like times. Where a few operators make most of it, narrow ones near the input say, they spoil a model
that everything else leaves intact, and users look for them by hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from surgeon.cost import count
from surgeon.graph.load import from_model
from surgeon.measure import one_sample
from surgeon.stats.compare import Outputs
from surgeon_passes.quantizing.partition import predicted
from surgeon_passes.quantizing.sensitivity import LEAST, largest
from surgeon_passes.quantizing.speed import LIGHT, race_models

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

    from surgeon.passes import Context
    from surgeon_passes.quantizing.control import Mixes
    from surgeon_passes.quantizing.partition import Times
    from surgeon_passes.quantizing.sensitivity import Sensitivity
    from surgeon_passes.quantizing.speed import Race

FINE = 1e-3  # error of the outputs, relative to their variance, of which nothing needs to be taken away
RATE = 3.0  # an operator is tried that makes so many times the share of the squared error as it costs of the float model's time
PRICE = (
    0.3  # of what the outputs are off, relative to their spread, has to go for all of the float model's time
)
FASTEST = 0.95  # of the float model's time: what comes near to that leaves nothing to spend
MODELS = 48  # that are measured, about
MACS = 1e12  # multiply-accumulates that they may take together: half a minute or so
TRUST = (1.0, 0.5, 0.25)  # in what an operator is predicted to cost, which is often less in the whole model
SECONDS = 3.0  # of the race for each 8-bit model in it
MOST_SAMPLES, FEWEST_SAMPLES = 16, 2


@dataclass(frozen=True)
class Spared:
    """An operator that stays float.

    Attributes:
        node: Its name.
        error: Its share of the error.
        time: What it was predicted to cost to leave it in float, as a share of the float model's time; negative where that
            saves time. A race of whole models may have found less.
        light: Whether its weights are so few that they stay float in the file as well.
    """

    node: str
    error: float
    time: float
    light: bool

    @property
    def reason(self) -> str:
        """Why it stays float."""
        saved = f"{100 * self.time:.1f} % of the time" if self.time > 0 else "no time"
        return f"alone its 8 bits save {saved} here and make {100 * self.error:.0f} % of the error"

    def facts(self) -> dict[str, Any]:
        """Returns what the report says."""
        return {"node": self.node, "error": self.error, "time": self.time}


def spared(
    mixes: Mixes, times: Times, ratio: float, context: Context, race: Race = race_models
) -> list[Spared]:
    """Find the operators whose error is not worth the time they save.

    Times and errors of operators propose them; whole models with and without decide, by the root of the squared error, not by
    shares of it: in proportion to that decisions change, and what is small already is worth no time.

    Args:
        mixes: The models there are, with what stays float for speed.
        times: What operators take in float and with 8 bits.
        ratio: Of the time of the model as it would be, to the float one's.
        context: The run.
        race: Times whole models in turns, for so many seconds; ratios are against the first.
    """
    maker = mixes.maker
    choice = maker.choose(mixes.stay)
    names = [node.name for node in maker.model.graph.node if node.name in choice.weighted]
    if len(names) < 2 or ratio >= FASTEST:
        return []
    samples = int(MACS / max(MODELS * count(from_model(maker.model)).macs, 1))
    outputs = Outputs.of(
        maker.model, context.calibration().take(min(max(samples, FEWEST_SAMPLES), MOST_SAMPLES))
    )
    error = outputs.divergence(maker.draft(choice), context.threads)
    if error is None or not FINE < error < float("inf"):
        return []
    with context.progress("errors of 8-bit operators"):
        found = largest(mixes.measured(names, outputs), names, outputs, context.threads, MODELS)
    proposals = _proposals(mixes, times, found, FASTEST - ratio)
    if not proposals:
        return []
    models = [mixes.make({}).model, *(_with_float(mixes, each) for each in proposals)]
    with context.progress("race of 8-bit and float operators"):
        latencies = race([maker.model, *models], one_sample(context), SECONDS * len(models))
    before, *after = (each.ratio for each in latencies[1:])
    error, *errors = (outputs.distance(model, context.threads) for model in models)
    best: list[Spared] = []
    most = 0.0
    for proposal, left, time in zip(proposals, errors, after, strict=True):
        gain = math.sqrt(error) - math.sqrt(left)
        profit = gain / PRICE - (time - before)
        if gain > 0 and time <= FASTEST and profit >= most:
            best, most = proposal, profit
    return best


def light_of(found: Sequence[Spared]) -> list[str]:
    """Those whose weights stay float in the file as well."""
    return [each.node for each in found if each.light]


def _weights_of(graph: onnx.GraphProto) -> dict[str, int]:
    """How many numbers each node reads that are constants of the graph."""
    sizes = {entry.name: math.prod(entry.dims) for entry in graph.initializer}
    return {node.name: sum(sizes.get(name, 0) for name in node.input) for node in graph.node}


def _with_float(mixes: Mixes, found: Sequence[Spared]) -> onnx.ModelProto:
    """Makes the model in which these stay float."""
    return replace(mixes, bare=light_of(found)).make({each.node: each.reason for each in found}).model


def _floats(mixes: Mixes, found: Sequence[Spared]) -> dict[str, str]:
    """All that stays float with these, and why."""
    return {**mixes.stay, **{each.node: each.reason for each in found}}


def _proposals(mixes: Mixes, times: Times, found: Sequence[Sensitivity], most: float) -> list[list[Spared]]:
    """What may stay float: the less the predicted times are trusted, the more, but never everything."""
    proposals: list[list[Spared]] = [[]]
    for trust in TRUST:
        proposal = _worthless(mixes, times, found, most, trust, proposals[-1])
        while (
            len(proposal) > len(proposals[-1]) and not mixes.maker.choose(_floats(mixes, proposal)).weighted
        ):
            proposal = proposal[:-1]
        if len(proposal) > len(proposals[-1]):
            proposals.append(proposal)
    return proposals[1:]


def _worthless(
    mixes: Mixes,
    times: Times,
    found: Sequence[Sensitivity],
    most: float,
    trust: float,
    known: Sequence[Spared],
) -> list[Spared]:
    """Those that cost less than their share of the error allows, most to blame first, and together less than ``most``.

    ``trust`` is what their predicted costs are multiplied by; what is ``known`` is among them.
    """
    graph, whole = mixes.maker.model.graph, mixes.maker.whole
    every, error = sum(times.floats.values()), sum(each.alone for each in found)
    if not (every > 0 and 0 < error < float("inf")):
        return []
    weights = _weights_of(graph)
    result = list(known)
    stay = {*mixes.stay, *(spare.node for spare in result)}
    before = predicted(graph, whole, times, stay)
    for each in found:
        share = each.alone / error
        if share < LEAST or len(each.nodes) > 1 or each.nodes[0] in stay:
            continue
        (name,) = each.nodes
        after = predicted(graph, whole, times, {*stay, name})
        cost = (after - before) / every
        if share >= RATE * trust * cost and trust * (sum(spare.time for spare in result) + cost) <= most:
            result.append(Spared(name, share, cost, weights[name] <= LIGHT * sum(weights.values())))
            stay.add(name)
            before = after
    return result
