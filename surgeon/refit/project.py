"""The best few dimensions for a product of two activations, ``Q K'``: neither factor has a consumer that could learn.

With any ``A`` and ``B`` of shape ``[dims, rank]`` folded into the operators that make ``Q`` and ``K``, the cut graph
computes ``(Q A)(K B)'``, and keeping some of the dimensions as they are is one such choice. Over calibration data
``‖Q K' - (Q A)(K B)'‖²`` is ``‖Gq^½ (I - A B') Gk^½‖²`` with the second moments ``Gq = Q'Q`` and ``Gk = K'K``, where
every row of Q meets every row of K. The best ``Gq^½ A B' Gk^½`` of a rank is the truncated singular value decomposition
``U S V'`` of ``Gq^½ Gk^½`` (Eckart and Young, 1936), so ``A = Gk^½ V`` and ``B = Gk^-½ V``, with V the first
eigenvectors of ``Gk^½ Gq Gk^½``; its remaining eigenvalues add up to the error. Only the sum of ``Gq`` counts where
several heads of Q share one of K. Means are part of the moments, and biases are projected like weights. Before a
softmax, which does not see what is the same for all rows of K, the moments of K are taken around the mean of each
sample.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.axes import Keep, mask
from surgeon.refit.behind import kept_weight
from surgeon.refit.carry import get_weight, set_weight
from surgeon.refit.contraction import Contraction, Factors, contractions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from surgeon.analysis import Analysis
    from surgeon.refit.sampling import Draw
    from surgeon.stats.linear import Linear
    from surgeon.stats.replay import Replay

    Array = NDArray[Any]
    Matrix = NDArray[np.float64]

DAMPING = 1e-9
MOST_SAMPLES = 1024
EVERY = 7  # sample is held out
TINY = 1e-300


def best(single: Matrix, others: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """The best projections of a rank.

    Args:
        single: ``[dims, dims]``, second moments of the factor that is one head.
        others: The sum of those of all heads of the other factor that meet it.
        rank: Dimensions that are left.

    Returns:
        What to multiply the single head with, and what all of the others, each ``[dims, rank]``.
    """
    half, back = _root(_damped(single))
    values, vectors = np.linalg.eigh(half @ _damped(others) @ half)
    chosen = vectors[:, ::-1][:, :rank]
    scale = np.maximum(values[::-1][:rank], TINY) ** 0.25  # both factors get the same second moments
    return np.asarray(back @ chosen * scale), np.asarray(half @ chosen / scale)


def spectrum(single: Matrix, others: Matrix) -> Matrix:
    """What each dimension adds to the error when it is left out, the largest first; arguments as for `best`."""
    half, _ = _root(_damped(single))
    return np.asarray(np.maximum(np.linalg.eigvalsh(half @ _damped(others) @ half)[::-1], 0.0))


def _damped(gram: Matrix) -> Matrix:
    return np.asarray(gram + np.eye(len(gram)) * max(DAMPING * float(np.diag(gram).mean()), 1e-30))


def _root(gram: Matrix) -> tuple[Matrix, Matrix]:
    """The symmetric square root and its inverse."""
    values, vectors = np.linalg.eigh(gram)
    root = np.sqrt(np.maximum(values, TINY))
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T


def matrices_of(contraction: Contraction, left: Array, right: Array) -> tuple[Matrix, Matrix]:
    """Both operands as ``[matrices, rows, dims]``, the second around its mean where a softmax does not see that."""
    first, second = np.asarray(left, np.float64), np.asarray(right, np.float64).swapaxes(-1, -2)
    leads = np.broadcast_shapes(first.shape[:-2], second.shape[:-2])
    first, second = (
        np.broadcast_to(each, (*leads, *each.shape[-2:])).reshape(-1, *each.shape[-2:])
        for each in (first, second)
    )
    return first, second - second.mean(axis=1, keepdims=True) if contraction.softmax else second


def moments(matrices: Matrix) -> Matrix:
    """``[..., rows, dims]`` to ``[..., dims, dims]``."""
    return np.asarray(matrices.swapaxes(-1, -2) @ matrices)


@dataclass
class Summed:
    """Second moments of both factors, per head, and of single samples."""

    sides: tuple[Matrix, Matrix]

    @staticmethod
    def of(factors: Factors, samples: Iterable[tuple[Matrix, Matrix]]) -> Summed | None:
        """Add up; None where there are no samples, or their matrices are not whole sets of heads."""
        dims = factors.left.channels.shape[1]
        sides = tuple(np.zeros((len(factor.channels), dims, dims)) for factor in factors.sides)
        period, count = len(factors.pairs), 0
        for both in samples:
            if len(both[0]) % period:
                return None
            count += 1
            for k, matrices in enumerate(both):
                grams = moments(matrices).reshape(-1, period, dims, dims).sum(axis=0)
                # a head that meets several is repeated; its own moments count once
                met = np.bincount(factors.pairs[:, k], minlength=len(sides[k]))
                np.add.at(sides[k], factors.pairs[:, k], grams / met[factors.pairs[:, k], None, None])
        return Summed((sides[0], sides[1])) if count and all(np.isfinite(s).all() for s in sides) else None

    def heads(self, factors: Factors) -> Iterator[tuple[int, list[int], Matrix, Matrix]]:
        """Each head of the single side, the heads of the other that meet it, its moments, and the sum of theirs."""
        side = factors.single
        assert side is not None  # contractions() sees to it
        for head in range(len(factors.sides[side].channels)):
            others = np.unique(factors.pairs[factors.pairs[:, side] == head, 1 - side])
            yield head, others.tolist(), self.sides[side][head], self.sides[1 - side][others].sum(axis=0)


def samples_of(
    contraction: Contraction, run: Replay, batches: int, part: Callable[[int], bool] = lambda _: True
) -> Iterator[tuple[Matrix, Matrix]]:
    """Both operands of single samples (or windows of samples) that ``part`` picks by their number."""
    left, right = contraction.operands
    period = 1 if contraction.factors is None else len(contraction.factors.pairs)
    number = 0
    for batch in range(batches):
        first, second = matrices_of(contraction, run.get(left, batch), run.get(right, batch))
        whole = max(1, len(first) // period)
        for k in range(min(whole, -(-MOST_SAMPLES // batches))):
            if part(number):
                each = slice(k * period, (k + 1) * period)
                yield first[each], second[each]
            number += 1


@dataclass(frozen=True)
class Outcome:
    """The error of a product's result relative to itself, on held-out samples: with some dimensions, and with the best."""

    selected: float
    projected: float

    @property
    def better(self) -> bool:
        """Whether projecting pays."""
        return self.projected < self.selected


