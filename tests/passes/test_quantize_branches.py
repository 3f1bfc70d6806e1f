"""Branches that are always taken are quantized like anything else, unless a name that is excluded would be gone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from quantizable import context_for

from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon_passes.quantize import Quantize

NET = (
    "net (float[N,16] x) => (float[N,8] y) { s = Shape (x)  n = Gather (s, one)  c = Equal (n, size)"
    " [squeeze] z = If (c) <then_branch = t () => (float[N,32] r) { [inside] m = MatMul (x, w)  r = Relu (m) },"
    " else_branch = e () => (float[N,32] q) { q = Concat <axis = 1> (x, x) }>"
    " [between] k = Abs (z)  [behind] y = MatMul (k, v) }"
)


def _weight(*shape: int) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def _parsed(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in weights.items()
    )
    return model


def _kinds(graph: onnx.GraphProto) -> Iterator[tuple[str, int]]:
    """The types of the constants of a graph and of its bodies."""
    yield from ((each.name, each.data_type) for each in graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _kinds(attribute.g)


@pytest.mark.parametrize("text", [NET, NET.replace("c = Equal (n, size)", "").replace("(c)", "(yes)")])
@pytest.mark.parametrize("mode", ["static", "dynamic", "fp16"])
@pytest.mark.parametrize(
    ("exclude", "left"), [((), 0), (("inside",), 1), (("squeeze",), 1), (("r",), 1), (("z",), 1)]
)
def test_a_branch_that_is_always_taken(text, mode, exclude, left) -> None:
    numbers = {"one": np.array(1), "size": np.array(16), "yes": np.array(True)}
    model = _parsed(text, w=_weight(16, 32), v=_weight(32, 8), **numbers)
    context = context_for(model)
    options = Quantize(mode=mode, guard=False, equalize=False, smooth=False, exclude=exclude)
    result = to_model(options.run(from_model(model), context))
    kinds = dict(_kinds(result.graph))
    assert sum(kinds.get(name) == onnx.TensorProto.FLOAT for name in ("w", "v")) == left
    feeds = {"x": np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)}
    before, after = (run(session(each), feeds)[0] for each in (model, result))
    assert np.abs(before - after).max() < 0.05 * np.abs(before).max()


def test_an_if_that_stays_keeps_no_fusion_from_what_is_around_it() -> None:
    model = _parsed(
        "net (float[N,4,8,8] x) => (float[N,4,8,8] y) { a = Conv <pads = [1, 1, 1, 1]> (x, w)"
        " b = BatchNormalization (a, one, zero, zero, one)  g = ReduceMax <keepdims = 0> (b)  c = Greater (g, limit)"
        " z = If (c) <then_branch = t () => (p) { p = Neg (b) }, else_branch = e () => (q) { q = Abs (b) }>"
        " y = Conv <pads = [1, 1, 1, 1]> (z, w) }",
        w=_weight(4, 4, 3, 3),
        one=np.ones(4, np.float32),
        zero=np.zeros(4, np.float32),
        limit=np.array(1.0, np.float32),
    )
    options = Quantize(mode="static", guard=False, equalize=False, smooth=False, exclude=("z",))
    result = to_model(options.run(from_model(model), context_for(model)))
    assert "BatchNormalization" not in [node.op_type for node in result.graph.node]
