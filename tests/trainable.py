"""Small models that something was done to, and the way through a pass that trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from ops.oracle import build
from refit.test_block import changed, constants, noisy, state

from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.measure import inputs_of
from surgeon.passes import Context, Monitor
from surgeon.plan import Plan
from surgeon.stats.chunks import Chunk
from surgeon.stats.data import Dataset, from_chunks

__all__ = ["changed", "constants", "noisy", "state"]

Array = NDArray[Any]
CUT = "prune{score=l2 macs=0.4 reconstruct=false}"  # what leaves a digit classifier guessing
BODY = "a = MatMul (x, w1)\nb = Add (a, b1)\nc = Relu (b)\ns = MatMul (c, w2)\ny = {end} (s)"


def classifier(end: str = "Identity") -> onnx.ModelProto:
    """Two layers; scores, or what ``end`` makes of them."""
    model = build(
        "float[N,6] x", "float[N,4] y", BODY.format(end=end), {"w1": (6, 12), "b1": (12,), "w2": (12, 4)}
    )
    for node in model.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return model


def vectors(count: int = 400, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 6)).astype(np.float32)


def outputs(model: onnx.ModelProto, x: Array) -> Array:
    return run(session(model), {"x": x})[0]


def right(model: onnx.ModelProto, x: Array) -> Array:
    """The classes that a model says, as labels."""
    return outputs(model, x).argmax(1)


def dataset(graph: Any, x: Array, labels: Array | None = None, batch: int = 32) -> Dataset:
    return from_chunks("samples", inputs_of(graph), lambda: iter([Chunk({"x": x}, labels)]), batch)


def context_for(graph: Any, reference: Any, x: Array, labels: Array | None = None, **options: Any) -> Context:
    data = dataset(graph, x, labels)
    return Context(Path("model.onnx"), inputs=inputs_of(graph), data=data, reference=reference, **options)


def error(model: onnx.ModelProto, graph: Any, x: Array) -> float:
    """The squared distance of outputs, relative to their variance."""
    wanted = outputs(model, x)
    return float(np.square(outputs(to_model(graph), x) - wanted).mean() / wanted.var())


def accuracy(model: onnx.ModelProto, graph: Any, x: Array) -> float:
    return float((right(to_model(graph), x) == right(model, x)).mean())


def picture_model() -> onnx.ModelProto:
    """A small network for images ``[N, 3, 16, 16]``."""
    body = "a = Conv (x, w1)\nb = Relu (a)\nc = Conv (b, w2)\np = GlobalAveragePool (c)\ny = Flatten (p)"
    return build("float[N,3,16,16] x", "float[N,4] y", body, {"w1": (6, 3, 3, 3), "w2": (4, 6, 3, 3)})


def images(graph: Any, reference: Any, count: int) -> Context:
    shown = np.random.default_rng(0).standard_normal((count, 3, 16, 16)).astype(np.float32)
    return context_for(graph, reference, shown)


def plan_that_cut_inputs() -> Plan:
    return Plan(model_sha256="", groups=(), tensors={}, interface={"x": {1: (0, 1)}})


class Interrupting(Monitor):
    """Stops a pass after so many steps, as Ctrl-C does."""

    def __init__(self, after: int) -> None:
        self.left = after

    def warn(self, text: str) -> None:
        pass

    def progress(self, label: str, total: int | None) -> Any:
        from contextlib import nullcontext

        def advance(count: int) -> None:
            self.left -= count
            if self.left < 0:
                raise KeyboardInterrupt

        return nullcontext(advance)
