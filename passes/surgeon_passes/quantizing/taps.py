"""Values of tensors in the middle of a model, one small batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from surgeon.graph import sessions
from surgeon.stats.data import DEFAULT_BATCH, Dataset, Feeds, runnable
from surgeon_passes.quantizing.choose import read_by

Array = NDArray[Any]

LIMIT = 2**27  # bytes of activations held at a time


class Taps:
    """Values of tensors in the middle of a model, over and over again, one small batch at a time.

    Batches are so small, and the tensors taken in so many groups, that ``limit`` bytes suffice, or one tensor for one
    sample. Each group is a run of what of the model it needs.

    Attributes:
        data: The samples, in batches that are small enough.
        bytes: What all tensors together take for one sample.
    """

    def __init__(
        self, model: onnx.ModelProto, tensors: Sequence[str], data: Dataset, *, threads: int, limit: int
    ) -> None:
        fed = {entry.name for entry in model.graph.input}
        self._fed = [name for name in tensors if name in fed]
        inner = [name for name in tensors if name not in fed]
        runner = _tapped(model, inner, threads)
        self.data = runnable(data.rebatched(1), runner)
        feeds = next(iter(self.data))[0]
        results = sessions.run(runner, feeds) if inner else []
        sizes = {name: array.nbytes for name, array in zip(inner, results, strict=True)}
        read = sum(feeds[name].nbytes for name in self._fed)
        del results, feeds
        batch = max(1, min(DEFAULT_BATCH, limit // max(sum(sizes.values()) // self.data.batch, 1)))
        self.bytes = (sum(sizes.values()) + read) // self.data.batch
        self.data = runnable(data.rebatched(batch), runner)
        self._groups = [
            (group, runner if group == inner else _tapped(model, group, threads))
            for group in _grouped(sizes, limit // self.data.batch)
        ]

    def __iter__(self) -> Iterator[tuple[int, Iterator[tuple[str, Array]]]]:
        """Yields, for each batch, the number of samples and every tensor; an array is gone when the next one comes."""
        for feeds, _ in self.data:
            yield _samples(self.data, feeds), self._values(feeds)

    def _values(self, feeds: Feeds) -> Iterator[tuple[str, Array]]:
        for name in self._fed:
            yield name, feeds[name]
        for group, runner in self._groups:
            arrays = sessions.run(runner, feeds)[::-1]
            for name in group:
                yield name, arrays.pop()


def _samples(data: Dataset, feeds: Feeds) -> int:
    """How many samples a batch has: one where a sample is a complete set of inputs."""
    return 1 if data.batch == 1 else len(next(iter(feeds.values())))


def _tapped(model: onnx.ModelProto, names: Sequence[str], threads: int) -> ort.InferenceSession:
    """Opens what of the model is needed for some of its tensors; all of it for none."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    if names:
        del part.graph.output[:]
        part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        prune(part.graph)
    return sessions.session(part, threads=threads)


def prune(graph: onnx.GraphProto) -> None:
    """Removes the nodes that no output needs; onnxruntime would run them."""
    wanted = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if not wanted.isdisjoint(node.output):
            kept.append(node)
            wanted.update(read_by(node))
    del graph.node[:]
    graph.node.extend(kept[::-1])


def _grouped(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    groups: list[list[str]] = []
    used = 0
    for name, size in sizes.items():
        if not groups or used + size > limit:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups
