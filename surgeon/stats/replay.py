"""Running a graph piece by piece over a dataset: every node once, whatever is asked for in between.

Two graphs (the original and the one being rebuilt) can be advanced side by side, and constants of nodes that have not
run yet may still change.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from surgeon.graph.order import bodies, needs
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]


class Store:
    """Arrays per tensor and batch, in memory up to a limit and in temporary files beyond it."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit, self.used, self.spilled = limit_bytes, 0, 0
        self._arrays: dict[str, list[Array]] = {}
        self._folder: str | None = None  # goes with this

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def put(self, name: str, array: Array) -> None:
        """Append the next batch of a tensor."""
        if self.used + array.nbytes > self.limit and array.size and not array.dtype.hasobject:
            array = self._spill(array)
        else:
            self.used += array.nbytes
        self._arrays.setdefault(name, []).append(array)

    def get(self, name: str, batch: int) -> Array:
        """One batch of a tensor."""
        return self._arrays[name][batch]

    def drop(self, name: str) -> None:
        """Forget a tensor."""
        for array in self._arrays.pop(name, ()):
            if isinstance(array, np.memmap):
                Path(str(array.filename)).unlink(missing_ok=True)
            else:
                self.used -= array.nbytes

    def _spill(self, array: Array) -> Array:
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="surgeon-")
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = Path(self._folder) / f"{self.spilled}.bin"
        self.spilled += 1
        mapped = np.memmap(path, dtype=array.dtype, mode="w+", shape=array.shape)
        mapped[...] = array
        return mapped


