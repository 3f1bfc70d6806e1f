"""Checks derivative rules against central differences in double precision, and that onnxruntime computes the same.

A test writes a few nodes as ONNX text, with ``T`` for the type of its floats. The loss is the sum of the sines of all float
outputs (so that no two places matter alike); its gradient with respect to every float input and weight is compared along random directions. onnx's
reference evaluator runs graphs in double precision, whatever kernels onnxruntime has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun
from ops.oracle import build

from surgeon.grad import Gradient, Tape, Value, gradient
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session

Array = NDArray[Any]
WIDTH, TOLERANCE, OF_RUNTIME = 1e-5, 1e-6, 2e-4
SINGLE_WIDTH, OF_SINGLE = 2e-3, 3e-3
TYPES = {"double": np.float64, "float": np.float32}


class Erf(OpRun):
    """onnx's own is single precision."""

    def _run(self, x):
        return (np.vectorize(math.erf, otypes=[x.dtype])(x),)


def check(
    inputs: str,
    outputs: str,
    body: str,
    feeds: Mapping[str, tuple[int, ...] | Array],
    weights: Mapping[str, tuple[int, ...] | Array] | None = None,
    *,
    opset: int = 21,
    domains: Mapping[str, int] | None = None,
    wrt: Sequence[str] | None = None,
    runtime: bool = True,
    reference: bool = True,
    seed: int = 0,
) -> Gradient:
    """Compare the gradients of a few nodes with differences.

    Args:
        inputs: Graph inputs as ONNX text, with ``T`` for the type of floats.
        outputs: Graph outputs.
        body: The nodes.
        feeds: For each input an array, or a shape for seeded normal values.
        weights: The same for initializers.
        opset: Version of the standard operators.
        domains: Further opset imports.
        wrt: With respect to which tensors; by default all float inputs and weights.
        runtime: Whether onnxruntime has kernels for all of it in single precision.
        reference: Whether onnx's evaluator computes it as specified; else onnxruntime does, with less precision.
        seed: Seed of the values and directions.

    Returns:
        What was compared, in double precision.
    """
    random = np.random.default_rng(seed)
    values = {
        name: np.asarray(random.standard_normal(each)) if isinstance(each, tuple) else np.asarray(each)
        for name, each in {**feeds, **(weights or {})}.items()
    }

    def graph_in(kind: str) -> gs.Graph:
        *texts, nodes = (text.replace("T[", f"{kind}[") for text in (inputs, outputs, body))
        held = {name: _typed(values[name], kind) for name in weights or {}}
        code = str(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(TYPES[kind])))
        return from_model(
            build(*texts, nodes.replace("<to=T>", f"<to={code}>"), held, opset=opset, domains=domains)
        )

    kind = "double" if reference else "float"
    width, tolerance = (WIDTH, TOLERANCE) if reference else (SINGLE_WIDTH, OF_SINGLE)
    exact = graph_in(kind)
    floats = [name for name in values if values[name].dtype.kind == "f"]
    asked = floats if wrt is None else list(wrt)
    made = [tensor.name for tensor in exact.outputs if np.dtype(tensor.dtype).kind == "f"]
    found = gradient(exact, _loss, asked, also=made)
    assert found.stopped == {}
    assert found.partial == {}
    model = to_model(found.graph)
    evaluator = onnx.reference.ReferenceEvaluator(model, new_ops=[Erf]) if reference else session(model)

    def evaluate(at: Mapping[str, Array]) -> list[Array]:
        names = [tensor.name for tensor in found.graph.inputs]
        return list(evaluator.run(None, {name: _typed(at[name], kind) for name in names}))

    def loss_at(at: Mapping[str, Array]) -> float:
        """The loss summed in double precision, which differences of a single-precision sum would not survive."""
        return sum(float(np.sin(y.astype(float)).sum()) for y in evaluate(at)[1 : 1 + len(made)])

    loss, *others = evaluate(values)
    slopes = others[len(made) :]
    for name, slope in zip(asked, slopes, strict=True):
        assert slope.shape == values[name].shape, f"{name}: {slope.shape} instead of {values[name].shape}"
    for _ in range(3):
        way = {name: random.standard_normal(values[name].shape) for name in asked}
        ahead, behind = (
            loss_at({**values, **{name: values[name] + sign * width * way[name] for name in asked}})
            for sign in (1, -1)
        )
        difference = float((ahead - behind) / (2 * width))
        slope = sum(float((way[name] * each).sum()) for name, each in zip(asked, slopes, strict=True))
        size = sum(float(np.abs(way[name] * each).sum()) for name, each in zip(asked, slopes, strict=True))
        assert abs(difference - slope) <= tolerance * max(size, abs(float(loss)), 1e-3), (difference, slope)
    if runtime and reference:
        _compare_runtime(graph_in("float"), asked, values, slopes)
    return found


def _compare_runtime(
    graph: gs.Graph,
    asked: Sequence[str],
    values: Mapping[str, Array],
    slopes: Sequence[Array],
) -> None:
    """The same gradient, compiled for single precision and run by onnxruntime."""
    single = gradient(graph, _loss, asked)
    runner = session(to_model(single.graph))
    _, *found = run(runner, {name: _typed(each, "float") for name, each in values.items()})
    for name, ours, exact in zip(asked, found, slopes, strict=True):
        scale = max(float(np.abs(exact).max(initial=0)), 1e-3)
        assert float(np.abs(ours - exact).max(initial=0)) <= OF_RUNTIME * scale, name


def _typed(array: Array, kind: str) -> Array:
    return np.asarray(array, TYPES[kind], order="C") if array.dtype.kind == "f" else array


def _loss(tape: Tape) -> Value:
    outputs = [tape.value(tensor) for tensor in tape.graph.outputs]
    return tape.total([tape.op("Sin", each).sum() for each in outputs if each.dtype.kind == "f"])
