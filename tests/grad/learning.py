"""Small things to learn, for tests of the loop."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from ops.oracle import build

from surgeon.grad.objective import Objective
from surgeon.grad.samples import Samples
from surgeon.graph.load import from_model

Array = NDArray[Any]


def squared(tape):
    """The mean squared distance of ``y`` from ``t``."""
    difference = tape.find("y") - tape.find("t")
    return (difference * difference).mean()


def linear(width: int = 3, outputs: int = 2):
    """``y = x w + b``, and what is asked for."""
    return from_model(
        build(
            f"float[N,{width}] x, float[N,{outputs}] t",
            f"float[N,{outputs}] y",
            "m = MatMul (x, w)\ny = Add (m, b)",
            {"w": (width, outputs), "b": (outputs,)},
        )
    )


def perceptron(seed: int = 0):
    """Two layers with a Tanh between."""
    weights = {"w1": (4, 8), "b1": (8,), "w2": (8, 2), "b2": (2,)}
    body = "a = Gemm (x, w1, b1)\nh = Tanh (a)\ny = Gemm (h, w2, b2)"
    return from_model(build("float[N,4] x, float[N,2] t", "float[N,2] y", body, weights, seed=seed))


def values_of(graph) -> dict[str, Array]:
    return {
        t.name: np.array(t.values)
        for node in graph.nodes
        for t in node.inputs
        if hasattr(t, "values") and np.dtype(t.dtype).kind == "f"
    }


def objective(graph, loss=squared, **options) -> Objective:
    return Objective(graph, loss, sorted(values_of(graph)), rows=options.pop("rows", True), **options)


def regression(count: int = 60, width: int = 4, outputs: int = 2, seed: int = 1) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    x = random.standard_normal((count, width)).astype(np.float32)
    t = np.tanh(x @ random.standard_normal((width, outputs))) + 0.1 * random.standard_normal((count, outputs))
    return {"x": x, "t": t.astype(np.float32)}


def samples(data: dict[str, Array], batches: int = 4) -> Samples:
    parts = {name: np.array_split(each, batches) for name, each in data.items()}
    return Samples.of(list(data), lambda name, batch: parts[name][batch], batches, rows=True)
