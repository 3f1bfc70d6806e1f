"""How likely inputs look to a network, judged by the mean and deviation of every channel inside it.

Batch normalization says what they were in training: its result has its shift as mean and its scale as deviation, also
where it was folded. Without any, a channel's offset is compared with its spread: inputs of another scale or mean than
those of the training leave biases that are no longer balanced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session, with_outputs
from surgeon.graph.weights import peek

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from surgeon.analysis import Analysis

    Array = NDArray[Any]
    Moments = tuple[Array, Array]

MARK = "surgeon_moments"
_WEIGHTED = frozenset({"Conv", "ConvTranspose"})
_FLOOR = 1e-3  # deviations of channels that are switched off


def note_moments(tensor: gs.Tensor, mean: Array, deviation: Array) -> None:
    """Mark what a tensor's channels (axis 1) were in training; copies of graphs keep it."""
    setattr(tensor, MARK, (mean, deviation))


def known_moments(graph: gs.Graph) -> dict[str, Moments]:
    """Per tensor, the mean and deviation of its channels in training, ``[channels]`` each."""
    found: dict[str, Moments] = {}
    for node in graph.nodes:
        for tensor in node.outputs[:1]:
            moments = getattr(tensor, MARK, None)
            if node.op == "BatchNormalization" and all(isinstance(t, gs.Constant) for t in node.inputs[1:3]):
                scale, shift = (peek(t).astype(np.float64) for t in node.inputs[1:3])
                moments = (shift, np.abs(scale))
            if moments is not None and tensor.name:
                found[tensor.name] = moments
    return found


class Judge:
    """Runs a graph on feeds and says how unlikely they look, see `unlikeliness`.

    Args:
        analysis: The analysed graph.
        threads: Threads for onnxruntime.
    """

    def __init__(self, analysis: Analysis, threads: int = 1) -> None:
        graph = analysis.graph
        proto = to_model(graph)
        outputs = [tensor.name for tensor in graph.outputs]
        self.known = {name: found for name, found in known_moments(graph).items() if name not in outputs}
        self.places = list(self.known) or [
            node.outputs[0].name
            for node in graph.nodes
            if node.op in _WEIGHTED and node.outputs[0].name not in outputs
        ]
        self.runner = session(with_outputs(proto, self.places), threads=threads)

    def unlikeliness(self, feeds: Mapping[str, Array]) -> float:
        """The mean over layers and channels of the divergence from training, infinite where outputs are not finite.

        With batch normalization it is that of two Gaussians, `log(s/d) + (d² + (m - b)²) / 2s² - 1/2`; else
        `log(1 + m²/d²)`, for the mean m and deviation d of a channel, and the b and s it had in training.
        """
        results = run(self.runner, feeds)
        offset = len(results) - len(self.places)
        if not all(np.isfinite(each).all() for each in results[:offset] if each.dtype.kind == "f"):
            return float("inf")
        found = [
            _divergence(values, self.known.get(name))
            for name, values in zip(self.places, results[offset:], strict=True)
            if values.ndim > 1 and values.size
        ]
        return float(np.mean(found)) if found else 0.0


def _divergence(values: Array, known: Moments | None) -> float:
    channels = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1).astype(np.float64)
    mean, deviation = channels.mean(axis=1), channels.std(axis=1)
    if known is None or known[0].shape != mean.shape:  # channels were cut since
        return float(np.log1p(mean**2 / (deviation**2 + 1e-12 * (1 + mean**2))).mean())
    wanted, spread = known
    floor = _FLOOR * max(float(np.median(spread)), 1e-6)
    deviation, spread = np.maximum(deviation, floor), np.maximum(spread, floor)
    each = np.log(spread / deviation) + (deviation**2 + (mean - wanted) ** 2) / (2 * spread**2) - 0.5
    return float(np.minimum(each, 100.0).mean())


def best_of(scores: Sequence[float], *, known: bool) -> int:
    """The index of the best candidate: the first unless another is clearly better, where nothing is known for sure."""
    best = int(np.argmin(scores))
    clearly = scores[best] < 0.8 * scores[0] and scores[best] < scores[0] - 0.1
    return best if known or clearly else 0
