"""Without data: inputs that are made up to suit the model, and the check that fitting to them was worth it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.errors import GateError, SurgeonError
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.stats.linear import linear_views
from surgeon.stats.matched import BATCHES, EVERY, MOST_SAMPLES, matched_dataset
from surgeon_passes.pruning.rank import FALLBACK

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from surgeon.engine import Model
    from surgeon.passes import Context, Graph
    from surgeon_passes.prune import Prune
    from surgeon_passes.pruning.cutting import Cut, Cutting

    Feeds = Mapping[str, NDArray[Any]]

# multiply-accumulates of one run over all samples, of all matrices that are solved, and of one sample
MOST_MACS, MOST_SOLVING, MOST_ONE = 1e10, 1e12, 1e10
MOST_PARAMETERS = 1.6e7  # without data, large models are cut in little more memory than they take themselves
MADE_UP_FOR = ("auto", "obs")
SAID = (
    "no --data: channels are ranked by and weights refitted to made-up inputs, which costs accuracy; "
    "a few hundred real samples without labels are better"
)
INSTEAD = "no --data: channels are ranked by magnitude and nothing is refitted: "


def with_data(options: Prune, model: Model, context: Context) -> Context:
    """The run itself where it has data or none are wanted, else the run with synthetic data.

    They are wanted for a target. A ratio or indices by name say exactly what goes, and without data the weights that are
    left stay as they are, so that anyone can compare them with the original's; who names a score that looks at weights
    gets that and no more. The weights of some models are too many to be found from made-up inputs in reasonable time,
    some inputs cannot be made up, and some models give no numbers for them; those stay without, with a warning.
    """
    exact = options.ratio is not None or (options.drop and not options.has_targets(context))
    # a cut cache is an input of another shape: made-up inputs would not fit it
    wanted = options.reconstruct and options.score in MADE_UP_FOR and not options.cut_cache and not exact
    if context.data is not None or not wanted or not model.groups:
        return context
    cost = model.cost.evaluate()
    macs = max(cost.macs, 1.0)
    if macs > MOST_ONE or cost.params > MOST_PARAMETERS or _solving(model) > MOST_SOLVING:
        context.warn(INSTEAD + "the model is too large to be refitted to made-up inputs")
        return context
    samples = int(min(MOST_SAMPLES, max(BATCHES, MOST_MACS / macs)))
    try:
        found = matched_dataset(
            model.analysis, context.seed_for("synthetic"), threads=context.threads, samples=samples
        )
    except SurgeonError as error:
        context.warn(INSTEAD + str(error))
        return context
    context.warn(SAID)
    context.record["synthetic"] = found.facts
    return replace(context, data=found.data)


def magnitude(options: Prune) -> Prune:
    """The same options for a plain cut."""
    return replace(options, score=FALLBACK, reconstruct=False)


def cut_checked(cutting: Cutting, targets: Mapping[str, float] | None) -> Cut:
    """Cut to targets; by magnitude and without a refit where one to made-up inputs is no better than that.

    Raises:
        GateError: The targets cannot be met, or the proof fails.
    """
    from surgeon_passes.pruning.cutting import Cutting as Another

    found = cutting.to(targets)
    if not cutting.made_up or is_better(cutting, found, targets):
        return found
    return Another(magnitude(cutting.options), cutting.model, cutting.graph, cutting.context).to(targets)


def is_better(cutting: Cutting, found: Cut, targets: Mapping[str, float] | None) -> bool:
    """Whether a refitted cut is closer to the original at the outputs than one by magnitude, for each family of inputs."""
    from surgeon_passes.pruning.cutting import Cutting as Another

    context, model = cutting.context, cutting.model
    if found.proved is None:
        return True
    if found.refitted is None:  # what was ranked for a refit is no use without
        return False
    plain = Another(magnitude(cutting.options), model, cutting.graph, context)
    try:
        choice = plain.chosen(targets)
    except GateError:
        return True
    kept = {name: flags for name, flags in choice.kept.items() if not flags.all()}
    if not kept:
        return True
    graphs = [model.analysis.graph, found.graph, model.cut(kept)[0]]
    errors = _errors(graphs, cutting.measuring, context.threads)
    better = bool(errors) and all(ours <= theirs for ours, theirs in errors)
    facts: Any = context.record["synthetic"]
    facts["error"] = [ours for ours, _ in errors]
    facts["error_of_magnitude"] = [theirs for _, theirs in errors]
    facts["used"] = better
    if not better:
        context.warn(INSTEAD + "on made-up inputs that is closer to the original than a refit")
    return better


def _errors(graphs: list[Graph], context: Context, threads: int) -> list[tuple[float, float]]:
    """For each family of inputs, the errors of the second and third graph's outputs against the first one's."""
    runners = [session(to_model(graph), threads=threads) for graph in graphs]
    chosen = {EVERY - 2, EVERY - 1}  # one batch of each family
    result = []
    for number, (feeds, _) in enumerate(context.calibration()):
        if number in chosen:
            outputs = [run(runner, feeds) for runner in runners]
            result.append((_error(outputs[1], outputs[0]), _error(outputs[2], outputs[0])))
    return result


def _error(ours: list[NDArray[Any]], theirs: list[NDArray[Any]]) -> float:
    """The mean over outputs of floats of the squared error relative to their energy; not finite ones count as 1e9."""
    found = [0.0]
    for a, b in zip(ours, theirs, strict=True):
        if b.dtype.kind == "f" and a.shape == b.shape and b.size:
            error = np.square(a - b, dtype=np.float64).sum() / max(
                np.square(b, dtype=np.float64).sum(), 1e-12
            )
            found.append(float(error) if np.isfinite(error) else 1e9)
    return float(np.mean(found[1:] or found))


def _solving(model: Model) -> float:
    """Multiply-accumulates that it takes to solve for all weights: the cube of the rows of each matrix."""
    total = 0.0
    for op in model.analysis.ops:
        for view in linear_views(op):
            weight = np.broadcast_to(np.int8(0), op.dims(view.weight))
            total += float(view.matrices(op.node, weight).shape[1]) ** 3
    return total
