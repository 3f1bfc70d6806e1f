"""Where zeros may be: anywhere, in blocks, or so many of every few inputs.

Weights are seen as ``[groups, channels, taps, outputs]``: the input channels that one output of a group reads, at each
tap of a kernel (one for matrix products).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from surgeon.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Scores = NDArray[Any]  # in single or double precision
    Flags = NDArray[np.bool_]

Pooling = Literal["average", "max"]
SLACK = 1e-9  # a product such as 0.9 * 10 is not exactly 9


class Pattern(Protocol):
    """A rule for which weights stay."""

    @property
    def sparsity(self) -> float | None:
        """The fraction of zeros that the pattern itself asks for, or None where any fraction will do."""

    @property
    def rows(self) -> int:
        """How many input channels are chosen together."""

    def kept(self, scores: Scores, sparsity: float) -> Flags:
        """Which weights stay: those with the largest scores.

        Args:
            scores: ``[groups, channels, taps, outputs]``, not negative.
            sparsity: The fraction of zeros; never fewer, unless the pattern has a fraction of its own.
        """

    def fits(self, kept: Flags, sparsity: float) -> bool:
        """Whether the zeros that the pattern asks for are there; there may be others besides.

        Args:
            kept: What differs from zero, of the shape of the scores.
            sparsity: The fraction of zeros that was asked for.
        """


@dataclass(frozen=True)
class Unstructured:
    """Zeros anywhere."""

    sparsity = None
    rows = 1

    def kept(self, scores: Scores, sparsity: float) -> Flags:
        """The largest of all; of equal ones the last ones."""
        count = _wanted(scores.size, sparsity)
        if count <= 0:
            return np.ones(scores.shape, bool)
        flat = scores.ravel()
        limit = np.partition(flat, count - 1)[count - 1]  # sorting millions of numbers takes far longer
        gone = flat < limit
        gone[np.flatnonzero(flat == limit)[: count - np.count_nonzero(gone)]] = True
        kept: Flags = ~gone.reshape(scores.shape)
        return kept

    def fits(self, kept: Flags, sparsity: float) -> bool:
        """There are enough zeros."""
        return int((~kept).sum()) >= _wanted(kept.size, sparsity)


@dataclass(frozen=True)
class Few:
    """At most ``n`` of every ``m`` input channels next to one another, for each tap and output: N:M sparsity.

    Channels that are left over at the end are fewer than m, and keep at most n as well.
    """

    n: int
    m: int

    @property
    def sparsity(self) -> float:
        """What is left out of each m."""
        return 1 - self.n / self.m

    @property
    def rows(self) -> int:
        """The channels that are counted together."""
        return self.m

    def kept(self, scores: Scores, sparsity: float) -> Flags:
        """The n largest of each m."""
        del sparsity
        parts = self._parts(scores, -1.0)
        order = np.argsort(-parts, axis=2, kind="stable")
        ranks = np.argsort(order, axis=2, kind="stable")
        return self._whole(ranks < self.n, scores.shape[1])

    def fits(self, kept: Flags, sparsity: float) -> bool:
        """No m channels have more than n weights."""
        del sparsity
        return bool((self._parts(kept.astype(np.float64), 0.0).sum(axis=2) <= self.n).all())

    def _parts(self, values: Scores, fill: float) -> Scores:
        """``[groups, channels / m, m, taps, outputs]``."""
        groups, channels, *rest = values.shape
        m = min(self.m, channels)  # fewer channels than m are one part
        missing = -channels % m
        padded = np.pad(values, ((0, 0), (0, missing), (0, 0), (0, 0)), constant_values=fill)
        return padded.reshape(groups, -1, m, *rest)

    def _whole(self, parts: Flags, channels: int) -> Flags:
        groups, _, _, *rest = parts.shape
        return parts.reshape(groups, -1, *rest)[:, :channels]


@dataclass(frozen=True)
class Blocks:
    """Blocks of ``outputs`` x ``inputs`` weights at one tap are zero together; those at the end may be smaller.

    Attributes:
        outputs: Outputs of a block.
        inputs: Input channels of a block.
        pooling: What a block's score is of the scores in it.
    """

    outputs: int
    inputs: int
    pooling: Pooling = "average"
    sparsity = None

    @property
    def rows(self) -> int:
        """The input channels of a block."""
        return self.inputs

    def kept(self, scores: Scores, sparsity: float) -> Flags:
        """Blocks go, the smallest score first, until enough weights have gone; the last one stays."""
        pooled, sizes = self._pooled(scores)
        order = np.argsort(pooled, axis=None, kind="stable")
        gone = np.cumsum(sizes.ravel()[order])
        wanted = sparsity * scores.size - SLACK
        count = int(np.searchsorted(gone, wanted)) + 1 if wanted > 0 else 0
        count = min(count, pooled.size - 1) if sparsity < 1 else count
        result = np.ones(pooled.size, bool)
        result[order[:count]] = False
        return self._spread(result.reshape(pooled.shape), scores.shape)

    def fits(self, kept: Flags, sparsity: float) -> bool:
        """There are enough zeros in blocks of nothing else, or one block is left."""
        there, sizes = self._pooled(kept.astype(np.float64), pooling="max")
        empty = there == 0
        return int(sizes[empty].sum()) >= _wanted(kept.size, sparsity) or int(empty.sum()) >= empty.size - 1

    def _pooled(self, values: Scores, pooling: Pooling | None = None) -> tuple[Scores, Scores]:
        """The pooled values of blocks ``[groups, in blocks, taps, out blocks]``, and how many weights each has."""
        rows = np.arange(0, values.shape[1], self.inputs)  # one that is larger than the weight is all of it
        columns = np.arange(0, values.shape[3], self.outputs)
        sizes = np.add.reduceat(np.add.reduceat(np.ones_like(values), rows, axis=1), columns, axis=3)
        join = np.maximum if (pooling or self.pooling) == "max" else np.add
        joined = join.reduceat(join.reduceat(values, rows, axis=1), columns, axis=3)
        return (joined if join is np.maximum else joined / sizes), sizes

    def _spread(self, blocks: Flags, shape: tuple[int, ...]) -> Flags:
        inputs, outputs = min(self.inputs, shape[1]), min(self.outputs, shape[3])
        wide = np.repeat(np.repeat(blocks, inputs, axis=1), outputs, axis=3)
        return wide[:, : shape[1], :, : shape[3]]


def _wanted(size: int, sparsity: float) -> int:
    """How many zeros a fraction of them is."""
    return ceil(sparsity * size - SLACK)


def parse_pattern(text: str, pooling: Pooling = "average", where: str = "pattern") -> Pattern:
    """Reads ``unstructured``, ``2:4`` or ``block-4x1`` (outputs x inputs).

    Raises:
        UsageError: It is none of these.
    """
    if text == "unstructured":
        return Unstructured()
    if (found := re.fullmatch(r"(\d+):(\d+)", text)) and 0 < int(found[1]) < int(found[2]):
        return Few(int(found[1]), int(found[2]))
    if (found := re.fullmatch(r"block-(\d+)x(\d+)", text)) and int(found[1]) > 0 and int(found[2]) > 0:
        return Blocks(int(found[1]), int(found[2]), pooling)
    raise UsageError(
        f"must be unstructured, N:M with N smaller than M, or block-OUTPUTSxINPUTS, got {text!r}",
        where=where,
        hint="for example 2:4 or block-4x1",
    )
