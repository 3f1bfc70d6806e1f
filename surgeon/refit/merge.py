"""Folding similar channels into one, where that leaves the consumers more than deleting some of them.

Refitted consumers already make the best linear use of the channels that are kept. So folding can only gain by changing
these: each becomes a weighted mean, before the activation, of a cluster of channels, and the consumers start from the
sums of what they had for them. Clusters are found by k-means on what the channels compute, starting from the channels
that would be kept (Lloyd, 1982, with distances from second moments), and, more cautiously, by adding to each of these
only what is close to it. Every alternative is fitted to the same places of the original, and what is least wrong at the
consumers on held-out places is taken; deletion is one of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.axes import Keep, atoms_of, coordinates
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.refit.behind import kept_weight
from surgeon.refit.carry import get_weight, set_weight
from surgeon.refit.fit import Effort, Sample, fit
from surgeon.refit.sampling import Draw, Places
from surgeon.refit.through import Activation, activation_after
from surgeon.stats.convolution import Convolution
from surgeon.stats.linear import Linear, contracted_coordinates, linear_views

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from numpy.typing import NDArray

    from surgeon.analysis import Analysis
    from surgeon.axes import Atom
    from surgeon.stats.replay import Replay

    Array = NDArray[Any]
    Matrix = NDArray[np.float64]
    Labels = NDArray[np.int64]

PLACES = Places(per_input=20, fewest=6000, limit_bytes=2**27)
EFFORT = Effort(strengths=(1e-4, 1e-2), steps=0)
CLOSE = (0.9, 0.7, 0.5)  # correlations from which on a channel joins one that is kept
ROUNDS = 20
MOST_BATCHES = 16  # are looked at
GAIN = 0.99  # of the error of deletion, or less, makes folding worth it
TINY = 1e-12


@dataclass(frozen=True)
class Foldable:
    """Channels that one operator makes and operators with weights read.

    Attributes:
        atom: The channels.
        producer: What makes them.
        through: What they pass through.
        depthwise: A depthwise convolution they pass through next, and what its result passes through.
        consumers: What sums over them.
    """

    atom: Atom
    producer: Linear
    through: Activation | None
    depthwise: tuple[Convolution, Activation | None] | None
    consumers: tuple[Linear, ...]

    @property
    def makers(self) -> tuple[Linear, ...]:
        """Whatever has weights of its own for each channel."""
        return (self.producer,) if self.depthwise is None else (self.producer, self.depthwise[0])


@dataclass(frozen=True)
class Folding:
    """The errors of a group's consumers on held-out places, relative to their energy: with channels deleted, or folded."""

    deleted: float
    folded: float

    @property
    def better(self) -> bool:
        """Whether folding pays."""
        return self.folded < GAIN * self.deleted


def foldable(analysis: Analysis, keep: Keep) -> list[Foldable]:
    """The groups that lost something and could be folded, in the order of their producers."""
    views = {view.output: view for op in analysis.ops for view in linear_views(op) if view.output}
    readers: dict[str, list[Linear]] = {}
    for view in (view for op in analysis.ops for view in linear_views(op)):
        for name in view.reads:
            readers.setdefault(name, []).append(view)
    outputs = {tensor.name for tensor in analysis.graph.outputs}
    tensors = {t.name: t for node in analysis.graph.nodes for t in node.outputs}
    found = []
    for name, view in views.items():
        atom = _whole_atom(analysis, view)
        if atom is None or atom not in keep or keep[atom].all() or name in outputs:
            continue
        through, read = _read_as(tensors[name], outputs)
        consumers = readers.get(read.name, [])
        depthwise = None
        if len(consumers) == len(read.outputs) == 1 and _is_depthwise(consumers[0], atom.size):
            middle = consumers[0]
            if {read.name, middle.output} & outputs:
                continue
            behind, read = _read_as(tensors[middle.output], outputs)
            depthwise, consumers = (middle, behind), readers.get(read.name, [])
        enough = {id(user) for user in read.outputs} == {id(each.op.node) for each in consumers}
        if not consumers or not enough or read.name in outputs:
            continue
        if all(_sums_over(each, atom) for each in consumers):
            found.append(Foldable(atom, view, through, depthwise, tuple(consumers)))
    return found


