"""Gemms with factors and with biases of any shape get 8-bit kernels as plain ones do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import numpy_helper as nh
from quantizable import context_for, quantized

from surgeon.graph.sessions import run, session
from surgeon_passes.quantizing.gemms import make_plain
from surgeon_passes.quantizing.prepare import prepared

SIZE = 64


def array(name: str, *shape: int) -> onnx.TensorProto:
    random = np.random.default_rng(len(name) + sum(shape))
    return nh.from_array((random.standard_normal(shape) / 8).astype("f"), name)


def chain(bias: tuple[int, ...] | None = None, **given: Any) -> onnx.ModelProto:
    """Three Gemms, the second with a bias of that shape and these attributes."""
    biases = [] if bias is None else ["bias"]
    nodes = [
        oh.make_node("Gemm", ["x", "w", "c"], ["a"], name="first"),
        oh.make_node("Relu", ["a"], ["b"]),
        oh.make_node("Gemm", ["b", "ww", *biases], ["d"], name="second", **given),
        oh.make_node("Relu", ["d"], ["e"]),
        oh.make_node("Gemm", ["e", "www", "c"], ["y"], name="third"),
    ]
    weights = [array("w", SIZE, SIZE), array("ww", SIZE, SIZE), array("www", SIZE, SIZE), array("c", SIZE)]
    weights += [] if bias is None else [array("bias", *bias)]
    x, y = oh.make_tensor_value_info("x", 1, ["N", SIZE]), oh.make_tensor_value_info("y", 1, ["N", SIZE])
    graph = oh.make_graph(nodes, "g", [x], [y], weights)
    return oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])


def feeds() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(5).standard_normal((16, SIZE)).astype("f")}


SHAPES = [None, (), (1,), (SIZE,), (1, 1), (1, SIZE)]


@pytest.mark.parametrize("bias", SHAPES)
@pytest.mark.parametrize(
    "given", [{}, {"alpha": 2.0, "transB": 1}, {"alpha": 0.5, "beta": 3.0}, {"beta": 0.0}]
)
def test_what_is_computed_stays(bias: tuple[int, ...] | None, given: dict[str, Any], tmp_path: Path) -> None:
    model = chain(bias, **given)
    plain = prepared(model, lambda _: False, tmp_path)
    shapes = {entry.name: list(entry.dims) for entry in plain.graph.initializer}
    second = next(node for node in plain.graph.node if node.name == "second")
    assert {each.name for each in second.attribute} <= {"transB"}
    assert [shapes[name] for name in second.input[2:]] == ([] if bias is None else [[SIZE]])
    want, ours = (run(session(each), feeds())[0] for each in (model, plain))
    np.testing.assert_allclose(ours, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["static", "dynamic"])
@pytest.mark.parametrize(
    ("bias", "given"), [((1,), {}), ((1, SIZE), {}), ((), {}), (None, {"alpha": 2.0}), ((1,), {"beta": 0.5})]
)
def test_all_have_integer_kernels(mode: str, bias: tuple[int, ...] | None, given: dict[str, Any]) -> None:
    model = chain(bias, **given)
    context = context_for(model)
    result = quantized(model, context, mode=mode)
    record: Any = context.record
    assert record["left_float"] == []
    assert record["quantized"] == {"Gemm": 3}
    assert record["float_kernels"] == {}
    want, ours = (run(session(each), feeds())[0] for each in (model, result))
    assert np.linalg.norm(ours - want) < 0.06 * np.linalg.norm(want)


def test_what_others_read_and_what_is_excluded_stays() -> None:
    model = chain((1,), alpha=2.0)
    model.graph.node[4].input[1] = "ww"
    make_plain(model, lambda name: name == "third")
    entries = {entry.name: nh.to_array(entry) for entry in model.graph.initializer}
    second, third = model.graph.node[2], model.graph.node[4]
    assert third.input[1] == "ww"
    np.testing.assert_array_equal(entries[second.input[1]], 2 * entries["ww"])
    before = chain((1,), alpha=2.0)
    after = onnx.ModelProto.FromString(before.SerializeToString())
    make_plain(after, lambda name: name == "bias")
    assert after == before


def test_a_bias_that_is_no_vector_or_no_constant_stays() -> None:
    model = chain((3, SIZE), alpha=2.0, beta=0.5)
    make_plain(model, lambda _: False)
    shapes = {entry.name: list(entry.dims) for entry in model.graph.initializer}
    assert shapes["bias"] == [3, SIZE]
    assert not model.graph.node[2].attribute
    model = chain((1,), alpha=2.0, beta=0.5)
    model.graph.node[2].input[2] = "x"
    make_plain(model, lambda _: False)
    assert [each.name for each in model.graph.node[2].attribute] == ["beta"]