@dataclass
class Projections:
    """The products of a cut graph that lost dimensions, and how the operators before them are changed for it.

    Attributes:
        analysis: The original.
        keep: What was kept.
        nodes: The nodes of the cut graph by first output.
        outcomes: What was found, by the node of the product.
        transforms: For each result of an operator that is projected: ``[channels, channels kept]``, what its channels
            are multiplied with.
    """

    analysis: Analysis
    keep: Keep
    nodes: dict[str, gs.Node]
    is_free: Callable[[Linear], bool]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    transforms: dict[str, Matrix] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._order = {id(op.node): k for k, op in enumerate(self.analysis.ops)}
        self._due: dict[str, list[Contraction]] = {}
        for each in contractions(self.analysis):
            if each.factors is not None and not mask(each.axis, self.keep).all() and self._fits(each):
                views = [factor.view for factor in each.factors.sides]
                first = min(views, key=lambda view: self._order[id(view.op.node)])
                self._due.setdefault(_name(first), []).append(each)

    @property
    def makers(self) -> set[str]:
        """The operators, by first output, that may be projected."""
        return {
            _name(factor.view)
            for several in self._due.values()
            for each in several
            if each.factors is not None
            for factor in each.factors.sides
        }

    def reads(self, maker: str) -> list[str]:
        """The tensors of the original that are asked for when the turn of an operator comes."""
        return sorted({name for each in self._due.get(maker, []) for name in each.operands})

    def project(self, maker: str, original: Replay, draw: Draw) -> None:
        """Change the operators before the products whose first maker this is, where that pays."""
        for each in self._due.get(maker, []):
            if each.factors is None:
                continue
            original.advance(each.operands)
            found = self._solve(each, each.factors, original, draw.batches)
            if found is None:
                continue
            outcome, parts = found
            self.outcomes[each.op.node.name or each.scores] = outcome
            if outcome.better:
                for factor, projections in zip(each.factors.sides, parts, strict=True):
                    self._apply(factor.view, factor.channels, mask(each.axis, self.keep), projections)

    def _fits(self, contraction: Contraction) -> bool:
        """Whether both operators are there, with weights of their own, and each head lost the same or is gone."""
        dims = mask(contraction.axis, self.keep)
        for factor in contraction.factors.sides if contraction.factors else ():
            if _name(factor.view) not in self.nodes or not self.is_free(factor.view):
                return False
            heads = self._kept(factor.view)[factor.channels]
            if not ((heads == dims).all(axis=1) | ~heads.any(axis=1)).all():
                return False
        return True

    def _kept(self, view: Linear) -> NDArray[np.bool_]:
        return np.asarray(kept_weight(self.analysis, view, self.keep)[0].any(axis=0))

    def _solve(
        self, contraction: Contraction, factors: Factors, original: Replay, batches: int
    ) -> tuple[Outcome, tuple[Matrix, Matrix]] | None:
        """The projections of each side ``[heads, dims, rank]``, and how they do."""
        kept = mask(contraction.axis, self.keep)
        fitted = samples_of(contraction, original, batches, lambda number: number % EVERY != EVERY - 1)
        summed = Summed.of(factors, fitted)
        if summed is None or factors.single is None:
            return None
        side = factors.single
        parts = [np.zeros((len(factor.channels), len(kept), int(kept.sum()))) for factor in factors.sides]
        for head, others, single, rest in summed.heads(factors):
            parts[side][head], parts[1 - side][others] = best(single, rest, int(kept.sum()))
        held = list(samples_of(contraction, original, batches, lambda number: number % EVERY == EVERY - 1))
        selection = np.eye(len(kept))[:, kept]
        several = (selection[None].repeat(len(part), axis=0) for part in parts)
        judged = held or list(samples_of(contraction, original, batches))
        selected = relative_error(factors, judged, next(several), next(several))
        projected = relative_error(factors, judged, parts[0], parts[1])
        if not np.isfinite([selected, projected]).all():
            return None
        return Outcome(selected, projected), (parts[0], parts[1])

    def _apply(
        self, view: Linear, channels: NDArray[np.int64], dims: NDArray[np.bool_], parts: Matrix
    ) -> None:
        """Fold the projections of the heads that are left into an operator of the cut graph."""
        kept = self._kept(view)
        transform = self.transforms.setdefault(view.output, np.eye(len(kept))[:, kept])
        where = np.cumsum(kept) - 1
        for mine, part in zip(channels, parts, strict=True):
            if kept[mine].any():
                transform[np.ix_(mine, where[mine[dims]])] = part
        originals: Mapping[str, gs.Node] = {
            node.outputs[0].name: node for node in self.analysis.graph.nodes if node.outputs
        }
        rows = kept_weight(self.analysis, view, self.keep)[0].any(axis=1)
        whole = get_weight(view, dict(originals))[0][np.append(rows, True)]
        set_weight(view, self.nodes, (whole @ transform)[None])


def relative_error(
    factors: Factors, samples: Iterable[tuple[Matrix, Matrix]], left: Matrix, right: Matrix
) -> float:
    """The squared error of a product whose factors are projected, over its squares.

    Args:
        factors: Which heads meet.
        samples: Both operands ``[matrices, rows, dims]`` of some samples.
        left: ``[heads, dims, rank]``.
        right: The same for the other operand.
    """
    lost = np.eye(left.shape[1]) - left[factors.pairs[:, 0]] @ right[factors.pairs[:, 1]].swapaxes(1, 2)
    error = energy = 0.0
    for first, second in samples:
        one, two = moments(first), moments(second)
        energy += float(np.einsum("aij,aji->", one, two))
        error += float(np.einsum("aij,aij->", lost, one @ lost @ two))
    return error / max(energy, TINY)


def _name(view: Linear) -> str:
    return str(view.op.node.outputs[0].name)