def _whole_atom(analysis: Analysis, view: Linear) -> Atom | None:
    """What the channels of a product's result are, if they are one thing only."""
    axes = analysis.axes.get(view.output)
    if view.channel_axis is None or view.groups(view.op.node) != 1 or not axes:
        return None
    axis = axes[view.channel_axis]
    atoms = [atom for atom in dict.fromkeys(atoms_of(axis)) if atom.size > 1]
    if len(atoms) != 1 or atoms[0].size != axis.size:
        return None
    places = coordinates(axis, atoms[0])
    return atoms[0] if len(places) == 1 and (places[0] == np.arange(axis.size)).all() else None


def _is_depthwise(view: Linear, channels: int) -> TypeGuard[Convolution]:
    """Whether each channel has one kernel of its own."""
    shape = view.op.dims(view.weight)
    return type(view) is Convolution and view.groups(view.op.node) == channels and shape[:2] == (channels, 1)


def _read_as(result: gs.Tensor, outputs: Collection[str]) -> tuple[Activation | None, gs.Tensor]:
    """The activation behind a result, and the tensor that is read instead of it."""
    through = activation_after(result, outputs)
    if through is None:
        return None, result
    last = next(user for user in result.outputs if len(result.outputs) == 1 or user.op == "Mul")
    return through, last.outputs[0]


