"""Ranking the indices of each group: a score of each of its tensors, scaled to mean 1, then joined."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from surgeon import entries
from surgeon.allocate import prices
from surgeon.axes import atoms_of
from surgeon.errors import PluginError
from surgeon.quantized import meanings, parameters
from surgeon.scores import REDUCTIONS, SCORES, Activity, Score, Slices
from surgeon_passes.pruning.activity import Read, measure, norms, reads
from surgeon_passes.pruning.influence import influences, reasons
from surgeon_passes.pruning.obs import Eliminator
from surgeon_passes.pruning.spread import positions_in_weights
from surgeon_passes.pruning.values import as_numbers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.axes import Axis
    from surgeon.engine import Model
    from surgeon.groups import Group
    from surgeon.passes import Context
    from surgeon.refit.carry import Current
    from surgeon_passes.prune import Prune

    Floats = NDArray[np.float64]
    Found = dict[str, list[Floats]]

RANDOM, AUTO, OBS = "random", "auto", "obs"
FALLBACK = "l2"
LARGEST = 1e30
DIGITS = 5  # scores that agree this far are the same: what decides must not be the rounding of a sum


class Ranking:
    """What removing each index of each group costs, measured once for all cuts of a model.

    Args:
        options: The options of the pass.
        model: The analysed model.
        context: The run.

    Attributes:
        eliminator: What the score obs has measured.
    """

    def __init__(self, options: Prune, model: Model, context: Context) -> None:
        self.options, self.model, self.context = options, model, context
        self.eliminator = Eliminator(model, context, options.memory * 2**20, options.sensitivity)
        self._known: dict[str, Floats] = {}

    def of(self, groups: Sequence[Group], current: Current | None = None) -> dict[str, Floats]:
        """Costs ``[size]`` per group id, comparable between groups.

        Args:
            groups: The groups.
            current: What was cut so far; scores of what is left change where they depend on it.

        Raises:
            PluginError: A score or reduction of a plugin cannot be loaded, or fails.
            DataError: The calibration data do not fit the model.
        """
        if current is not None and chosen_score(self.options, self.context) == OBS:
            return _eliminated(self.options, self.model, groups, self.context, self.eliminator, current)
        if not {group.id for group in groups} <= self._known.keys():
            self._known = _rank(self.options, self.model, groups, self.context, self.eliminator)
        return {group.id: self._known[group.id] for group in groups}

    def look_closer(self, kept: Mapping[str, NDArray[np.bool_]]) -> bool:
        """Whether a closer look at what was chosen says something else, so that it should be chosen anew."""
        if chosen_score(self.options, self.context) != OBS:
            return False
        surprised = self.eliminator.look_closer(kept, self._known)
        self._known = {}  # more is known now, whatever it says of this cut
        return surprised


def _rank(
    options: Prune, model: Model, groups: Sequence[Group], context: Context, eliminator: Eliminator
) -> dict[str, Floats]:
    if options.score == RANDOM:
        random = np.random.default_rng(context.seed_for("prune"))
        drawn = {group.id: random.random(group.size) for group in groups}
        return {name: prices(scores, 1) for name, scores in drawn.items()}
    name = chosen_score(options, context)
    if name == OBS:
        return _eliminated(options, model, groups, context, eliminator, None)
    score = _score(name)
    if score.over == "gradients":
        return _graded(name, score, options, model, groups, context)
    weights = positions_in_weights(model, groups)
    magnitudes = _magnitudes(name, options, model, groups, context)
    return {name: prices(scores, max(1, len(weights[name]))) for name, scores in magnitudes.items()}


def _magnitudes(
    name: str, options: Prune, model: Model, groups: Sequence[Group], context: Context
) -> dict[str, Floats]:
    """Scores of each group that average about 1."""
    join = entries.load_function(entries.REDUCTIONS, options.reduce, REDUCTIONS, what="reduction")
    found = _evidence(_score(name), model, groups, context)
    missing = [group for group in groups if not found[group.id]]
    if missing and name != FALLBACK:
        instead = _evidence(SCORES[FALLBACK], model, missing, context)
        weighted = [group for group in missing if instead[group.id]]
        if weighted:
            context.warn(_fell_back(name, weighted, len(groups)))
            context.record["ranked_by_" + FALLBACK] = [group.id for group in weighted]
        found.update(instead)
    return {
        group.id: _finite(_checked(join(np.stack(found[group.id])), group.size, options.reduce))
        if found[group.id]
        else np.ones(group.size)
        for group in groups
    }


def chosen_score(options: Prune, context: Context) -> str:
    """The score in force: with ``auto``, elimination where there are data and magnitude where there are none."""
    if options.score != AUTO:
        return options.score
    return OBS if context.data is not None else FALLBACK


def _eliminated(
    options: Prune,
    model: Model,
    groups: Sequence[Group],
    context: Context,
    eliminator: Eliminator,
    current: Current | None,
) -> dict[str, Floats]:
    """Scores by elimination; groups that it cannot judge rank by magnitude, at the level of the median group."""
    return _completed(eliminator.scores(groups, current), options, model, groups, context)


def _graded(
    name: str, score: Score, options: Prune, model: Model, groups: Sequence[Group], context: Context
) -> dict[str, Floats]:
    """Scores by gradients: groups are compared by their losses, and none is used up before it has to be.

    To begin with an index costs its loss, and later its share of what is left of its group's, see `prices`.
    """
    found = influences(model, groups, context, options.memory * 2**20)
    context.record["gradients"] = {
        "against": found.truth,
        "without": dict(found.without),
        "partial": dict(found.partial),
    }
    if found.without:
        context.warn(
            f"score={name}: {len(found.without)} of {len(groups)} groups have no gradient and are ranked by {FALLBACK}: "
            f"{'; '.join(reasons(found.without))}"
        )
    if found.partial:
        context.warn(
            f"score={name}: part of the gradient is missing for {len(found.partial)} of {len(groups)} groups: "
            f"{'; '.join(reasons(found.partial))}"
        )
    result = {}
    for group in groups:
        if group.id not in found.slopes:
            continue
        losses = np.clip(_asked(score, found.slopes[group.id], size=group.size), 0.0, LARGEST)
        ratios = _scaled(losses, np.ones(group.size, bool))
        result[group.id] = prices(np.sqrt(ratios), 1) * float(f"{losses.sum():.{DIGITS}g}")
    return _completed(result, options, model, groups, context)


def _completed(
    result: dict[str, Floats], options: Prune, model: Model, groups: Sequence[Group], context: Context
) -> dict[str, Floats]:
    """With groups that were not judged, by magnitude at the level of the median group."""
    missing = [group for group in groups if group.id not in result]
    if missing:
        level = float(np.median([scores.mean() for scores in result.values()])) if result else 1.0
        magnitude = _magnitudes(FALLBACK, options, model, missing, context)
        result.update({name: scores * level for name, scores in magnitude.items()})
        context.record["ranked_by_" + FALLBACK] = [group.id for group in missing]
    return result


def _score(name: str) -> Score:
    """The score of that name; a plain function of a plugin looks at weights."""
    loaded = entries.load_function(entries.SCORES, name, SCORES, what="score")
    return loaded if isinstance(loaded, Score) else Score(loaded)


def _checked(scores: object, size: int, name: str) -> Floats:
    """A third party's numbers, one per index."""
    found = np.asarray(scores, dtype=np.float64)
    if found.shape != (size,):
        raise PluginError(f"gives {found.shape} for a group of {size}, not ({size},)", where=name)
    return found


