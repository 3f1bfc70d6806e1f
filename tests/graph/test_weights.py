"""Values that are computed when they are looked at."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import helper, numpy_helper

from surgeon.graph import weights
from surgeon.graph.load import from_model, load
from surgeon.graph.save import save, to_model
from surgeon.graph.weights import DerivedValues, data_type, derived, peek, raw_bytes

WHOLE = np.arange(600 * 500, dtype=np.float32).reshape(600, 500)


def half(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values[::2])


def test_large_values_are_computed_when_looked_at() -> None:
    calls = []

    def function(values: np.ndarray) -> np.ndarray:
        calls.append(values)
        return half(values)

    constant = gs.Constant("w", WHOLE)
    constant.values = derived(constant, function, (300, 500))
    assert (constant.shape, constant.dtype, data_type(constant)) == ((300, 500), np.float32, 1)
    assert not calls
    held = peek(constant)
    assert np.array_equal(held, WHOLE[::2])
    assert peek(constant) is held
    assert not held.flags.writeable
    del held
    peek(constant)
    assert len(calls) == 2


def test_small_values_are_computed_at_once() -> None:
    values = derived(gs.Constant("w", np.ones(4, np.float32)), half)
    assert isinstance(values, np.ndarray)


def test_a_function_that_changes_nothing_leaves_the_source_writeable() -> None:
    constant = gs.Constant("w", WHOLE.copy())
    values = derived(constant, lambda same: same)
    assert isinstance(values, DerivedValues)
    assert np.array_equal(values.load(), WHOLE)
    assert constant.values.flags.writeable


def test_derived_values_are_written_like_any(parse, tmp_path: Path) -> None:
    model = parse("net (float[600, 500] x) => (float[600, 500] y) { y = Mul(x, w) }", w=WHOLE)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    graph, expected = load(path), load(path)
    graph.tensors()["w"].values = derived(graph.tensors()["w"], lambda values: values * 2)
    expected.tensors()["w"].values = WHOLE * 2
    for name, each in (("a", graph), ("b", expected)):
        save(each, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert to_model(graph) == to_model(expected)
    exported = gs.export_onnx(graph)
    assert np.array_equal(onnx.numpy_helper.to_array(exported.graph.initializer[0]), WHOLE * 2)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3).T,
        np.float64(2.5).reshape(()),
        np.array([True, False]),
        np.zeros((0, 3), np.int64),
        np.array([1, 2, -3], ml_dtypes.int4),
        np.array([1.5, 2], ml_dtypes.bfloat16),
        np.array([1.5, 2], ml_dtypes.float8_e4m3fn),
        np.array([1, 2], np.complex64),
    ],
    ids=lambda array: str(array.dtype),
)
def test_bytes_are_those_onnx_writes(array: np.ndarray) -> None:
    expected = onnx.numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape)).raw_data
    assert bytes(raw_bytes(array)) == expected


def test_the_threshold_is_what_a_layer_of_a_small_model_stays_below() -> None:
    assert 1 << 16 <= weights.LARGE <= 1 << 22


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("kind", ["f", "e", "i1"])
def test_sparse_initializers_are_read_however_they_are_stored(flat: bool, raw: bool, kind: str) -> None:
    dense = np.zeros((4, 3), kind)
    dense[0, 1], dense[3, 2] = 2, 5
    index = np.flatnonzero(dense) if flat else np.argwhere(dense)
    values, places = numpy_helper.from_array(dense[dense != 0], "w"), numpy_helper.from_array(index, "places")
    if not raw:
        values = helper.make_tensor("w", values.data_type, [2], dense[dense != 0])
        places = helper.make_tensor("places", onnx.TensorProto.INT64, index.shape, index.ravel())
    x = helper.make_tensor_value_info("x", values.data_type, [4, 3])
    nodes = [helper.make_node("Where", ["c", "w", "x"], ["y"])]
    flags = numpy_helper.from_array(np.ones((4, 3), bool), "c")
    graph = helper.make_graph(
        nodes, "g", [x], [helper.make_tensor_value_info("y", values.data_type, [4, 3])], [flags]
    )
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4, 3]))
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    (weight,) = (each for each in from_model(model).nodes[0].inputs if each.name == "w")
    assert peek(weight).dtype == dense.dtype
    np.testing.assert_array_equal(peek(weight), dense)
