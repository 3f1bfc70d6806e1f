"""The pass equalize: ranges become more equal, the function stays, what is left alone has a reason, and it fits into runs."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.oracle import build
from random_graphs import network

import surgeon
from surgeon.errors import PassError, UsageError
from surgeon.graph.copy import copy_of
from surgeon.graph.load import from_model, load
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session, with_outputs
from surgeon.passes import Context
from surgeon.pipeline import same
from surgeon.replay import verify_files
from surgeon.stats.data import graph_inputs
from surgeon.stats.synthetic import synthetic, synthetic_dataset
from surgeon.verify import relative_error
from surgeon_passes.equalize import Equalize
from surgeon_passes.quantize import Quantize


def uneven(kind: str = "Relu"):
    """A depthwise separable network whose channels differ in range by a factor of thousand."""
    random = np.random.default_rng(0)
    scale = np.logspace(-1.5, 1.5, 8)
    w1 = random.standard_normal((8, 3, 3, 3)) * scale[:, None, None, None]
    wd = random.standard_normal((8, 1, 3, 3)) * scale[random.permutation(8), None, None, None]
    w2 = random.standard_normal((8, 8, 1, 1))
    body = f"""
    c = Conv <pads=[1,1,1,1]> (x, w1, b1) r = {kind} (c) d = Conv <group=8, pads=[1,1,1,1]> (r, wd) e = {kind} (d)
    p = Conv (e, w2) q = Add (p, e) s = {kind} (q) g = GlobalAveragePool (s) f = Flatten (g) y = Gemm <transB=1> (f, w3)
    """
    weights = {
        "w1": w1.astype("f"),
        "b1": scale.astype("f"),
        "wd": wd.astype("f"),
        "w2": w2.astype("f"),
        "w3": (5, 8),
    }
    return build("float[N,3,8,8] x", "float[N,5] y", body, weights)


def context(graph, **more) -> Context:
    inputs = tuple(graph_inputs(graph))
    data = synthetic_dataset(inputs, seed=3, samples=32)
    return Context(source_path=Path("model.onnx"), inputs=inputs, data=data, **more)


def outputs(graph, feeds, *names):
    runner = session(with_outputs(to_model(graph), names), optimize=False)
    return dict(zip([o.name for o in runner.get_outputs()], run(runner, feeds), strict=True))


def spread(array):
    """The largest over the geometric mean of the channels' ranges."""
    size = np.abs(array).max(axis=(0, 2, 3))
    return size.max() / np.exp(np.log(size).mean())


def test_ranges_become_equal_and_the_function_stays():
    graph = from_model(uneven())
    here = context(graph)
    result = Equalize().run(copy_of(graph), here)
    feeds = synthetic(graph_inputs(graph), seed=9, batch=16)
    before, after = (outputs(each, feeds, "r", "e") for each in (graph, result))
    assert relative_error([before["y"]], [after["y"]]) < 1e-5
    assert spread(before["r"]) > 10
    assert spread(after["r"]) < 2
    assert here.record["max_rel_err"] < 1e-5
    facts = {entry["tensor"]: entry for entry in here.record["equalized"]}
    assert facts["c"]["channels"] == 8
    assert facts["c"]["spread_after"] < facts["c"]["spread_before"] / 5
    assert facts["c"]["error_after"] < facts["c"]["error_before"]
    assert here.record["left"] == [{"tensor": "y", "channels": 5, "reason": "y: graph output"}]


def test_weights_of_the_input_graph_are_not_touched():
    graph = from_model(uneven())
    before = to_model(graph).SerializeToString()
    Equalize().run(copy_of(graph), context(graph))
    assert to_model(graph).SerializeToString() == before


def chain():
    """Two convolutions with a depthwise one in between, whose channels differ in range."""
    random = np.random.default_rng(2)
    scale = np.logspace(-1.5, 1.5, 8)[random.permutation(8)]
    weights = {
        "w1": (random.standard_normal((8, 3, 3, 3)) * scale[:, None, None, None]).astype("f"),
        "wd": (random.standard_normal((8, 1, 3, 3)) / scale[::-1, None, None, None]).astype("f"),
        "w2": (random.standard_normal((5, 8, 1, 1)) * (scale[::-1] / scale)[None, :, None, None]).astype("f"),
    }
    body = "c = Conv (x, w1) r = Relu (c) d = Conv <group=8> (r, wd) e = Relu (d) y = Conv (e, w2)"
    return build("float[N,3,8,8] x", "float[N,5,4,4] y", body, weights)