def _fell_back(score: str, groups: Sequence[Group], total: int) -> str:
    why = {
        "bn_scale": "no BatchNormalization of their own (clean folds them unless clean.fold_batchnorm=false)"
    }.get(score, "nothing that it looks at")
    return f"score={score}: {len(groups)} of {total} groups have {why} and are ranked by {FALLBACK}"


def _evidence(score: Score, model: Model, groups: Sequence[Group], context: Context) -> Found:
    """Per group id what the score says of each tensor, each scaled to mean 1; nothing where there is no such tensor."""
    if score.over == "activations":
        return _of_activations(score, model, groups, context)
    if score.over == "consumers":
        return _of_consumers(score, model, groups, context)
    if score.over == "scales":
        return _of_weights(score, model, groups, _scales(model))
    return _of_weights(score, model, groups, None)


def _asked(score: Score, *evidence: object, size: int) -> Floats:
    """What the score says, one number per index."""
    return _checked(score(*evidence), size, getattr(score.function, "__name__", "score"))


def _scaled(values: Floats, covered: NDArray[np.bool_]) -> Floats:
    """Scores with mean 1; undefined for indices that the tensor does not have, so that they are left out of account."""
    mean = values[covered].mean() if covered.any() else 0.0
    scaled = values / mean if np.isfinite(mean) and mean > 0 else np.ones_like(values)
    return np.where(covered, np.round(scaled, DIGITS), np.nan)


def _finite(scores: Floats) -> Floats:
    """What is not a number (weights that are not, indices that no tensor has) counts as average."""
    return np.where(np.isnan(scores), 1.0, np.clip(scores, 0.0, LARGEST))


def _scales(model: Model) -> set[str]:
    """Names of the scales of BatchNormalization."""
    return {op.node.inputs[1].name for op in model.analysis.ops if op.node.op == "BatchNormalization"}


