"""The pass qat: a quantized model comes nearer to the float one, on its grid, and keeps what it has to keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper as nh
from passes.test_quantized_values import kernels
from quantizable import context_for, network
from refit import networks
from trainable import dataset

import surgeon
from surgeon.errors import DataError, UsageError
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.reference import Reference
from surgeon.stats.data import graph_inputs
from surgeon.stats.synthetic import synthetic
from surgeon_passes.qat import Qat
from surgeon_passes.quantize import Quantize

PLAIN = {
    "rounding": "nearest",
    "correct_bias": False,
    "equalize": False,
    "smooth": False,
    "per_channel": False,
    "calibration": "minmax",
    "guard": False,
}
QUICK = {"steps": 60, "batch": 16, "rate": 1e-4}
ROUNDED = {"w1_quantized", "b1_quantized", "w2_quantized", "w3_quantized", "b3_quantized"}


def thinned(model: onnx.ModelProto, change, names: str = "w") -> onnx.ModelProto:
    result = onnx.ModelProto.FromString(model.SerializeToString())
    for entry in result.graph.initializer:
        if entry.name.startswith(tuple(names)):
            entry.CopyFrom(nh.from_array(change(nh.to_array(entry)).astype(np.float32), entry.name))
    return result


def coarse() -> onnx.ModelProto:
    """A network most of whose channels are small, so that one scale for all leaves little of them, but matter as much."""
    small = np.where(np.arange(32) % 8, 0.05, 1)

    def scaled(weight):
        if len(weight) != 32:
            return weight / small if weight.ndim == 2 else weight
        return weight * small.reshape(-1, *[1] * (weight.ndim - 1))

    return thinned(network(), scaled, "wb")


def prepared(model, **options):
    """The model quantized, and the run."""
    context = context_for(model)
    context.reference = Reference(from_model(model))
    graph = Quantize(**{**PLAIN, **options}).run(from_model(model), context)
    context.record = {}
    return graph, context


def trained(model, quantized=None, **options):
    graph, context = prepared(model, **(quantized or {}))
    before = to_model(graph)
    after = to_model(Qat(**{**QUICK, **options}).run(graph, context))
    return before, after, context


def error(model, other) -> float:
    feeds = synthetic(graph_inputs(from_model(model)), seed=9, batch=64)
    ours, theirs = (np.log(run(session(each), feeds)[0]) for each in (model, other))
    return float(np.square(ours - theirs).mean())


def changed(before, after) -> set[str]:
    values = networks.weights(after)
    return {name for name, each in networks.weights(before).items() if not np.array_equal(values[name], each)}


def test_the_error_falls_on_unseen_inputs():
    model = coarse()
    before, after, context = trained(model)
    assert error(model, after) < 0.8 * error(model, before)
    assert changed(before, after) == ROUNDED  # scales and zero points stay
    training = context.record["training"]
    assert training["loss_after"] < 0.6 * training["loss_before"]
    assert training["stopped"] == {}
    values = [networks.weights(each) for each in (before, after)]
    learned = context.record["learned"]
    assert learned["changed"] == sum(int((values[0][n] != values[1][n]).sum()) for n in ROUNDED)
    assert learned["of"] == sum(values[0][n].size for n in ROUNDED)
    assert learned["left"] == []
    assert context.record["changed"]
    assert context.warnings == []


def test_the_structure_and_the_kernels_stay(tmp_path: Path):
    before, after, _ = trained(network())
    assert [(n.op_type, list(n.input), list(n.output)) for n in before.graph.node] == [
        (n.op_type, list(n.input), list(n.output)) for n in after.graph.node
    ]
    counts = kernels(after, tmp_path / "after.onnx")
    assert counts == kernels(before, tmp_path / "before.onnx")
    assert [counts["QLinearConv"], counts["QGemm"]] == [2, 1]
    assert all(np.abs(networks.weights(after)[f"w{k}_quantized"]).max() <= 127 for k in (1, 2, 3))


def test_operators_left_in_float_learn_too():
    before, after, _ = trained(network(), {"exclude": ("head",)})
    assert changed(before, after) == {"w1_quantized", "b1_quantized", "w2_quantized", "w3", "b3"}


def test_the_same_twice_and_with_more_threads():
    results = []
    for threads in (1, 1, 2):
        graph, context = prepared(network())
        context.threads = threads
        results.append(to_model(Qat(**QUICK).run(graph, context)).SerializeToString())
    assert results[0] == results[1] == results[2]


def test_what_gets_no_better_stays():
    before, after, context = trained(network(), rate=1e4, steps=20)
    assert after.SerializeToString() == before.SerializeToString()
    assert context.record["changed"] is False
    assert context.record["learned"]["changed"] == 0
    assert "stays as it was" in context.warnings[0]


def test_zeros_stay():
    model = thinned(network(), lambda w: np.where(np.abs(w) < np.median(np.abs(w)), 0, w))
    before, after, context = trained(model)
    assert changed(before, after) == ROUNDED
    for name in ("w1_quantized", "w2_quantized", "w3_quantized"):
        first, later = (networks.weights(each)[name] for each in (before, after))
        assert not later[first == 0].any()
        assert np.count_nonzero(later) > 0.9 * np.count_nonzero(first)
    assert [each["name"] for each in context.record["kept"]] == ["w1", "w2", "w3"]


def test_few_values_stay_few():
    model = thinned(network(), lambda w: np.rint(w / np.abs(w).max() * 5) / 5 * np.abs(w).max())
    before, after, context = trained(model, rate=5e-4)
    assert changed(before, after) & {"w1_quantized", "w2_quantized", "w3_quantized"}
    for name in ("w1_quantized", "w2_quantized", "w3_quantized"):
        first, later = (networks.weights(each)[name] for each in (before, after))
        assert len(np.unique(later)) <= len(np.unique(first)) <= 11
    assert all(each["values"] <= 11 for each in context.record["kept"])


def test_through_the_pipeline():
    data = synthetic(graph_inputs(from_model(network())), seed=1, batch=64)
    options = " ".join(f"{name}={str(value).lower()}" for name, value in PLAIN.items())
    passes = f"quantize{{{options}}},qat{{steps=20 batch=16 rate=0.0001}}"
    result = surgeon.run(network(), passes, data=data, seed=0, force=True)
    facts = result.report["passes"][-1]
    assert facts["name"] == "qat"
    assert facts["changed"]
    assert facts["learned"]["changed"] > 0
    with pytest.raises(UsageError, match="needs a model that is 'qdq'"):
        surgeon.run(network(), "qat", data=data)


def test_of_a_cut_model_the_original_is_learned():
    data = synthetic(graph_inputs(from_model(network())), seed=1, batch=64)
    passes = "prune{macs=0.6 reconstruct=false},quantize{guard=false},qat{steps=60 batch=16 rate=0.0001}"
    result = surgeon.run(coarse(), passes, data=data, seed=0, force=True)
    training = result.report["passes"][-1]["training"]
    assert training["loss_before"] > 0.01  # what the cut costs; rounding costs a hundredth of it
    assert training["loss_after"] < 0.7 * training["loss_before"]


def test_a_model_from_elsewhere_needs_its_original(tmp_path: Path):
    model = network()
    graph, context = prepared(model)
    plain, wanted = to_model(graph), to_model(Qat(**QUICK).run(graph, context))
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    path = tmp_path / "float.onnx"
    onnx.save(model, path)
    with pytest.raises(UsageError, match="the float model that this one was made of is not known"):
        Qat().run(from_model(plain), context_for(model))
    found = Qat(**QUICK, original=str(path)).run(from_model(plain), context_for(model))
    assert all(
        np.array_equal(each, networks.weights(wanted)[name])
        for name, each in networks.weights(to_model(found)).items()
    )


def test_another_model_is_no_original(tmp_path: Path):
    graph, context = prepared(network())
    other = network()
    other.graph.node[-1].output[0] = other.graph.output[0].name = "z"
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(UsageError, match="the original has no such output"):
        Qat(original=str(tmp_path / "other.onnx")).run(graph, context)


def test_labels():
    """The loss that labels add is there, and shows in what is learned."""
    model = network()
    x = synthetic(graph_inputs(from_model(model)), seed=1, batch=64)["x"]
    labels = np.random.default_rng(0).integers(0, 10, 64)
    results = {}
    for wanted, given in ((False, labels), (False, None), (True, labels)):
        graph, context = prepared(model)
        context.data = dataset(from_model(model), x, given)
        after = to_model(Qat(**QUICK, labels=wanted, vary=False).run(graph, context))
        results[wanted, given is None] = after.SerializeToString(), context.record["training"]["loss_before"]
    assert results[False, False] == results[False, True]
    assert results[True, False][1] > results[False, False][1] + 1
    graph, context = prepared(model)
    with pytest.raises(DataError, match="no labels"):
        Qat(labels=True).run(graph, context)


def test_nothing_to_learn_is_said():
    model = network()
    graph, context = prepared(model)
    before = to_model(graph).SerializeToString()
    after = Qat(**QUICK, exclude=("*",)).run(graph, context)
    assert to_model(after).SerializeToString() == before
    assert context.record["training"]["steps"] == 0
    assert context.warnings[-1].startswith("no weight was trained: w1_quantized: excluded")


def test_samples_and_checkpoints(tmp_path: Path):
    path = tmp_path / "training.npz"
    graph, context = prepared(network())
    first = to_model(Qat(**QUICK, samples=32, checkpoint=str(path)).run(graph, context))
    graph, context = prepared(network())
    again = to_model(Qat(**QUICK, samples=32, checkpoint=str(path)).run(graph, context))
    assert first.SerializeToString() == again.SerializeToString()
    graph, context = prepared(network())
    with pytest.raises(UsageError, match="other options, weights or data"):
        Qat(**QUICK, samples=48, checkpoint=str(path)).run(graph, context)


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"batch": 0}, {"rate": 0.0}, {"samples": 0}, {"memory": 0}, {"patience": 0}]
)
def test_options_are_checked(options):
    (option,) = options
    with pytest.raises(UsageError, match=rf"qat\.{option}"):
        Qat(**options)


@pytest.mark.parametrize(
    ("mode", "left", "stopped"),
    [
        (
            "dynamic",
            {"qb": "MatMulInteger reads integers that no DequantizeLinear stands before"},
            {"w1", "b1", "w2"},
        ),
        ("weights", {"second": "its weight is computed"}, set()),
    ],
)
def test_other_modes_say_what_stays(mode, left, stopped):
    options = {"mode": mode, "calibration": Quantize.calibration, "rounding": Quantize.rounding}
    if mode == "weights":
        options["per_channel"] = True
    before, after, context = trained(network(), options)
    found = context.record["learned"]["left"]
    assert {each["node"]: each["reason"] for each in found} == left
    assert context.record["training"]["stopped"].keys() == stopped
    assert not {name for name in changed(before, after) if "quantized" in name}
    assert context.record["changed"] == (mode == "weights")
