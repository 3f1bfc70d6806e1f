"""Two operators in a row, with only an activation between them, seen as one function of both weights.

Places of the second operator are looked at; through what it reads there, numbers instead of values, follows which
places of the first one they come from, whatever kinds of operators they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from surgeon.refit.through import Activation, activation_after
from surgeon.stats.blocks import moments, product

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from surgeon.stats.linear import Linear

    Array = NDArray[Any]
    Floats = NDArray[np.float32]
    Matrix = NDArray[np.float64]
    Read = Callable[[str], Array]

Value = TypeVar("Value", bound=np.generic)

MOST_GROUPS = (
    32  # of the second operator: with more, as in depthwise convolution, each has too few inputs to matter
)


@dataclass(frozen=True)
class Pair:
    """An operator whose result only one other operator reads, through an activation.

    Attributes:
        first: The operator that makes the channels.
        second: The one that sums over them.
        through: The activation between them.
        nodes: The first operator's nodes in the cut graph up to the activation, in order.
        hidden: The tensor that the second one reads.
    """

    first: Linear
    second: Linear
    through: Activation
    nodes: tuple[gs.Node, ...]
    hidden: str


def pair_before(
    second: Linear, makers: Mapping[str, Linear], nodes: Mapping[str, gs.Node], outputs: Collection[str]
) -> Pair | None:
    """The pair whose second operator this is, or None.

    Args:
        second: A product of the cut graph.
        makers: Products by the tensor that holds their result, of those whose weights may change.
        nodes: The nodes of the cut graph by first output.
        outputs: Names of the graph's outputs.
    """
    node = nodes[second.op.node.outputs[0].name]
    if len(second.reads) != 1 or not second.output or second.groups(node) > MOST_GROUPS:
        return None
    if second.op.attribute("alpha", 1.0) != 1.0 and second.op.node.op == "Gemm":
        return None  # its rows are scaled, and numbers of places must not be
    read = next(t for t in node.inputs if t.name == second.reads[0])
    if read.name in outputs or len(read.outputs) != 1 or len(read.inputs) != 1:
        return None
    for source in read.inputs[0].inputs:
        first = makers.get(source.name)
        if first is None or first.op is second.op or len(first.reads) != 1:
            continue
        through = activation_after(source, outputs)
        if through is not None:
            between = _between(nodes[first.op.node.outputs[0].name], read)
            return Pair(first, second, through, between, read.name)
    return None


def _between(start: gs.Node, end: gs.Tensor) -> tuple[gs.Node, ...]:
    """The nodes from one to the maker of a tensor, each followed by its readers."""
    found, left = [start], [start]
    while left:
        for tensor in left.pop(0).outputs:
            if tensor is not end:
                new = [user for user in tensor.outputs if all(user is not each for each in found)]
                found += new
                left += new
    return tuple(found)


class Layout(NamedTuple):
    """The hidden values of a batch numbered from 1, and the place and the channel of each number.

    Where the numbers of a place's channels lie equally far from that of its first one everywhere, ``offsets`` says how far.
    """

    numbers: NDArray[np.int64]
    place: NDArray[np.int64]
    channel: NDArray[np.int64]
    channels: int
    offsets: NDArray[np.int64] | None


def _layout(pair: Pair, first: gs.Node, read: Read, shape: tuple[int, ...]) -> Layout:
    size = int(np.prod(shape))
    numbers = np.arange(1, size + 1, dtype=np.int64).reshape(shape)
    groups = pair.first.groups(first)
    count = pair.first.count(lambda name: numbers if name == pair.first.output else read(name))
    laid = pair.first.results(numbers, np.arange(count), groups)  # [groups, places, outputs]
    channels = groups * laid.shape[2]
    place, channel = np.zeros(size + 1, np.int64), np.zeros(size + 1, np.int64)
    place[laid] = np.arange(count)[None, :, None]
    channel[laid] = np.arange(channels).reshape(groups, 1, -1)
    by_place = laid.transpose(1, 0, 2).reshape(count, channels)
    offsets = by_place - by_place[:, :1]
    same = bool(count) and bool((offsets == offsets[:1]).all())
    return Layout(numbers, place, channel, channels, offsets[0] if same else None)


class _Reads(NamedTuple):
    """What the second operator reads in a batch, see `Linked`.

    Attributes:
        numbers: ``[sets, places, taps]``, of the first hidden value of those that lie in a row, 0 where it pads.
        width: How many lie in a row.
        order: ``[groups, inputs]``, which input of the second operator each column is.
    """

    numbers: NDArray[np.int64]
    width: int
    order: NDArray[np.int64]

    @staticmethod
    def of(wanted: NDArray[np.int64], layout: Layout) -> _Reads:
        """From ``[groups, places, inputs]``, the number of each input: whole places where all of their channels are read."""
        groups, _, inputs = wanted.shape
        each = layout.channels // groups
        single = _Reads(wanted, 1, np.broadcast_to(np.arange(inputs), (groups, inputs)))
        if layout.offsets is None or layout.channels == 1 or each * groups != layout.channels:
            return single
        if inputs % each or not wanted.size:
            return single
        known = layout.channel[wanted.max(axis=1)]  # an input is of one channel, if at all
        order = np.argsort(known, axis=1, kind="stable").reshape(groups, each, -1).transpose(0, 2, 1)
        numbers = wanted[0][:, order[0, :, 0]]  # [places, taps], of the first channel of all
        for k in range(groups):
            for c in range(each):
                there = wanted[k][:, order[k, :, c]]
                if not np.array_equal(there, np.where(numbers, numbers + layout.offsets[k * each + c], 0)):
                    return single
        return _Reads(numbers[None], layout.channels, order.reshape(groups, inputs))


@dataclass
class Linked:
    """Places of both operators of a pair.

    What the second operator reads are values next to each other in ``[places, channels]`` of the first one: all of a place
    where it reads whole places, as convolutions do, else one. So they are fetched in rows.

    Attributes:
        x: ``[groups, places, inputs + 1]`` of the first operator, at the places that matter.
        links: ``[sets, places, taps]`` of the second operator: which row of hidden values it reads, or their count where
            it pads. One set is for all of its groups.
        channels: Channels between the operators.
        width: Hidden values in a row.
        order: ``[groups, inputs]``, which input of the second operator each column of what is fetched is.
    """

    x: Floats
    links: NDArray[np.int64]
    channels: int
    width: int
    order: NDArray[np.int64]
    _summing: Any = None

    @property
    def rows(self) -> int:
        """How many rows of hidden values there are."""
        return int(self.x.shape[1]) * self.channels // self.width

    @property
    def places(self) -> int:
        """How many places of the second operator."""
        return int(self.links.shape[1])

    @staticmethod
    def of_batch(
        pair: Pair,
        nodes: Mapping[str, gs.Node],
        read: Read,
        places: NDArray[np.int64],
        known: dict[tuple[int, ...], Layout],
    ) -> Linked:
        """What the pair reads at ``places`` of the second operator's output in one batch.

        Args:
            pair: The pair.
            nodes: The nodes of the graph by first output.
            read: Gives the tensors of the batch.
            places: The places.
            known: Layouts of hidden tensors by shape, filled for the next batch.
        """
        first, second = (nodes[each.op.node.outputs[0].name] for each in (pair.first, pair.second))
        shape = read(pair.hidden).shape
        if shape not in known:
            known[shape] = _layout(pair, first, read, shape)
        layout = known[shape]
        reads = _Reads.of(pair.second.rows(second, lambda _: layout.numbers, places), layout)
        there = reads.numbers > 0
        from_places = layout.place[reads.numbers]
        needed = np.zeros(len(layout.place), bool)
        needed[from_places[there]] = True
        used = np.flatnonzero(needed)
        rank = np.cumsum(needed) - 1
        per_place = layout.channels // reads.width
        row = rank[from_places] * per_place
        if per_place > 1:
            row += layout.channel[reads.numbers]
        links = np.where(there, row, len(used) * per_place)
        rows = pair.first.rows(first, read, used).astype(np.float32)
        ones = np.full((*rows.shape[:2], 1), pair.first.bias is not None, np.float32)
        x = np.concatenate([rows, ones], axis=2)
        return Linked(x, links, layout.channels, reads.width, reads.order)

    def singly(self) -> Linked:
        """The same with rows of one value."""
        if self.width == 1:
            return self
        groups, inputs = self.order.shape
        each = self.channels // groups
        channel = np.arange(self.channels).reshape(groups, 1, 1, each)
        padded = self.links[:, :, :, None] == self.rows
        spread = np.where(padded, self.rows * self.width, self.links[:, :, :, None] * self.width + channel)
        links = np.empty((groups, self.places, inputs), np.int64)
        np.put_along_axis(links, self.order[:, None], spread.reshape(groups, self.places, inputs), axis=2)
        order = np.broadcast_to(np.arange(inputs), self.order.shape)
        return Linked(self.x, links, self.channels, 1, order)

    @staticmethod
    def joined(parts: Sequence[Linked]) -> Linked:
        """Several batches as one."""
        if any(part.width != parts[0].width or (part.order != parts[0].order).any() for part in parts):
            parts = [part.singly() for part in parts]
        total = sum(part.rows for part in parts)
        links, start = [], 0
        for part in parts:
            links.append(np.where(part.links == part.rows, total, part.links + start))
            start += part.rows
        x = np.concatenate([part.x for part in parts], axis=1)
        return Linked(x, np.concatenate(links, axis=1), parts[0].channels, parts[0].width, parts[0].order)

    def arranged(self, second: NDArray[Value]) -> NDArray[Value]:
        """What is of the second operator's weights ``[groups, inputs + 1, outputs]``, their inputs in the order of `gathered`."""
        return np.concatenate(
            [np.take_along_axis(second, self.order[:, :, None], axis=1), second[:, -1:]], axis=1
        )

    def restored(self, arranged: Matrix) -> Matrix:
        """The inverse of `arranged`."""
        second = arranged.copy()
        np.put_along_axis(second, self.order[:, :, None], arranged[:, :-1], axis=1)
        return second

    def hidden(self, weights: Matrix) -> Floats:
        """The first operator's results ``[places, channels]`` with these weights ``[groups, inputs + 1, outputs]``."""
        found = product(self.x, weights.astype(np.float32))
        return np.ascontiguousarray(found.transpose(1, 0, 2)).reshape(found.shape[1], self.channels)

    def gathered(self, hidden: Floats) -> Floats:
        """What the second operator multiplies ``[groups, places, inputs]``, given values ``[places, channels]``; a 0 where it pads."""
        rows = np.concatenate([hidden.reshape(-1, self.width), np.zeros((1, self.width), np.float32)])
        found = np.take(rows, self.links, axis=0)  # [sets, places, taps, width]
        groups, inputs = self.order.shape
        if len(found) < groups:
            split = found.reshape(self.places, -1, groups, self.width // groups)
            found = split.transpose(2, 0, 1, 3)
        return found.reshape(groups, self.places, inputs)

    def scattered(self, gradient: Floats) -> Floats:
        """The transpose of `gathered`."""
        groups = len(gradient)
        if len(self.links) < groups:
            split = gradient.reshape(groups, self.places, -1, self.width // groups)
            gradient = split.transpose(1, 2, 0, 3)
        summed = self._sums() @ gradient.reshape(-1, self.width)
        return np.asarray(summed[:-1], np.float32).reshape(-1, self.channels)

    def _sums(self) -> Any:
        """The sparse matrix that adds up, for each row of hidden values and one more, all that was read of it."""
        if self._summing is None:
            from scipy.sparse import csr_matrix

            row, count = self.links.ravel(), self.links.size
            ends = np.append(0, np.cumsum(np.bincount(row, minlength=self.rows + 1)))
            which = np.argsort(row, kind="stable")
            self._summing = csr_matrix((np.ones(count, np.float32), which, ends), (self.rows + 1, count))
        return self._summing

    def first_gradient(self, gradient: Floats, groups: int) -> Matrix:
        """The gradient of the first weights ``[groups, inputs + 1, outputs]``, given that of `hidden`."""
        split = gradient.reshape(len(gradient), groups, self.channels // groups).transpose(1, 0, 2)
        return moments(self.x, split)