def _of_weights(score: Score, model: Model, groups: Sequence[Group], only: set[str] | None) -> Found:
    """Weights of rank 2 and more, or those of rank 1 where a group has no others; each is read once."""
    steps, meant = parameters(model.analysis), meanings(model.analysis)
    constants = {
        t.name: t
        for op in model.analysis.ops
        for t in op.node.inputs
        if isinstance(t, gs.Constant) and t.name not in steps
    }
    uses: dict[str, list[tuple[Group, int, int]]] = defaultdict(list)
    found: dict[str, dict[int, Floats]] = {group.id: {} for group in groups}
    for group in groups:
        mine = [(name, axis) for name, axis in group.members if name in constants]
        if only is not None:
            chosen = [(name, axis) for name, axis in mine if name in only]
        else:
            chosen = [(name, axis) for name, axis in mine if len(constants[name].shape) > 1] or mine
        for number, (name, axis) in enumerate(chosen):
            uses[name].append((group, axis, number))
    for name, here in uses.items():
        values = as_numbers(constants[name], meant)
        if values is None:
            continue
        expressions = model.analysis.axes[name] or []
        along = {
            axis: Slices.along(values, axis, expressions[axis]) for axis in {axis for _, axis, _ in here}
        }
        for group, axis, number in here:
            slices = along[axis](group.atom)
            found[group.id][number] = _scaled(_asked(score, slices, size=group.size), slices.covered())
    return {name: [each[number] for number in sorted(each)] for name, each in found.items()}


def _of_activations(score: Score, model: Model, groups: Sequence[Group], context: Context) -> Found:
    """Each activation that a consumer reads; where nothing consumes a group, its last activation."""
    wanted: dict[str, list[tuple[tuple[str, int], Axis]]] = {group.id: [] for group in groups}
    by_atom = {group.atom: group for group in groups}
    for read in reads(model, [group.atom for group in groups]):
        entry = (read.place, read.expression)
        mine = wanted[by_atom[read.atom].id]
        if read.place not in [place for place, _ in mine]:
            mine.append(entry)
    sums = measure(model, [place for mine in wanted.values() for place, _ in mine], context)
    result: Found = {}
    for group in groups:
        result[group.id] = []
        for place, expression in wanted[group.id]:
            total = sums[place]
            slices = Slices.of(total.squares[None].astype(np.float64), 1, expression, group.atom)
            counted = slices.gather(np.full(len(total.squares), total.count))
            activity = Activity(slices.gather(total.squares), slices.gather(total.nonzeros), counted)
            result[group.id].append(_scaled(_asked(score, activity, size=group.size), slices.covered()))
    return result


def _of_consumers(score: Score, model: Model, groups: Sequence[Group], context: Context) -> Found:
    """Each weight that multiplies activations of a group; what they say is added up before it is scaled."""
    by_atom = {group.atom: group for group in groups}
    pairs = [
        (read, constant, axis)
        for read in reads(model, list(by_atom))
        for constant, axis in _partners(model, read)
    ]
    sums = measure(model, [read.place for read, _, _ in pairs], context)
    meant = meanings(model.analysis)
    totals: dict[str, Floats] = {}
    covered: dict[str, NDArray[np.bool_]] = {}
    for read, constant, axis in pairs:
        values = as_numbers(constant, meant)
        if values is None:
            continue
        group = by_atom[read.atom]
        arranged = _by_input(read, values, axis)
        slices = Slices.of(arranged, 0, read.expression, group.atom)
        each = _asked(score, slices, norms(sums, read.place), size=group.size)
        totals[group.id] = totals.get(group.id, 0.0) + each
        covered[group.id] = covered.get(group.id, False) | slices.covered()
    return {
        group.id: [_scaled(totals[group.id], covered[group.id])] if group.id in totals else []
        for group in groups
    }


def _partners(model: Model, read: Read) -> list[tuple[gs.Constant, int]]:
    """Constants behind the operator's other inputs, with the axis that runs along the activations that are read.

    For a convolution that is axis 1 of the weight (axis 0 when transposed), whatever its groups.
    """
    result = []
    for index, tensor in enumerate(read.op.node.inputs):
        constant = _root(tensor)
        if index not in read.op.facts.contracted or constant is None or index == read.index:
            continue
        if read.op.node.op in ("Conv", "ConvTranspose"):
            if read.axis == 1:
                result.append((constant, 0 if read.op.node.op == "ConvTranspose" else 1))
            continue
        for k, axis in enumerate(model.analysis.axes.get(constant.name) or ()):
            if axis.size == read.expression.size and list(atoms_of(axis)) == list(atoms_of(read.expression)):
                result.append((constant, k))
                break
    return result


def _root(tensor: gs.Tensor) -> gs.Constant | None:
    """The constant that a weight is, or is computed from by Transpose, Cast, DequantizeLinear and their like."""
    while not isinstance(tensor, gs.Constant):
        if not tensor.inputs or not tensor.inputs[0].inputs:
            return None
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def _by_input(read: Read, values: NDArray[np.floating], axis: int) -> NDArray[np.floating]:
    """The weight as a matrix ``[positions that are read, everything they are multiplied with]``."""
    positions = read.expression.size
    group = int(read.op.attribute("group", 1)) if read.op.node.op == "Conv" else 1
    if group == 1:
        return np.moveaxis(values, axis, 0).reshape(positions, -1)
    blocks = values.reshape(group, values.shape[0] // group, values.shape[1], -1)
    return blocks.transpose(0, 2, 1, 3).reshape(positions, -1)
