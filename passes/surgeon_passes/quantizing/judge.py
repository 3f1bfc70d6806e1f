"""Judging ranges by what they do to the operators behind: all tensors of a model at once, in one graph.

The graph is the model, and beside it, for every tensor that is judged, a copy of what reads it that gets the tensor
rounded. Scales and zero points are inputs of the graph, so it is compiled once. Its outputs are sums of squares, so that
it needs little more memory than the model itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
from numpy.typing import NDArray
from onnx import TensorProto

from surgeon.graph.sessions import run, session
from surgeon.stats.ranges import Range
from surgeon_passes.quantizing.activations import PASSING, Activations
from surgeon_passes.quantizing.taps import prune

Array = NDArray[Any]

#: Operators that differ from one run to the next.
_RANDOM = frozenset({"Bernoulli", "Dropout", "Multinomial", "RandomNormalLike", "RandomUniformLike"})


@dataclass(frozen=True)
class _Comparison:
    """Two numbers the graph returns for a tensor: the power of a result, and of the error in it."""

    tensor: str
    signal: str
    noise: str


class Judge:
    """A model and the readers of its tensors.

    Args:
        model: In opset 13 or newer.
        activations: Its tensors.
        tensors: Those to judge.
        symmetric: int8 instead of uint8.
        threads: Threads for onnxruntime.

    Raises:
        UnsupportedModelError: onnxruntime does not load the graph.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        activations: Activations,
        tensors: Sequence[str],
        *,
        symmetric: bool,
        threads: int,
    ) -> None:
        self.activations, self.symmetric = activations, symmetric
        self.tensors = list(tensors)
        self._nodes: list[onnx.NodeProto] = []
        self._comparisons: list[_Comparison] = []
        self._sums: dict[str, str] = {}
        kind = TensorProto.INT8 if symmetric else TensorProto.UINT8
        judged = onnx.ModelProto()
        judged.CopyFrom(model)
        for index, name in enumerate(self.tensors):
            self._round(index, name)
            judged.graph.input.extend(
                [
                    oh.make_tensor_value_info(f"judge/{index}/scale", activations.types[name], []),
                    oh.make_tensor_value_info(f"judge/{index}/zero", kind, []),
                ]
            )
        del judged.graph.output[:]
        self._outputs = list(dict.fromkeys(n for c in self._comparisons for n in (c.signal, c.noise)))
        judged.graph.output.extend(oh.make_tensor_value_info(n, TensorProto.FLOAT, []) for n in self._outputs)
        judged.graph.node.extend(self._nodes)
        prune(judged.graph)
        self._runner = session(judged, threads=threads)

    def powers(self, feeds: Mapping[str, Array], ranges: Mapping[str, Range]) -> Array:
        """Runs one batch with a range for each tensor.

        Returns:
            For each comparison the power of the error and of the result, ``[comparisons, 2]``.
        """
        settings: dict[str, Array] = {}
        for index, name in enumerate(self.tensors):
            scale, zero = ranges[name].grid(symmetric=self.symmetric)
            dtype = oh.tensor_dtype_to_np_dtype(self.activations.types[name])
            settings[f"judge/{index}/scale"] = np.array(scale, dtype)
            settings[f"judge/{index}/zero"] = np.array(zero, np.int8 if self.symmetric else np.uint8)
        found = dict(zip(self._outputs, run(self._runner, {**feeds, **settings}), strict=True))
        return np.array([[found[c.noise], found[c.signal]] for c in self._comparisons], np.float64)

    def scores(self, powers: Array) -> dict[str, Array]:
        """Returns the error relative to the result, added up over the readers of each tensor.

        Args:
            powers: Sums of :meth:`powers` over batches for each candidate, ``[candidates, comparisons, 2]``.

        Returns:
            ``[candidates]`` per tensor. Tensors that nothing can be said about are missing: nobody reads them, or
            what reads them is zero or infinite throughout.
        """
        found: dict[str, Array] = {}
        for k, comparison in enumerate(self._comparisons):
            noise, signal = powers[:, k, 0], powers[:, k, 1]
            if np.isfinite(noise).all() and np.isfinite(signal).all() and (signal > 0).all():
                found[comparison.tensor] = found.get(comparison.tensor, 0.0) + noise / signal
        return found

    def _round(self, index: int, name: str) -> None:
        parameters = [f"judge/{index}/scale", f"judge/{index}/zero"]
        whole, rounded = f"judge/{index}/whole", f"judge/{index}/rounded"
        self._nodes.append(oh.make_node("QuantizeLinear", [name, *parameters], [whole]))
        self._nodes.append(oh.make_node("DequantizeLinear", [whole, *parameters], [rounded]))
        if name in self.activations.outputs:
            self._compare(name, name, rounded)
        self._follow(index, name, name, rounded)

    def _follow(self, index: int, judged: str, name: str, rounded: str) -> None:
        """Copies what reads ``name`` for ``rounded`` in its place."""
        for reader in self.activations.readers.get(name, ()):
            if not _copyable(reader):
                self._compare(judged, name, rounded)
                continue
            copy = onnx.NodeProto()
            copy.CopyFrom(reader)
            copy.name = ""
            copy.input[:] = [rounded if each == name else each for each in reader.input]
            start = len(self._nodes)
            copy.output[:] = [f"judge/{index}/{start}/{k}" if n else "" for k, n in enumerate(reader.output)]
            self._nodes.append(copy)
            pairs = [
                (n, c) for n, c in zip(reader.output, copy.output, strict=True) if n in self.activations.types
            ]
            # judged is what is behind
            passing = reader.op_type in PASSING and reader.input[0] == name and len(pairs) == 1
            if passing and reader.output[0] not in self.activations.outputs:
                self._follow(index, judged, *pairs[0])
                continue
            for original, copied in pairs:
                self._compare(judged, original, copied)
            if not pairs:  # it decides, as ArgMax does: what it reads has to stay apart
                self._compare(judged, name, rounded)

    def _compare(self, judged: str, original: str, copied: str) -> None:
        error = f"{copied}/{len(self._nodes)}/error"
        self._nodes.append(oh.make_node("Sub", [copied, original], [error]))
        self._comparisons.append(_Comparison(judged, self._power(original), self._power(error)))

    def _power(self, name: str) -> str:
        if name not in self._sums:
            start = len(self._nodes)
            single, self._sums[name] = f"judge/{start}/single", f"judge/{start}/power"
            self._nodes.append(oh.make_node("Cast", [name], [single], to=TensorProto.FLOAT))
            self._nodes.append(oh.make_node("ReduceSumSquare", [single], [self._sums[name]], keepdims=0))
        return self._sums[name]


def _copyable(node: onnx.NodeProto) -> bool:
    return node.op_type not in _RANDOM and not any(_bodies(node))


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        yield from attribute.graphs
        if attribute.HasField("g"):
            yield attribute.g