class Replay:
    """A graph being run piece by piece.

    Args:
        graph: Topologically sorted; constants of nodes that have not run yet may be replaced in between.
        dtypes: The onnx data type of every tensor.
        feeds: The batches.
        threads: Threads for onnxruntime.
        limit_bytes: How much of the activations is held in memory; the rest goes to temporary files.
        within: The nodes to run, by first output; by default all. What others make has to come from ``source``.
        source: A run of another graph over the same feeds, which has what this one does not make itself.
        more: A run of the same graph over further feeds, whose batches follow. It goes only as far as they are asked for,
            each time in one piece from where it was, so that little of it is held.
    """

    def __init__(
        self,
        graph: gs.Graph,
        dtypes: Mapping[str, int],
        feeds: Sequence[Mapping[str, Array]],
        *,
        threads: int = 1,
        limit_bytes: int = 2**31,
        within: Collection[str] | None = None,
        source: Replay | None = None,
        more: Replay | None = None,
    ) -> None:
        self.graph, self.dtypes, self.threads, self.more = graph, dtypes, threads, more
        self.batches = len(feeds)
        self.store = Store(limit_bytes)
        self.source = source
        self._left = [
            node
            for node in graph.nodes
            if within is None or (node.outputs and node.outputs[0].name in within)
        ]
        self.made = {tensor.name for node in self._left for tensor in node.outputs if tensor.name}
        self._waiting: dict[str, int] = {}
        for node in self._left:
            for name in _reads(node):
                self._waiting[name] = self._waiting.get(name, 0) + 1
        if source is None:
            for tensor in graph.inputs:
                self.made.add(tensor.name)
                for batch in feeds:
                    self.store.put(tensor.name, batch[tensor.name])
        self._held: dict[str, int] = {}
        for name in self._waiting.keys() - self.made:
            self._owner(name).hold(name)

    def _owner(self, name: str) -> Replay:
        """The run that has a tensor."""
        return self if self.source is None or name in self.made else self.source

    @property
    def spilled(self) -> int:
        """How many arrays went to temporary files."""
        return self.store.spilled + (0 if self.more is None else self.more.store.spilled)

    def hold(self, name: str) -> None:
        """Keep a tensor until :meth:`release`, even when every node that reads it has run."""
        if self.more is not None:
            self.more.hold(name)
        if self._owner(name) is not self:
            self._owner(name).hold(name)
            return
        self._held[name] = self._held.get(name, 0) + 1

    def release(self, name: str) -> None:
        """Give up one hold."""
        if self.more is not None:
            self.more.release(name)
        if self._owner(name) is not self:
            self._owner(name).release(name)
            return
        self._held[name] -= 1
        self._drop_if_done(name)

    def get(self, name: str, batch: int) -> Array:
        """One batch of a tensor that has been computed, or of those that follow."""
        if batch >= self.batches and self.more is not None:
            if not self.more.has(name):
                self.more.advance([name])
            return self.more.get(name, batch - self.batches)
        return self._owner(name).store.get(name, batch)

    def has(self, name: str) -> bool:
        """Whether a tensor has been computed and is still there."""
        return name in self._owner(name).store

    def runs(self, names: Iterable[str]) -> set[str]:
        """The nodes (by first output) that would have to run to have ``names``."""
        return {node.outputs[0].name for node in self._needed(names)}

    def advance(self, names: Sequence[str]) -> None:
        """Run what is needed to have the tensors ``names``; they must be held by the caller to stay."""
        segment = self._needed(names)
        if self.source is not None:
            abroad = {name for node in segment for name in _reads(node)} | set(names)
            self.source.advance(sorted(abroad - self.made))
        if not segment:
            return
        inside = {id(node) for node in segment}
        self._left = [node for node in self._left if id(node) not in inside]
        made = {tensor.name for node in segment for tensor in node.outputs if tensor.name}
        read: dict[str, int] = {}
        for node in segment:
            for name in _reads(node):
                read[name] = read.get(name, 0) + 1
        for name, times in read.items():
            self._waiting[name] -= times
        wanted = [n for n in made if n in names or self._waiting.get(n, 0) > 0 or self._held.get(n, 0) > 0]
        sources = [name for name in read if name not in made]
        self._run(segment, sources, sorted(wanted))
        for name in sources:
            self._drop_if_done(name)

    def again(self, nodes: Sequence[gs.Node]) -> None:
        """Run nodes once more, for their weights have changed; what is stored of what they make is replaced.

        Args:
            nodes: What they read from others has been held, or is made of constants alone. Those that have not run are left out.
        """
        if self.more is not None:
            self.more.again(nodes)
        waiting = {id(node) for node in self._left}
        wanted = {id(node) for node in (*nodes, *self._made_of_constants(nodes))} - waiting
        segment = [node for node in self.graph.nodes if id(node) in wanted]
        made = {tensor.name for node in segment for tensor in node.outputs}
        stored = sorted(name for name in made if name in self.store)
        if not stored:
            return
        for name in stored:
            self.store.drop(name)
        self._run(segment, sorted({each for node in segment for each in _reads(node)} - made), stored)

    def _made_of_constants(self, nodes: Sequence[gs.Node]) -> list[gs.Node]:
        """What makes tensors that nodes read, such as a turned weight, of constants alone."""
        known: set[str] = set()
        makers = []
        for node in self.graph.nodes:
            if _reads(node) <= known:
                known.update(tensor.name for tensor in node.outputs)
                makers.append(node)
        read = {name for node in nodes for name in _reads(node)}
        found = []
        for node in reversed(makers):
            if any(tensor.name in read for tensor in node.outputs):
                read |= _reads(node)
                found.append(node)
        return found

    def change(self, name: str, function: Callable[[Array], Array]) -> None:
        """Replace what is stored of a tensor, for what made it would now make something else.

        Args:
            name: A tensor that is held, of this run, that nobody has read.
            function: Makes the new array of a batch of the old one.
        """
        arrays = [function(self.store.get(name, batch)) for batch in range(self.batches)]
        self.store.drop(name)
        for array in arrays:
            self.store.put(name, array)

    def _needed(self, names: Iterable[str]) -> list[gs.Node]:
        wanted = {name for name in names if name not in self.store and name in self.made}
        while True:
            segment = self._makers(wanted)
            inside = {id(node) for node in segment}
            # sequences cannot be stored: who reads one runs along with who makes it
            lost = {t.name for n in segment for t in n.outputs if t.name and t.name not in self.dtypes}
            users = [n for n in self._left if id(n) not in inside and any(t.name in lost for t in needs(n))]
            if not users:
                return segment
            wanted |= {tensor.name for node in users for tensor in node.outputs if tensor.name}

    def _makers(self, names: Iterable[str]) -> list[gs.Node]:
        wanted, segment = set(names), []
        for node in reversed(self._left):
            if any(tensor.name in wanted for tensor in node.outputs):
                segment.append(node)
                wanted |= {name for name in _reads(node) if name not in self.store}
        return segment[::-1]

    def _run(self, segment: list[gs.Node], sources: list[str], wanted: list[str]) -> None:
        piece = gs.Graph(
            nodes=segment,
            inputs=[self._source(name, ranked=any(map(bodies, segment))) for name in sources],
            outputs=[self._variable(name) for name in wanted],
            opset=self.graph.opset,
            import_domains=self.graph.import_domains,
        )
        runner = session(to_model(piece), threads=self.threads)
        for batch in range(self.batches):
            results = run(runner, {name: self.get(name, batch) for name in sources})
            for name, array in zip(wanted, results, strict=True):
                self.store.put(name, array)

    def _source(self, name: str, *, ranked: bool) -> gs.Variable:
        """An input of a piece; onnxruntime wants to know how many axes there are where a body reads on."""
        variable = self._variable(name)
        if ranked and self.batches:
            variable.shape = [f"{name}/{axis}" for axis in range(np.ndim(self.get(name, 0)))]
        return variable

    def _variable(self, name: str) -> gs.Variable:
        return gs.Variable(name, dtype=onnx.helper.tensor_dtype_to_np_dtype(self.dtypes[name]))

    def _drop_if_done(self, name: str) -> None:
        if self._waiting.get(name, 0) > 0:
            return
        if self._owner(name) is not self:
            self._owner(name).release(name)
        elif self._held.get(name, 0) <= 0:
            self.store.drop(name)


def _reads(node: gs.Node) -> set[str]:
    """The tensors a node needs that are no constants."""
    return {tensor.name for tensor in needs(node) if not isinstance(tensor, gs.Constant)}
