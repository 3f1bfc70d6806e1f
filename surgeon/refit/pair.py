"""Two operators in a row, with only an activation between them, seen as one function of both weights.

Places of the second operator are looked at; through what it reads there, numbers instead of values, follows which
places of the first one they come from, whatever kinds of operators they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from surgeon.refit.through import Activation, activation_after
from surgeon.stats.blocks import moments, product, rowwise, scattered

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from surgeon.stats.linear import Linear

    Array = NDArray[Any]
    Floats = NDArray[np.float32]
    Read = Callable[[str], Array]

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
    """The hidden values of a batch numbered from 1, and the place and the channel of each number."""

    numbers: NDArray[np.int64]
    place: NDArray[np.int64]
    channel: NDArray[np.int64]
    channels: int


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
    return Layout(numbers, place, channel, channels)


@dataclass
class Linked:
    """Places of both operators of a pair.

    Attributes:
        x: ``[groups, places, inputs + 1]`` of the first operator, at the places that matter.
        links: ``[groups, places, inputs]`` of the second operator: for each input the number of the hidden value, as
            they lie in ``[places, channels]``, or their count where the operator pads.
        channels: Channels between the operators.
    """

    x: Floats
    links: NDArray[np.int64]
    channels: int

    @property
    def hidden_values(self) -> int:
        """How many hidden values there are."""
        return int(self.x.shape[1]) * self.channels

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
        numbers, place, channel, channels = known[shape]
        wanted = pair.second.rows(second, lambda _: numbers, places)  # 0: padding
        there = wanted > 0
        from_places = place[wanted]
        needed = np.zeros(len(place), bool)
        needed[from_places[there]] = True
        used = np.flatnonzero(needed)
        rank = np.cumsum(needed) - 1
        links = np.where(there, rank[from_places] * channels + channel[wanted], len(used) * channels)
        rows = pair.first.rows(first, read, used).astype(np.float32)
        ones = np.full((*rows.shape[:2], 1), pair.first.bias is not None, np.float32)
        return Linked(np.concatenate([rows, ones], axis=2), links, channels)

    @staticmethod
    def joined(parts: Sequence[Linked]) -> Linked:
        """Several batches as one."""
        total = sum(part.hidden_values for part in parts)
        links = np.concatenate([part.links for part in parts], axis=1)
        place = start = 0
        for part in parts:
            here = links[:, place : place + part.links.shape[1]]
            padded = here == part.hidden_values
            here += start
            here[padded] = total
            place, start = place + part.links.shape[1], start + part.hidden_values
        return Linked(np.concatenate([part.x for part in parts], axis=1), links, parts[0].channels)

    def hidden(self, weights: NDArray[np.float64]) -> Floats:
        """The first operator's results ``[places, channels]`` with these weights ``[groups, inputs + 1, outputs]``."""
        found = product(self.x, weights.astype(np.float32))
        return np.ascontiguousarray(found.transpose(1, 0, 2)).reshape(found.shape[1], self.channels)

    def gathered(self, hidden: Floats) -> Floats:
        """What the second operator multiplies, given values ``[places, channels]``; a 0 where it pads."""
        values = np.append(hidden.reshape(-1), np.float32(0))
        return rowwise(values.take, self.links)

    def scattered(self, gradient: Floats) -> Floats:
        """The transpose of `gathered`."""
        size = self.hidden_values
        summed = scattered(gradient, self.links, size + 1)[:size]
        return summed.astype(np.float32).reshape(-1, self.channels)

    def first_gradient(self, gradient: Floats, groups: int) -> NDArray[np.float64]:
        """The gradient of the first weights ``[groups, inputs + 1, outputs]``, given that of `hidden`."""
        split = gradient.reshape(len(gradient), groups, self.channels // groups).transpose(1, 0, 2)
        return moments(self.x, split)
