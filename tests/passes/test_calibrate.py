"""Ranges of a model's activations: chosen by what reads them, in bounded memory, and never a crash."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper as nh

from surgeon.graph.load import from_model
from surgeon.graph.sessions import run, session
from surgeon.stats.data import Chunk, Dataset, from_chunks, graph_inputs
from surgeon.stats.histogram import Histogram
from surgeon.stats.ranges import METHODS, Range, find_range
from surgeon_passes.quantizing.activations import Activations
from surgeon_passes.quantizing.calibrate import Calibration, _spread, calibrate
from surgeon_passes.quantizing.judge import Judge
from surgeon_passes.quantizing.taps import Taps

Array = NDArray[Any]


def model_of(
    nodes: list[onnx.NodeProto],
    constants: dict[str, Array] | None = None,
    *,
    inputs: dict[str, list[Any]],
    outputs: tuple[str, ...] = ("y",),
) -> onnx.ModelProto:
    graph = oh.make_graph(
        nodes,
        "g",
        [oh.make_tensor_value_info(name, 1, shape) for name, shape in inputs.items()],
        [oh.make_tensor_value_info(name, 1, None) for name in outputs],
        [nh.from_array(array, name) for name, array in (constants or {}).items()],
    )
    model = oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])
    return onnx.shape_inference.infer_shapes(model)


def data_of(model: onnx.ModelProto, arrays: dict[str, Array], batch: int = 32) -> Dataset:
    def read() -> Any:
        yield Chunk(arrays)

    return from_chunks("made up", graph_inputs(from_model(model)), read, batch)


def calibrated(model: onnx.ModelProto, data: Dataset, tensors: list[str], **options: Any) -> Calibration:
    settled = {"method": "auto", "symmetric": False, "threads": 1, **options}
    return calibrate(model, Activations.of(model), tensors, data, **settled)


@pytest.mark.parametrize(("weight", "cut_off"), [(500.0, False), (0.0, True)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_an_outlier_is_cut_off_unless_a_large_weight_reads_it(
    weight: float, cut_off: bool, symmetric: bool
) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((64, 8000)).astype(np.float32)
    x[0, 0] = 12
    w = random.standard_normal((8000, 2)).astype(np.float32)
    w[0] = weight
    model = model_of([oh.make_node("MatMul", ["x", "w"], ["y"])], {"w": w}, inputs={"x": ["N", 8000]})
    data = data_of(model, {"x": x})
    result = calibrated(model, data, ["x"], symmetric=symmetric)
    histogram_alone = calibrated(model, data, ["x"], method="mse", symmetric=symmetric).ranges["x"]
    assert histogram_alone.highest < 7
    if cut_off:
        assert result.ranges["x"].highest < 7
    else:
        assert result.ranges["x"].highest == 12
        assert result.methods["x"] == "minmax"


def made_of(gate: str) -> onnx.ModelProto:
    """``y = x · gate(x)``."""
    nodes = [oh.make_node(gate, ["x"], ["g"]), oh.make_node("Mul", ["x", "g"], ["y"])]
    return model_of(nodes, inputs={"x": ["N", 1000]})


def test_an_end_that_what_reads_it_makes_nothing_of_is_pulled_in() -> None:
    x = np.random.default_rng(0).uniform(-64, 8, (64, 1000)).astype(np.float32)
    result = calibrated(made_of("Sigmoid"), data_of(made_of("Sigmoid"), {"x": x}), ["x"])
    assert result.ranges["x"] == pytest.approx([-8, 8], abs=0.2)
    assert result.facts()["pulled_in"] == 1
    alone = model_of([oh.make_node("Sigmoid", ["x"], ["y"])], inputs={"x": ["N", 1000]})
    result = calibrated(alone, data_of(alone, {"x": -x}), ["x"])
    assert result.ranges["x"] == pytest.approx([-8, 8], abs=0.2)


def test_what_decides_between_values_keeps_them_apart() -> None:
    """A Sigmoid makes the same of all that is large, but not what looks for the largest."""
    nodes = [
        oh.make_node("Sigmoid", ["x"], ["y"]),
        oh.make_node("ArgMax", ["x"], ["k"], axis=1),
        oh.make_node("Cast", ["k"], ["z"], to=1),
    ]
    model = model_of(nodes, inputs={"x": ["N", 1000]}, outputs=("y", "z"))
    x = np.random.default_rng(0).uniform(-8, 64, (64, 1000)).astype(np.float32)
    assert calibrated(model, data_of(model, {"x": x}), ["x"]).ranges["x"].highest > 60


@pytest.mark.parametrize(("gate", "symmetric"), [("Abs", False), ("Sigmoid", True)])
def test_an_end_that_counts_stays(gate: str, symmetric: bool) -> None:
    x = np.random.default_rng(0).uniform(-64, 8, (64, 1000)).astype(np.float32)
    result = calibrated(made_of(gate), data_of(made_of(gate), {"x": x}), ["x"], symmetric=symmetric)
    assert result.ranges["x"].lowest == pytest.approx(-64, abs=0.1)
    assert result.facts()["pulled_in"] == 0


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.booleans())
def test_the_judge_computes_what_numpy_does(seed: int, symmetric: bool) -> None:
    random = np.random.default_rng(seed)
    w, v = (random.standard_normal((4, 4)).astype(np.float32) for _ in range(2))
    nodes = [
        oh.make_node("Relu", ["x"], ["r"]),
        oh.make_node("Transpose", ["r"], ["t"], perm=[1, 0]),
        oh.make_node("MatMul", ["t", "w"], ["a"]),
        oh.make_node("MatMul", ["v", "r"], ["b"]),
        oh.make_node("Add", ["r", "r"], ["c"]),
        oh.make_node("Identity", ["r"], ["d"]),
    ]
    model = model_of(nodes, {"w": w, "v": v}, inputs={"x": [4, 4]}, outputs=("a", "b", "c", "d"))
    x = random.standard_normal((4, 4)).astype(np.float32) + 0.1
    found = Range(-1.0, 1.0) if symmetric else Range(0.0, 0.8)
    judge = Judge(model, Activations.of(model), ["r"], symmetric=symmetric, threads=1)
    ours = judge.scores(judge.powers({"x": x}, {"r": found})[np.newaxis])
    r = np.maximum(x, 0).astype(np.float64)
    scale, zero = found.grid(symmetric=symmetric)
    low, high = (-128, 127) if symmetric else (0, 255)
    error = (np.clip(np.round(r / scale) + zero, low, high) - zero) * scale - r
    pairs = [(error.T @ w, r.T @ w), (v @ error, v @ r), (2 * error, 2 * r), (error, r)]
    wanted = sum(np.square(e).sum() / np.square(y).sum() for e, y in pairs)
    assert ours["r"] == pytest.approx([wanted], rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_is_that_of_the_histogram_of_all_values(method: str) -> None:
    w = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)
    nodes = [oh.make_node("MatMul", ["x", "w"], ["h"]), oh.make_node("Tanh", ["h"], ["y"])]
    model = model_of(nodes, {"w": w}, inputs={"x": ["N", 6]})
    x = np.random.default_rng(1).standard_normal((70, 6)).astype(np.float32)
    result = calibrated(model, data_of(model, {"x": x}), ["x", "h"], method=method, percentile=99.0)
    assert result.samples == 70
    for name, values in (("x", x), ("h", x @ w)):
        histogram = Histogram()
        for start in range(0, 70, 32):
            histogram.add(values[start : start + 32])
        wanted = find_range(method, histogram.distribution(), symmetric=False, percentile=99.0)
        assert result.ranges[name] == pytest.approx(wanted, rel=1e-5, abs=histogram.distribution().width)
    assert result.facts()["methods"] == {method: 2}


def chain(length: int) -> onnx.ModelProto:
    names = ["x", *(f"t{k}" for k in range(length - 1)), "y"]
    nodes = [oh.make_node("Add", [a, a], [b]) for a, b in pairwise(names)]
    return model_of(nodes, inputs={"x": ["N", 1000]})


@pytest.mark.parametrize(("limit", "batch", "groups"), [(10**9, 32, 1), (40_000, 1, 1), (12_000, 1, 3)])
def test_so_few_samples_and_tensors_at_a_time_that_they_fit(limit: int, batch: int, groups: int) -> None:
    model = chain(10)
    x = np.random.default_rng(0).standard_normal((33, 1000)).astype(np.float32)
    tensors = ["x", *(f"t{k}" for k in range(9))]
    taps = Taps(model, tensors, data_of(model, {"x": x}), threads=1, limit=limit)
    assert taps.data.batch == batch
    assert len(taps._groups) == groups
    seen: dict[str, list[Array]] = {name: [] for name in tensors}
    total = 0
    for size, values in taps:
        total += size
        for name, array in values:
            seen[name].append(array)
    assert total == 33
    for k in range(10):
        np.testing.assert_array_equal(np.concatenate(seen[tensors[k]]), x)
        x = x + x


def test_what_is_alive_does_not_grow_with_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    model = chain(4)
    random = np.random.default_rng(0)

    def peak(samples: int) -> int:
        def read() -> Any:
            for _ in range(samples // 10):
                yield Chunk({"x": random.standard_normal((10, 1000), dtype=np.float32)})

        data = from_chunks("endless", graph_inputs(from_model(model)), read)
        tracemalloc.start()
        calibrated(model, data, ["x", "t0", "t1", "t2"])
        most: int = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(50)
    assert peak(5000) < peak(50) * 1.1


def test_infinities_empty_tensors_and_integers() -> None:
    nodes = [
        oh.make_node("Log", ["x"], ["masked"]),
        oh.make_node("MatMul", ["masked", "w"], ["a"]),
        oh.make_node("Slice", ["x", "zero", "zero", "axis"], ["nothing"]),
        oh.make_node("MatMul", ["nothing", "w"], ["b"]),
        oh.make_node("Shape", ["x"], ["shape"]),
    ]
    constants = {
        "w": np.eye(3, dtype=np.float32),
        "zero": np.array([0]),
        "axis": np.array([0]),
    }
    model = model_of(nodes, constants, inputs={"x": ["N", 3]}, outputs=("a", "b"))
    data = data_of(model, {"x": np.array([[0, 1, 2], [1, 2, 3]], np.float32)})
    activations = Activations.of(model)
    assert "shape" not in activations.types
    result = calibrated(model, data, ["x", "masked", "nothing"])
    assert list(result.ranges) == ["x"]
    assert result.unusable == {
        "masked": "it has infinite values, which 8 bits do not",
        "nothing": "it was empty in all samples",
    }


def test_shapes_that_depend_on_the_data() -> None:
    nodes = [
        oh.make_node("NonZero", ["x"], ["where"]),
        oh.make_node("Transpose", ["where"], ["rows"], perm=[1, 0]),
        oh.make_node("GatherND", ["x", "rows"], ["found"]),
        oh.make_node("Unsqueeze", ["found", "one"], ["column"]),
        oh.make_node("MatMul", ["column", "w"], ["y"]),
    ]
    w = np.ones((1, 2), np.float32)
    model = model_of(nodes, {"w": w, "one": np.array([1])}, inputs={"x": ["N", 3]})
    x = np.array([[0, 0, 0], [0, 5, 1], [2, 0, 0]], np.float32)
    result = calibrated(model, data_of(model, {"x": x}, 1), ["found"])
    assert result.ranges["found"] == pytest.approx((0, 5), abs=0.01)


def test_ranges_that_are_shared() -> None:
    nodes = [
        oh.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        oh.make_node("Relu", ["c"], ["r"]),
        oh.make_node("Flatten", ["r"], ["f"]),
        oh.make_node("Gemm", ["f", "v"], ["y"]),
    ]
    constants = {"w": np.ones((2, 1, 1, 1), np.float32), "v": np.ones((8, 2), np.float32)}
    model = model_of(nodes, constants, inputs={"x": ["N", 1, 2, 2]})
    activations = Activations.of(model)
    assert {name: activations.leader(name) for name in "xcrf"} == {"x": "x", "c": "r", "r": "r", "f": "r"}
    model.graph.output.append(oh.make_tensor_value_info("c", 1, None))
    assert Activations.of(model).leader("c") == "c"


def test_readers_inside_bodies_and_random_ones_are_judged_by_the_tensor_itself() -> None:
    body = oh.make_graph(
        [oh.make_node("Neg", ["h"], ["n"])], "body", [], [oh.make_tensor_value_info("n", 1, None)]
    )
    nodes = [
        oh.make_node("Tanh", ["x"], ["h"]),
        oh.make_node("If", ["yes"], ["y"], then_branch=body, else_branch=body),
    ]
    model = model_of(nodes, {"yes": np.array(True)}, inputs={"x": [2, 3]})
    judge = Judge(model, Activations.of(model), ["h"], symmetric=False, threads=1)
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    noise, signal = judge.powers({"x": x}, {"h": Range(-1.0, 1.0)})[0]
    assert signal == pytest.approx(np.square(np.tanh(x)).sum(), rel=1e-5)
    assert 0 < noise < 6 * (1 / 255) ** 2
    assert run(session(model), {"x": x})[0].shape == (2, 3)


@pytest.mark.parametrize("batch", [1, 8, 32, 512])
def test_ranges_are_judged_on_samples_from_all_over_the_data(batch: int) -> None:
    model = model_of([oh.make_node("Relu", ["x"], ["y"])], inputs={"x": ["N", 1]})
    data = data_of(model, {"x": np.arange(512, dtype=np.float32)[:, None]}, batch)
    seen = np.concatenate([feeds["x"][:, 0] for feeds in _spread(data, 512)])
    assert 32 <= len(seen) <= 40
    assert np.bincount((seen // 128).astype(int), minlength=4).min() >= 8


@pytest.mark.parametrize("seed", range(4))
def test_small_models_are_judged_on_all_samples(seed: int) -> None:
    """Of vectors 32 samples are too few to tell what of a range is needed: the rest of the data has more in it."""
    random = np.random.default_rng(seed)
    shapes = {"w0": (10, 64), "w1": (64, 64), "w2": (64, 5)}
    weights = {n: (random.standard_normal(s) * np.sqrt(2 / s[0])).astype("f") for n, s in shapes.items()}
    nodes = [
        oh.make_node("MatMul", ["x", "w0"], ["a"]),
        oh.make_node("Relu", ["a"], ["r"]),
        oh.make_node("MatMul", ["r", "w1"], ["b"]),
        oh.make_node("Relu", ["b"], ["s"]),
        oh.make_node("MatMul", ["s", "w2"], ["y"]),
    ]
    model = model_of(nodes, weights, inputs={"x": ["N", 10]})
    data = data_of(model, {"x": random.standard_t(4, (512, 10)).astype("f")})
    found = calibrated(model, data, ["x", "r", "s"]).ranges
    plain = calibrated(model, data, ["x", "r", "s"], method="minmax").ranges
    for name, each in found.items():
        assert each.highest >= 0.6 * plain[name].highest
        assert each.lowest <= 0.6 * plain[name].lowest


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_as_many_samples_are_judged_by_as_are_wanted(batch: int) -> None:
    model = model_of([oh.make_node("Relu", ["x"], ["y"])], inputs={"x": ["N", 1]})
    data = data_of(model, {"x": np.arange(512, dtype=np.float32)[:, None]}, batch)
    for wanted in (64, 128, 512, 5000):
        seen = sum(len(feeds["x"]) for feeds in _spread(data, 512, wanted))
        assert seen == min(wanted, 512)


def test_an_input_that_never_has_another_value_is_said() -> None:
    model = model_of([oh.make_node("Add", ["x", "z"], ["y"])], inputs={"x": ["N", 4], "z": ["N", 4]})
    random = np.random.default_rng(0)
    data = data_of(model, {"x": np.full((64, 4), 0.5, "f"), "z": random.standard_normal((64, 4)).astype("f")})
    notes = calibrated(model, data, ["x", "z"]).notes
    assert [note.split(",")[0] for note in notes] == ["input x has but one value in all calibration samples"]
