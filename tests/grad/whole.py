"""Gradients of whole networks against differences of the loss, both computed by onnxruntime in single precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from zoo import read

from surgeon.engine import analyse
from surgeon.errors import DataError, UnsupportedModelError
from surgeon.grad import Gradient, Tape, Value, gradient
from surgeon.grad.differentiate import alive
from surgeon.graph.load import from_model
from surgeon.graph.order import every_node
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session, with_outputs
from surgeon.graph.shapes import infer
from surgeon.probes import probe_feeds

Array = NDArray[Any]
WIDTHS = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)  # of a step, relative to the size of each weight
DIRECTIONS = 3
FLOAT = np.dtype(np.float32)


@dataclass(frozen=True)
class Comparison:
    """How the gradient of one network compares.

    Attributes:
        found: The gradient.
        weights: How many matrices and kernels it is taken of.
        errors: For each direction the least relative error over the widths.
    """

    found: Gradient
    weights: int
    errors: list[float]


def compare(path: Path, seed: int = 0) -> Comparison:
    """Differentiate a network with respect to all of its matrices and kernels, and compare."""
    graph = from_model(read(path), path)
    ends = _ends(graph)
    weights, feeds, outputs = _lively(graph, ends)
    spreads = [float(np.sqrt(np.mean(np.square(each, dtype=np.float64)))) or 1.0 for each in outputs]

    def loss(tape: Tape) -> Value:
        known = {tensor.name: tensor for node in tape.graph.nodes for tensor in node.outputs}
        values = [tape.value(known[name]) for name in ends]
        scaled = [y * (1 / spread) + 0.5 for y, spread in zip(values, spreads, strict=True)]
        # means of means, for millions of numbers are too many to add up in single precision
        ranks = [len(tape.shapes.dims[name] or ()) for name in ends]
        bent = [tape.op("Sin", each) for each in scaled]
        return tape.total(
            [(y.mean([rank - 1]) if rank > 1 else y).mean() for y, rank in zip(bent, ranks, strict=True)]
        )

    found = gradient(graph, loss, list(weights))
    if not found.of:
        return Comparison(found, len(weights), [])
    _, *slopes = run(session(to_model(found.graph), threads=2), {**feeds, **weights})
    gradients = dict(zip(found.of, slopes, strict=True))
    forward = session(to_model(_without_gradients(found)), threads=2)

    def evaluate(way: Mapping[str, Array], width: float) -> float:
        moved = {name: (weights[name] + width * step).astype(FLOAT) for name, step in way.items()}
        return float(run(forward, {**feeds, **weights, **moved})[0])

    random = np.random.default_rng(seed)
    return Comparison(
        found, len(weights), [_error(evaluate, weights, gradients, random) for _ in range(DIRECTIONS)]
    )


def _error(evaluate: Any, weights: Mapping[str, Array], gradients: Mapping[str, Array], random: Any) -> float:
    """Along the gradient of a random half of the elements of a random half of the weights, each in its own measure."""
    way, slope = {}, 0.0
    for name, found in gradients.items():
        assert found.shape == weights[name].shape, name
        assert np.isfinite(found).all(), name
        step = found * (random.random(found.shape) < 0.5) * (random.random() < 0.5 or len(gradients) == 1)
        size = float(np.sqrt(np.mean(np.square(step))))
        if size > 0:
            way[name] = step * (float(np.sqrt(np.mean(np.square(weights[name])))) / size)
            slope += float(np.sum(way[name] * found, dtype=np.float64))
    if not way:
        return 0.0
    scale = 1 / len(way)
    errors = [
        abs((evaluate(way, scale * width) - evaluate(way, -scale * width)) / (2 * scale * width) - slope)
        for width in WIDTHS
    ]
    return min(errors) / abs(slope)


def _ends(graph: gs.Graph) -> list[str]:
    """Float outputs; of integers the floats they are chosen by, and of what may be saturated what it is made of."""
    kinds, found = infer(graph).dtypes, []
    for output in graph.outputs:
        tensor = output
        while kinds[tensor.name] != onnx.TensorProto.FLOAT or tensor.inputs[0].op in ("Softmax", "Sigmoid"):
            tensor = tensor.inputs[0].inputs[0]
        found.append(tensor.name)
    return found


def _lively(graph: gs.Graph, ends: list[str]) -> tuple[dict[str, Array], dict[str, Array], list[Array]]:
    """Matrices and kernels with which outputs are finite and none is zero; inputs that are accepted, and the outputs."""
    random = np.random.default_rng(0)
    held = {
        tensor.name: tensor
        for node in every_node(graph)
        for tensor in node.inputs
        if isinstance(tensor, gs.Constant) and tensor.dtype == FLOAT and len(tensor.shape) > 1
    }
    for tensor in held.values():
        if not np.any(tensor.values):
            tensor.values = (0.05 * random.standard_normal(tensor.shape)).astype(FLOAT)
    for node in graph.nodes:
        if node.op == "BatchNormalization" and isinstance(node.inputs[4], gs.Constant):
            node.inputs[4].values = np.abs(node.inputs[4].values)  # the zoo's are random
    for _ in range(8):
        feeds, outputs = _first_that_runs(graph, ends)
        if all(np.isfinite(each).all() for each in outputs):
            break
        for tensor in held.values():
            tensor.values = tensor.values * FLOAT.type(0.7)
    return {name: np.array(tensor.values) for name, tensor in held.items()}, feeds, outputs


def _first_that_runs(graph: gs.Graph, ends: list[str]) -> tuple[dict[str, Array], list[Array]]:
    original = session(with_outputs(to_model(graph), ends))
    places = [[output.name for output in original.get_outputs()].index(name) for name in ends]
    for feeds in reversed(list(probe_feeds(analyse(graph).analysis))):
        try:
            outputs = run(original, feeds)
        except (UnsupportedModelError, DataError):
            continue
        return feeds, [outputs[place] for place in places]
    raise AssertionError("no inputs are accepted")


def _without_gradients(found: Gradient) -> gs.Graph:
    graph = found.graph
    ends = graph.outputs[:1]
    return gs.Graph(
        nodes=alive(list(graph.nodes), ends),
        inputs=list(graph.inputs),
        outputs=ends,
        opset=graph.opset,
        import_domains=graph.import_domains,
        ir_version=graph.ir_version,
    )
