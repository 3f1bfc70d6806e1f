"""What a smaller graph learns from the original: its outputs, and what it has in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from surgeon.grad.losses import Kind, divergence, kind_of, relative_error
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session, with_outputs
from surgeon.graph.shapes import infer
from surgeon.stats.weight import FLOATS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from surgeon.grad.tape import Tape, Value
    from surgeon.reference import Reference

    Array = NDArray[Any]
    Feeds: TypeAlias = dict[str, Array]

TARGET = "surgeon/target/"


class Teacher:
    """The original, asked for what it makes of samples.

    Args:
        reference: The original.
        graph: What learns.
        hints: Names of tensors of both that are compared beside the outputs.
        threads: Threads for onnxruntime.
    """

    def __init__(
        self, reference: Reference, graph: gs.Graph, hints: Sequence[str] = (), threads: int = 1
    ) -> None:
        dtypes = infer(graph).dtypes
        self.reference, self.graph = reference, graph
        self.outputs = [tensor.name for tensor in graph.outputs if dtypes.get(tensor.name) in FLOATS]
        self.hints = [name for name in hints if name not in self.outputs]
        model = with_outputs(to_model(reference.graph), self.hints)
        self.runner = session(model, threads=threads)
        self.names = [each.name for each in self.runner.get_outputs()]
        self.variances: dict[str, float] = {}

    @property
    def taught(self) -> list[str]:
        """Names of what is added to what is fed."""
        return [TARGET + name for name in (*self.outputs, *self.hints)]

    def teach(self, feeds: Feeds) -> Feeds:
        """What is fed, with what the original makes of it."""
        found = dict(zip(self.names, run(self.runner, feeds), strict=True))
        wanted = {
            TARGET + name: self.reference.left(name, found[name]) for name in (*self.outputs, *self.hints)
        }
        return {**feeds, **wanted}

    def look_at(self, feeds: Sequence[Mapping[str, Array]]) -> None:
        """Learn the variances of what is compared from some batches."""
        sums = {name: np.zeros(3) for name in self.taught}
        for batch in feeds:
            taught = self.teach(dict(batch))
            for name in self.taught:
                values = np.asarray(taught[name], np.float64)
                values = values[np.isfinite(values)]
                sums[name] += (values.size, values.sum(), np.square(values).sum())
        for name, (count, total, square) in sums.items():
            self.variances[name] = float(square / max(count, 1) - (total / max(count, 1)) ** 2)

    def loss(self, tape: Tape, *, temperature: float, weight: float) -> Value:
        """The divergence of outputs that are probabilities, the relative error of others and, weighted, of hints."""
        terms = [self._output(tape, name, temperature) * (1 / len(self.outputs)) for name in self.outputs]
        terms += [self._error(tape, name) * (weight / len(self.hints)) for name in self.hints]
        return tape.total(terms)

    def _output(self, tape: Tape, name: str, temperature: float) -> Value:
        tensor = next(each for each in tape.graph.outputs if each.name == name)
        kind: Kind = kind_of(tensor)
        if kind == "values":
            return self._error(tape, name)
        axis = len(tape.shapes.dims[name] or ()) - 1
        return divergence(tape, tape.find(name), tape.find(TARGET + name), kind, axis, temperature)

    def _error(self, tape: Tape, name: str) -> Value:
        return relative_error(tape.find(name), tape.find(TARGET + name), self.variances[TARGET + name])
