"""A loss and its gradients, compiled by onnxruntime for the shapes that arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import onnx_graphsurgeon as gs

from surgeon.grad.differentiate import Gradient, gradient
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


class Objective:
    """A loss as a function of some constants of a graph.

    Args:
        graph: It is not changed. What is fed may be of any shape: it is compiled for each, but for the number of samples.
        loss: Writes the loss, a mean over samples.
        parameters: Names of the constants.
        rows: Whether the first axis of everything fed is that of the samples.
        threads: Threads for onnxruntime.
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

    def _of(self, feeds: Mapping[str, Array], wrt: Sequence[str]) -> tuple[Gradient, ort.InferenceSession]:
        shapes = {name: array.shape[1:] if self.rows else array.shape for name, array in feeds.items()}
        key = (bool(wrt), *sorted(shapes.items()))
        if key not in self._compiled:
            graph = copy_of(self.graph)
            graph.__dict__.pop("surgeon_interface", None)
            for tensor in graph.inputs:
                front = [BATCH] if self.rows else []
                tensor.shape = [*front, *shapes[tensor.name]]
                tensor.dtype = feeds[tensor.name].dtype
            found = gradient(graph, self.loss, wrt, inputs=self.parameters)
            self.stopped |= found.stopped
            self._compiled[key] = found, session(to_model(found.graph), threads=self.threads)
        return self._compiled[key]
