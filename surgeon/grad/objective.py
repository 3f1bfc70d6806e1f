"""A loss and its gradients, compiled by onnxruntime for the shapes that arrive."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import onnx_graphsurgeon as gs
import onnxruntime as ort

from surgeon.errors import DataError
from surgeon.grad.differentiate import Gradient, gradient
from surgeon.grad.memory import ROOM, activation_bytes, samples_within
from surgeon.graph.copy import copy_of
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.grad.tape import Tape, Value

    Array = NDArray[Any]
    Arrays: TypeAlias = dict[str, Array]
    Feeds: TypeAlias = Mapping[str, Array]
    Pieces = Iterable[tuple[int, Feeds]]
    _Result: TypeAlias = tuple[int, tuple[str, ...], Sequence[Array]]

BATCH = "surgeon_batch"
COMPILED = 16  # at most so many shapes are held compiled
SIDE_BY_SIDE = 4  # pieces of a batch run at once at most
SMALLEST = 32  # samples that are worth a piece of their own


@dataclass
class _Compiled:
    """A gradient, and what runs it once it is asked for."""

    found: Gradient
    runner: ort.InferenceSession | None = None

    def on(self, threads: int) -> ort.InferenceSession:
        if self.runner is None:
            self.runner = session(to_model(self.found.graph), threads=threads, integers=False)
        return self.runner


class Objective:
    """A loss as a function of some constants of a graph.

    Args:
        graph: It is not changed. What is fed may be of any shape: it is compiled for each, but for the number of samples.
        loss: Writes the loss, a mean over samples.
        parameters: Names of the constants.
        rows: Whether the first axis of everything fed is that of the samples.
        threads: Threads for onnxruntime. Pieces of a batch run side by side on them, which small operators make more of
            than of threads inside them.

    Attributes:
        stopped: Parameters without a gradient, and why; known once gradients were asked for.
        partial: Parameters part of whose gradient is left out, and why.
    """

    def __init__(
        self,
        graph: gs.Graph,
        loss: Callable[[Tape], Value],
        parameters: Sequence[str],
        *,
        rows: bool,
        threads: int = 1,
    ) -> None:
        self.graph, self.loss, self.parameters = graph, loss, list(parameters)
        self.rows, self.threads = rows, threads
        self.stopped: dict[str, str] = {}
        self.partial: dict[str, str] = {}
        self._compiled: dict[tuple[Any, ...], _Compiled] = {}
        self._aside = 1  # pieces that run at once

    def gradients(self, parameters: Arrays, pieces: Pieces) -> tuple[float, Arrays]:
        """The loss and its gradients, averaged over samples.

        Args:
            parameters: Values by name.
            pieces: What is fed, in pieces with their numbers of samples.
        """
        total, samples = 0.0, 0
        sums: Arrays = {}
        for count, names, (loss, *each) in self._results(parameters, pieces, self.parameters):
            total, samples = total + count * float(loss), samples + count
            for name, array in zip(names, each, strict=True):
                sums[name] = count * array if name not in sums else sums[name] + count * array
        return total / samples, {name: each / samples for name, each in sums.items()}

    def value(self, parameters: Arrays, pieces: Pieces) -> float:
        """The loss alone, averaged over samples."""
        total, samples = 0.0, 0
        for count, _, (loss,) in self._results(parameters, pieces, []):
            total, samples = total + count * float(loss), samples + count
        return total / samples

    def divide(self, feeds: Mapping[str, Array], batch: int, limit_bytes: int) -> int:
        """How many samples make a piece of a batch; from now on, as many pieces run side by side as fit into the memory.

        Args:
            feeds: Some that will be fed, by whose shapes it is judged.
            batch: Samples of a step.
            limit_bytes: For all activations and what is made of them on the way back.
        """
        piece = (
            min(self.most(feeds, limit_bytes), max(SMALLEST, -(-batch // SIDE_BY_SIDE))) if self.rows else 1
        )
        graph = self._of(feeds, self.parameters).found.graph
        fit = int(limit_bytes / ROOM) // max(activation_bytes(graph, BATCH, piece), 1)
        self._aside = max(min(self.threads, SIDE_BY_SIDE, -(-batch // piece), fit), 1)
        return piece

    def most(self, feeds: Mapping[str, Array], limit_bytes: int) -> int:
        """How many samples fit into so much memory at once, gradients included; at least one.

        Args:
            feeds: Some that will be fed, by whose shapes it is judged.
            limit_bytes: For all activations and what is made of them on the way back.
        """
        if not self.rows:
            return 1
        graph = self._of(feeds, self.parameters).found.graph
        return samples_within(graph, BATCH, limit_bytes)

    def _results(self, parameters: Arrays, pieces: Pieces, wrt: Sequence[str]) -> Iterator[_Result]:
        """What comes of each piece, in order."""
        waiting: deque[Future[_Result]] = deque()
        for count, feeds in pieces:
            compiled = self._of(feeds, wrt)
            runner, names = compiled.on(max(self.threads // self._aside, 1)), tuple(compiled.found.of)
            waiting.append(self._pool.submit(_result, count, names, runner, {**feeds, **parameters}))
            if len(waiting) == self._aside:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(SIDE_BY_SIDE)

    def _of(self, feeds: Mapping[str, Array], wrt: Sequence[str]) -> _Compiled:
        shapes = {name: array.shape[1:] if self.rows else array.shape for name, array in feeds.items()}
        key = (bool(wrt), *sorted(shapes.items()))
        if key not in self._compiled:
            graph = copy_of(self.graph)
            graph.__dict__.pop("surgeon_interface", None)
            for tensor in graph.inputs:
                if tensor.name not in feeds:
                    raise DataError("the model's input has no data", where=tensor.name)
                front = [BATCH] if self.rows else []
                tensor.shape = [*front, *shapes[tensor.name]]
                tensor.dtype = feeds[tensor.name].dtype
            found = gradient(graph, self.loss, wrt, inputs=self.parameters)
            self.stopped |= found.stopped
            self.partial |= found.partial
            if len(self._compiled) >= COMPILED:
                del self._compiled[next(iter(self._compiled))]
            self._compiled[key] = _Compiled(found)
        return self._compiled[key]


def _result(count: int, names: tuple[str, ...], runner: ort.InferenceSession, feeds: Feeds) -> _Result:
    """The number of samples of a piece, names of gradients, and the loss followed by them."""
    return count, names, run(runner, feeds)
