"""What a smaller graph learns from the original: its outputs, and what it has in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from surgeon.errors import UnsupportedModelError, UsageError
from surgeon.grad.losses import divergence, kind_of, relative_error
from surgeon.grad.rows import with_open_rows
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
        hints: Names of tensors that are compared beside the outputs, where both have them.
        threads: Threads for onnxruntime.

    Raises:
        UnsupportedModelError: No output is of floats.
        UsageError: The original lacks an output.
    """

    def __init__(
        self, reference: Reference, graph: gs.Graph, hints: Sequence[str] = (), threads: int = 1
    ) -> None:
        dtypes = infer(graph).dtypes
        self.reference, self.graph, self.threads = reference, graph, threads
        self.outputs = [tensor.name for tensor in graph.outputs if dtypes.get(tensor.name) in FLOATS]
        if not self.outputs:
            raise UnsupportedModelError("no output is of floats, so there is nothing to compare")
        known = {tensor.name for tensor in reference.graph.outputs}
        for name in self.outputs:
            if name not in known:
                raise UsageError("the original has no such output", where=name, hint="is it another model?")
        theirs = infer(reference.graph).dtypes if hints else {}
        made = {tensor.name for node in reference.graph.nodes for tensor in node.outputs}
        self.hints = [
            name
            for name in dict.fromkeys(hints)
            if name not in self.outputs
            and name in made
            and dtypes.get(name) in FLOATS
            and theirs.get(name) in FLOATS
        ]
        model = with_outputs(to_model(with_open_rows(reference.graph)), self.hints)
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
        """Learn the variances of what is compared from some batches; hints of another shape than here are left out."""
        if self.hints:
            self._leave_out(dict(feeds[0]))
        sums = {name: np.zeros(3) for name in self.taught}
        for batch in feeds:
            taught = self.teach(dict(batch))
            for name in self.taught:
                values = np.asarray(taught[name], np.float64)
                values = values[np.isfinite(values)]
                sums[name] += (values.size, values.sum(), np.square(values).sum())
        for name, (count, total, square) in sums.items():
            self.variances[name] = float(square / max(count, 1) - (total / max(count, 1)) ** 2)

    def _leave_out(self, feeds: Feeds) -> None:
        model = with_outputs(to_model(with_open_rows(self.graph)), self.hints)
        ours = run(session(model, threads=self.threads), feeds)
        shapes = dict(zip(self.hints, (array.shape for array in ours[-len(self.hints) :]), strict=True))
        taught = self.teach(feeds)
        self.hints = [name for name in self.hints if taught[TARGET + name].shape == shapes[name]]

    def loss(self, tape: Tape, *, temperature: float, weight: float) -> Value:
        """The divergence of outputs that are probabilities, the relative error of others and, weighted, of hints."""
        terms = [self._output(tape, name, temperature) * (1 / len(self.outputs)) for name in self.outputs]
        terms += [self._error(tape, name) * (weight / len(self.hints)) for name in self.hints]
        return tape.total(terms)

    def _output(self, tape: Tape, name: str, temperature: float) -> Value:
        tensor = next(each for each in tape.graph.outputs if each.name == name)
        kind, axis = kind_of(tensor, tape.shapes, tape.opset)
        if kind == "values":
            return self._error(tape, name)
        return divergence(tape, tape.find(name), tape.find(TARGET + name), kind, axis, temperature)

    def _error(self, tape: Tape, name: str) -> Value:
        return relative_error(tape.find(name), tape.find(TARGET + name), self.variances[TARGET + name])