@pytest.mark.parametrize(("per_channel", "gain"), [(True, 3), (False, 10)])
def test_eight_bits_lose_less_afterwards(per_channel, gain):
    """With one scale per weight, weights that write channels count as well."""
    graph = from_model(chain())
    feeds = synthetic(graph_inputs(graph), seed=9, batch=64)
    wanted = outputs(graph, feeds)["y"]

    def error(**options):
        here = context(graph)
        found = Quantize(mode="static", guard=False, per_channel=per_channel, smooth=False, **options).run(
            copy_of(graph), here
        )
        return ((outputs(found, feeds)["y"] - wanted) ** 2).sum() / (wanted**2).sum()

    assert error(equalize=True) < error(equalize=False) / gain


def test_a_model_with_bounded_activations_is_left_as_it_is():
    body = "c = Conv (x, w1) r = Clip (c, zero, six) y = Conv (r, w2)"
    weights = {"w1": (8, 3, 1, 1), "w2": (4, 8, 1, 1), "zero": np.float32(0), "six": np.float32(6)}
    graph = from_model(build("float[N,3,4,4] x", "float[N,4,4,4] y", body, weights))
    here = context(graph)
    assert same(Equalize().run(copy_of(graph), here), graph)
    reasons = {entry["tensor"]: entry["reason"] for entry in here.record["left"]}
    assert "bounds are the same for all channels" in reasons["c"]
    assert reasons["y"] == "y: graph output"


def test_excluded_operators_stay():
    graph = from_model(uneven())
    here = context(graph)
    result = Equalize(exclude=("wd",)).run(copy_of(graph), here)
    names = {entry["tensor"] for entry in here.record["equalized"]}
    assert names == set()
    assert same(result, graph)
    assert any("excluded" in entry["reason"] for entry in here.record["left"])


def test_a_function_that_changed_is_refused(monkeypatch):
    from surgeon.scaling import apply

    graph = from_model(uneven())
    times = apply._times
    monkeypatch.setattr(apply, "_times", lambda values, ratio: times(values, ratio * 1.001))
    with pytest.raises(PassError, match="changed the outputs by"):
        Equalize().run(copy_of(graph), context(graph))


def test_options_are_checked():
    with pytest.raises(UsageError, match="at least 1"):
        Equalize(samples=0)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_random_networks_compute_what_they_did(seed):
    graph = from_model(network(Random(seed)))
    here = context(graph)
    result = Equalize(samples=8).run(copy_of(graph), here)
    feeds = synthetic(graph_inputs(graph), seed=5, batch=2)
    before, after = (list(outputs(each, feeds).values()) for each in (graph, result))
    assert relative_error(before, after) <= max(1e-5, here.record["max_rel_err"])


@pytest.mark.parametrize("order", [("prune", "equalize"), ("equalize", "prune")])
def test_it_runs_before_and_behind_prune(order, tmp_path):
    import onnx

    source, target = tmp_path / "model.onnx", tmp_path / "small.onnx"
    onnx.save(uneven(), str(source))
    data = tmp_path / "data.npz"
    np.savez(data, x=np.random.default_rng(1).standard_normal((32, 3, 8, 8)).astype("f"))
    passes = ",".join("prune{ratio=0.25}" if name == "prune" else name for name in order)
    passes = f"{passes},quantize{{guard=false}}"  # of a network this small the float one is the faster
    report = surgeon.run(source, passes=passes, data=str(data), destination=target, force=True).report
    assert [entry["name"] for entry in report["passes"]][-3:] == [*order, "quantize"]
    assert report["certificate"]["status"] == "exact"
    proved = verify_files(source, target, Path(report["files"]["plan"]))
    assert proved.certificate.status == "exact"
    feeds = {"x": np.load(data)["x"]}
    before, after = (run(session(path), feeds)[0] for path in (source, target))
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.8


def test_what_is_reconstructed_aims_at_scaled_tensors(tmp_path):
    """A block that is trained behind equalize learns from the original's tensors in their new units."""
    graph = from_model(uneven())
    from surgeon.reference import Reference

    here = context(graph, reference=Reference(copy_of(graph)))
    result = Equalize().run(copy_of(graph), here)
    feeds = synthetic(graph_inputs(graph), seed=9, batch=4)
    before, after = (outputs(each, feeds, "r", "d", "e", "s") for each in (graph, result))
    for name in ("r", "d", "e", "s", "y"):
        left = here.reference.left(name, before[name])
        np.testing.assert_allclose(left, after[name], rtol=1e-3, atol=1e-4 * np.abs(left).max())


@pytest.mark.parametrize(("name", "least"), [("cifar10_resnet20", 12), ("vww_mobilenet_v1", 20)])
def test_real_networks_compute_what_they_did(shared, name, least):
    graph = load(shared / "models" / f"{name}.onnx")
    here = context(graph)
    result = Equalize(samples=8).run(copy_of(graph), here)
    assert len(here.record["equalized"]) >= least
    assert here.record["max_rel_err"] < 1e-5
    feeds = synthetic(graph_inputs(graph), seed=5, batch=2)
    before, after = (list(outputs(each, feeds).values()) for each in (graph, result))
    assert relative_error(before, after) < 1e-5