def _sums_over(view: Linear, atom: Atom) -> bool:
    places = contracted_coordinates(view, atom)
    if places is None or len(places) != 1 or places.shape[1] % atom.size or not view.target_reads:
        return False
    return bool((places[0] == np.repeat(np.arange(atom.size), places.shape[1] // atom.size)).all())


def clusters(moments: Matrix, kept: NDArray[np.bool_]) -> list[Labels]:
    """Ways to fold channels into those that are kept.

    Args:
        moments: ``[channels, channels]``, second moments of what the channels compute, weighed by their importance.
        kept: ``[channels]``.

    Returns:
        For each way ``[channels]``, the cluster of each channel, -1 where it is deleted; as many as are kept, cluster k
        having the k-th kept channel's place.
    """
    several = [_close(moments, kept, least) for least in CLOSE]
    several.append(_k_means(moments, kept))
    distinct = {each.tobytes(): each for each in several if (each[~kept] >= 0).any()}
    return list(distinct.values())


def _close(moments: Matrix, kept: NDArray[np.bool_], least: float) -> Labels:
    scale = np.sqrt(np.maximum(np.diag(moments), TINY))
    alike = (moments / scale / scale[:, None])[:, kept]
    labels = np.where(alike.max(axis=1) >= least, alike.argmax(axis=1), -1)
    labels[kept] = np.arange(int(kept.sum()))
    return labels


def _k_means(moments: Matrix, kept: NDArray[np.bool_]) -> Labels:
    count = int(kept.sum())
    labels = _close(moments, kept, -np.inf)
    for _ in range(ROUNDS):
        members = np.eye(count)[labels] / np.bincount(labels, minlength=count)
        means = moments @ members
        distances = np.einsum("ak,ak->k", members, means) - 2 * means
        moved = distances.argmin(axis=1)
        if len(np.unique(moved)) < count or (moved == labels).all():
            break
        labels = moved
    return labels


@dataclass
class Merges:
    """The groups of a cut graph that may be folded.

    Attributes:
        analysis: The original.
        keep: What was kept.
        nodes: The nodes of the cut graph by first output.
        is_free: Whether an operator has its weight for itself.
        outcomes: What was found, by the operator that makes the channels.
        stale: Operators, by first output, that have to be refitted because what they read was folded.
    """

    analysis: Analysis
    keep: Keep
    nodes: dict[str, gs.Node]
    is_free: Callable[[Linear], bool]
    outcomes: dict[str, Folding] = field(default_factory=dict)
    stale: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._due = {
            _name(each.producer): each for each in foldable(self.analysis, self.keep) if self._fits(each)
        }

    def _fits(self, each: Foldable) -> bool:
        views = (*each.makers, *each.consumers)
        return all(_name(view) in self.nodes and self.is_free(view) for view in views)

    @property
    def makers(self) -> set[str]:
        """The operators, by first output, whose channels may be folded."""
        return {_name(view) for each in self._due.values() for view in each.makers}

    def reads(self, maker: str) -> list[str]:
        """The tensors of the original that are asked for when the turn of an operator comes."""
        each = self._due.get(maker)
        if each is None:
            return []
        return sorted(
            {*(v.output for v in each.makers), *(n for view in each.consumers for n in view.target_reads)}
        )

    def merge(self, maker: str, original: Replay, batches: int) -> dict[str, Matrix]:
        """Fold the channels of an operator where that pays.

        Returns:
            For its result, if so, and that of a depthwise convolution behind it: ``[channels, channels kept]``, what the
            channels are multiplied with.
        """
        each = self._due.get(maker)
        if each is None:
            return {}
        original.advance(self.reads(maker))
        trial = _Trial(self, each, original, min(batches, MOST_BATCHES))
        kept = self.keep[each.atom]
        deleted = trial.error(np.eye(len(kept))[:, kept], np.eye(len(kept))[:, kept])
        best: tuple[float, Labels] | None = None
        for labels in clusters(trial.moments, kept):
            error = trial.error(*trial.matrices(labels))
            if np.isfinite(error) and (best is None or error < best[0]):
                best = error, labels
        if best is None or not np.isfinite(deleted):
            return {}
        outcome = Folding(deleted, best[0])
        self.outcomes[each.producer.op.node.name or maker] = outcome
        if not outcome.better:
            return {}
        means, sums = trial.matrices(best[1])
        self._apply(each, means, sums)
        self.stale |= {_name(view) for view in each.makers[1:]}
        return {view.output: means for view in each.makers}

    def _apply(self, each: Foldable, means: Matrix, sums: Matrix) -> None:
        originals = {node.outputs[0].name: node for node in self.analysis.graph.nodes if node.outputs}
        rows = kept_weight(self.analysis, each.producer, self.keep)[0].any(axis=1)
        whole = get_weight(each.producer, originals)[0][np.append(rows, True)]
        set_weight(each.producer, self.nodes, (whole @ means)[None])
        for view in each.makers[1:]:
            kernels = get_weight(view, originals)  # [channels, taps + 1, 1]
            set_weight(view, self.nodes, np.einsum("cto,ck->kto", kernels, means))
        for view in each.consumers:
            set_weight(view, self.nodes, self.folded(view, originals, sums))

    def folded(self, view: Linear, originals: dict[str, gs.Node], sums: Matrix) -> Matrix:
        """The original weights of a consumer for folded channels: ``[1, inputs + 1, outputs]``."""
        columns = kept_weight(self.analysis, view, self.keep)[0].any(axis=0)
        whole = get_weight(view, originals)[0][:, columns]
        blocks = whole[:-1].reshape(len(sums), -1, whole.shape[1])
        rows = np.einsum("ck,cto->kto", sums, blocks).reshape(-1, whole.shape[1])
        return np.concatenate([rows, whole[-1:]])[None]


class _Trial:
    """One group's sample of places, at which every alternative is fitted."""

    def __init__(self, merges: Merges, each: Foldable, original: Replay, batches: int) -> None:
        self.merges, self.each, self.old = merges, each, original
        self.originals = {n.outputs[0].name: n for n in merges.analysis.graph.nodes if n.outputs}
        draw = Draw(np.random.default_rng(0), PLACES.limited(original.store.limit), batches)
        self.batches = batches
        self.places: list[list[NDArray[np.int64]]] = []
        self.held: list[NDArray[np.bool_]] = []
        self.targets: list[Array] = []
        self.axis = each.producer.channel_axis or 0
        for view in each.consumers:
            inputs = get_weight(view, self.originals).shape[1]
            columns = kept_weight(merges.analysis, view, merges.keep)[0].any(axis=0)
            chosen, flags, wanted = [], [], []
            for batch in range(batches):
                whole = original.get(each.makers[-1].output, batch)  # has the shape of what is read
                total = view.count(_only(whole))
                places = draw.places_of(batch, total, (1, inputs, 0))
                target = view.target(view.op.node, partial(original.get, batch=batch), places)
                wanted.append(target[:, :, columns].astype(np.float32))
                flags.append(draw.held_out(batch, places, total))
                chosen.append(places)
            self.places.append(chosen)
            self.held.append(np.concatenate(flags))
            self.targets.append(np.concatenate(wanted, axis=1))
        weight = sum(np.square(self._blocks(view)).sum(axis=(1, 2)) for view in each.consumers)
        self.importance = np.maximum(weight / max(float(np.mean(weight)), TINY), 1e-6)
        self.moments = self._moments()

    def matrices(self, labels: Labels) -> tuple[Matrix, Matrix]:
        """``[channels, kept]`` twice: the means of the clusters, and their sums."""
        sums = np.eye(int(labels.max()) + 1)[labels] * (labels >= 0)[:, None]
        means = sums * np.sqrt(self.importance)[:, None]
        return means / means.sum(axis=0), sums

    def error(self, means: Matrix, sums: Matrix) -> float:
        """The error of all consumers on held-out places, once fitted to the others."""
        nodes = [self.merges.nodes[_name(view)] for view in self.each.consumers]
        rows: list[list[Array]] = [[] for _ in nodes]
        for batch in range(self.batches):
            read = _only(self._seen(self._batch(batch), means))
            for k, view in enumerate(self.each.consumers):
                rows[k].append(view.rows(nodes[k], read, self.places[k][batch]).astype(np.float32))
        total = 0.0
        for k, view in enumerate(self.each.consumers):
            x = np.concatenate(rows[k], axis=1)
            ones = np.full((*x.shape[:2], 1), view.bias is not None, x.dtype)
            sample = Sample(np.concatenate([x, ones], axis=2), self.targets[k], None, self.held[k])
            total += fit(sample, self.merges.folded(view, self.originals, sums), EFFORT).after
        return total

    def _batch(self, batch: int) -> Array:
        return self.old.get(self.each.producer.output, batch)

    def _seen(self, result: Array, means: Matrix) -> Array:
        """What the consumers read if the producer's channels are ``means``."""
        folded = np.tensordot(result.astype(np.float32), means.astype(np.float32), axes=([self.axis], [0]))
        folded = np.moveaxis(folded, -1, self.axis)
        folded = folded if self.each.through is None else np.asarray(self.each.through.function(folded))
        if self.each.depthwise is None:
            return folded
        view, through = self.each.depthwise
        kernels = np.einsum("cto,ck->kto", get_weight(view, self.originals), means).astype(np.float32)
        result = depthwise(view.op.node, folded, kernels, self.old.threads)
        return result if through is None else np.asarray(through.function(result))

    def _blocks(self, view: Linear) -> Matrix:
        whole = get_weight(view, self.originals)[0][:-1]
        return np.asarray(whole.reshape(self.each.atom.size, -1, whole.shape[1]))

    def _moments(self) -> Matrix:
        """Of the producer's results around their means, each weighed by the weights that read it."""
        total: Any = 0.0
        size, through = self.each.atom.size, self.each.through
        for batch in range(self.batches):
            flat = np.moveaxis(self._batch(batch), self.axis, -1).reshape(-1, size)[::7].astype(np.float32)
            seen = flat if through is None else through.function(flat)
            total = total + (seen.T @ seen).astype(np.float64)
        scale = np.sqrt(self.importance)
        return np.asarray(total * scale * scale[:, None])


def _only(tensor: Array) -> Callable[[str], Array]:
    """What reads one tensor, whatever its name."""
    return lambda _: tensor


def depthwise(node: gs.Node, x: Array, kernels: Array, threads: int) -> Array:
    """What a depthwise convolution makes of other channels, given kernels with bias ``[channels, taps + 1, 1]``."""
    shape = (len(kernels), 1, *node.inputs[1].shape[2:])
    weight = gs.Constant("w", np.ascontiguousarray(kernels[:, :-1, 0].reshape(shape)))
    bias = gs.Constant("b", np.ascontiguousarray(kernels[:, -1, 0]))
    given, made = gs.Variable("x", dtype=np.float32), gs.Variable("y", dtype=np.float32)
    attributes = {**node.attrs, "group": len(kernels)}
    convolution = gs.Node("Conv", inputs=[given, weight, bias], outputs=[made], attrs=attributes)
    graph = gs.Graph(nodes=[convolution], inputs=[given], outputs=[made], opset=17)
    return np.asarray(run(session(to_model(graph), threads=threads), {"x": x})[0])


def _name(view: Linear) -> str:
    return str(view.op.node.outputs[0].name)
