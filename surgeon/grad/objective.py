"""A loss and its gradients, compiled by onnxruntime for the shapes that arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import onnx_graphsurgeon as gs

from surgeon.errors import DataError
from surgeon.grad.differentiate import Gradient, gradient
from surgeon.grad.memory import samples_within
from surgeon.graph.copy import copy_of
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import onnxruntime as ort
    from numpy.typing import NDArray

    from surgeon.grad.tape import Tape, Value

    Array = NDArray[Any]
    Arrays: TypeAlias = dict[str, Array]
    Pieces = Iterable[tuple[int, Mapping[str, Array]]]

BATCH = "surgeon_batch"
COMPILED = 16  # at most so many shapes are held compiled


class Objective:
    """A loss as a function of some constants of a graph.

    Args:
        graph: It is not changed. What is fed may be of any shape: it is compiled for each, but for the number of samples.
        loss: Writes the loss, a mean over samples.
        parameters: Names of the constants.
        rows: Whether the first axis of everything fed is that of the samples.
        threads: Threads for onnxruntime.

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
        self._compiled: dict[tuple[Any, ...], tuple[Gradient, ort.InferenceSession]] = {}

    def gradients(self, parameters: Arrays, pieces: Pieces) -> tuple[float, Arrays]:
        """The loss and its gradients, averaged over samples.

        Args:
            parameters: Values by name.
            pieces: What is fed, in pieces with their numbers of samples.
        """
        total, samples = 0.0, 0
        sums: Arrays = {}
        for count, feeds in pieces:
            found, runner = self._of(feeds, self.parameters)
            loss, *each = run(runner, {**feeds, **parameters})
            total, samples = total + count * float(loss), samples + count
            for name, array in zip(found.of, each, strict=True):
                sums[name] = count * array if name not in sums else sums[name] + count * array
        return total / samples, {name: each / samples for name, each in sums.items()}

    def value(self, parameters: Arrays, pieces: Pieces) -> float:
        """The loss alone, averaged over samples."""
        total, samples = 0.0, 0
        for count, feeds in pieces:
            _, runner = self._of(feeds, [])
            total += count * float(run(runner, {**feeds, **parameters})[0])
            samples += count
        return total / samples

    def most(self, feeds: Mapping[str, Array], limit_bytes: int) -> int:
        """How many samples fit into so much memory at once, gradients included; at least one.

        Args:
            feeds: Some that will be fed, by whose shapes it is judged.
            limit_bytes: For all activations and what is made of them on the way back.
        """
        if not self.rows:
            return 1
        found, _ = self._of(feeds, self.parameters)
        return samples_within(found.graph, BATCH, limit_bytes)

    def _of(self, feeds: Mapping[str, Array], wrt: Sequence[str]) -> tuple[Gradient, ort.InferenceSession]:
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
            self._compiled[key] = found, session(to_model(found.graph), threads=self.threads, integers=False)
        return self._compiled[key]
