"""The pass cluster: values are counted on what it returns, data help, and what is encoded decodes to the same numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper as nh
from passes.test_sparsify import MATRICES, depthwise, error, odd, products, weights
from quantizable import context_for, network, weight

import surgeon
from surgeon.errors import UsageError
from surgeon.graph.load import from_model, load
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.passes import Context, Graph, Pass
from surgeon.stats.data import graph_inputs
from surgeon.stats.encode import indices_of_bytes, packed
from surgeon.stats.matrices import weights_of
from surgeon.stats.synthetic import synthetic
from surgeon_passes.cluster import Cluster


def clustered(model: onnx.ModelProto, context: Context, **options) -> onnx.ModelProto:
    return to_model(Cluster(**options).run(from_model(model), context))


@pytest.mark.parametrize("init", ["k-means++", "linear", "density", "random"])
@pytest.mark.parametrize("clusters", [2, 7, 16])
def test_every_weight_has_few_values(init: str, clusters: int) -> None:
    context = context_for(network())
    result = weights(clustered(network(), context, clusters=clusters, init=init))
    reported = {entry["name"]: entry for entry in context.record["tensors"]}  # type: ignore[attr-defined]  # JSON
    for name in MATRICES:
        count = len(np.unique(result[name]))
        assert count == clusters
        assert reported[name]["values"] == reported[name]["distinct_values"] == count
        assert reported[name]["error_after"] <= reported[name]["error_before"]
    assert len(np.unique(result["b1"])) == 32  # biases are no weights


def test_every_channel_has_few_values() -> None:
    context = context_for(network())
    result = weights(clustered(network(), context, clusters=4, per_channel=True))
    for name in MATRICES:
        assert all(len(np.unique(channel)) <= 4 for channel in result[name])
        assert len(np.unique(result[name])) > 4
    assert all(entry["values"] == 4 for entry in context.record["tensors"])  # type: ignore[attr-defined]  # JSON


def test_data_help() -> None:
    plain = error(network(), clustered(network(), context_for(network()), clusters=4, refit=False))
    found = error(network(), clustered(network(), context_for(network()), clusters=4))
    assert found < 0.3 * plain
    context = context_for(network(), data=False)
    without = clustered(network(), context, clusters=4)
    assert error(network(), without) == pytest.approx(plain)
    assert any("nothing makes up for that" in text for text in context.warnings)


@pytest.mark.parametrize("keep_zeros", [True, False])
def test_zeros(keep_zeros: bool) -> None:
    data = synthetic(graph_inputs(from_model(network())), seed=1, batch=64)
    chain = f"sparsify{{sparsity=0.6 scope=layer}},cluster{{clusters=5 keep_zeros={str(keep_zeros).lower()}}}"
    result = weights(to_model(surgeon.run(network(), chain, data=data).graph))
    for name in MATRICES:
        assert len(np.unique(result[name])) <= 5
        assert ((result[name] == 0).mean() >= 0.6) == keep_zeros


def test_weights_of_every_kind() -> None:
    context = context_for(odd())
    result = clustered(odd(), context, clusters=8)
    found = {entry["node"]: entry for entry in context.record["tensors"]}  # type: ignore[attr-defined]  # JSON
    assert found.keys() == {"once", "behind", "on the left", "lstm[1]", "lstm[2]", "inside"}
    assert all(entry["values"] <= 8 for entry in found.values())
    assert {name for name, entry in found.items() if entry["error_after"] is None} == {"once", "inside"}
    assert error(odd(), result) < error(odd(), clustered(odd(), context_for(odd()), clusters=8, refit=False))


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 40), st.integers(0, 999))
def test_bytes_hold_indices(bits: int, count: int, seed: int) -> None:
    indices = np.random.default_rng(seed).integers(0, 2**bits, count)
    stored = packed(indices, bits)
    assert len(stored) == -(-count * bits // 8)
    assert np.array_equal(indices_of_bytes(bits)[stored].ravel()[:count], indices)


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        ("clusters=2", 1),
        ("clusters=4", 2),
        ("clusters=16", 4),
        ("clusters=100", 8),
        ("clusters=4 per_channel=true", 2),
    ],
)
@pytest.mark.parametrize("make", [network, odd])
def test_decoding_gives_the_same_numbers(options: str, bits: int, make, tmp_path: Path) -> None:
    model = make()
    data = synthetic(graph_inputs(from_model(model)), seed=1, batch=16)
    floats, encoded = (
        surgeon.run(model, f"cluster{{{options}{more}}}", data=data, seed=3) for more in ("", " encode=true")
    )
    feeds = synthetic(graph_inputs(from_model(model)), seed=9, batch=4)
    for optimize in (False, True):
        ours, theirs = (
            run(session(to_model(each.graph), optimize=optimize), feeds)[0] for each in (encoded, floats)
        )
        assert np.array_equal(ours, theirs)
    stored = encoded.report["passes"][-1]["encoded"]
    assert [entry["bits"] for entry in stored if "bits" in entry]
    assert all(entry["bits"] == bits for entry in stored if "bits" in entry)
    assert encoded.report["after"]["bytes"] < floats.report["after"]["bytes"]
    counted = {entry["name"]: entry["distinct_values"] for entry in floats.report["passes"][-1]["tensors"]}
    assert max(counted.values()) <= 2**bits or "per_channel" in options
    # nothing is left to decode once the model is loaded
    settings = ort.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    settings.log_severity_level = 4
    ort.InferenceSession(
        to_model(encoded.graph).SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    assert "Gather" not in {node.op_type for node in onnx.load(tmp_path / "loaded.onnx").graph.node}


def test_what_would_not_get_smaller_stays() -> None:
    data = synthetic(graph_inputs(from_model(odd())), seed=1, batch=16)
    report = surgeon.run(odd(), "cluster{clusters=4 encode=true}", data=data).report
    reasons = {entry["name"]: entry.get("reason") for entry in report["passes"][-1]["encoded"]}
    assert reasons["left"] == reasons["shared"] == "it would not get smaller"
    assert reasons["lw"] is None


def test_encoded_twice_and_not_at_all(tmp_path: Path) -> None:
    data = synthetic(graph_inputs(from_model(odd())), seed=1, batch=16)
    chain = "cluster{include=lw encode=true},cluster{include=lr encode=true}"
    first = surgeon.run(odd(), chain, data=data, destination=tmp_path / "one.onnx")
    surgeon.load(tmp_path / "one.onnx")  # which refuses two constants of one name
    assert [entry["bits"] for facts in first.report["passes"][-2:] for entry in facts["encoded"]] == [4, 4]
    data = synthetic(graph_inputs(from_model(network())), seed=1, batch=16)
    quantized = surgeon.run(network(), "cluster{encode=true},quantize{guard=false}", data=data, force=True)
    assert quantized.report["passes"][-2]["encoded"] == []


@pytest.mark.parametrize("options", ["clusters=16", "clusters=4 per_channel=true"])
def test_an_encoded_file_is_read_as_plain_weights(options: str, tmp_path: Path) -> None:
    data = synthetic(graph_inputs(from_model(network())), seed=1, batch=64)
    path = tmp_path / "encoded.onnx"
    passes = f"cluster{{{options}}}"
    floats = surgeon.run(network(), passes, data=data).graph
    surgeon.run(network(), f"cluster{{{options} encode=true}}", data=data, destination=path)
    stored = len(onnx.load(path).graph.node)
    graph = load(path)
    assert stored > len(graph.nodes) == len(floats.nodes)
    ours, theirs = weights(to_model(graph)), weights(to_model(floats))
    assert all(np.array_equal(ours[name], theirs[name]) for name in MATRICES)
    for after in ("sparsify{sparsity=0.3}", "prune{params=0.8 multiple_of=1}", "cluster{clusters=2}"):
        result = surgeon.run(path, after, data=data, force=True, destination=tmp_path / "after.onnx")
        assert result.report["passes"][-1]["changed"]
        made = onnx.load(tmp_path / "after.onnx")
        assert any(node.op_type == "Gather" for node in made.graph.node)  # stored as before
        assert not [text for text in result.report["warnings"] if "are stored as floats" in text]
        feeds = synthetic(graph_inputs(from_model(network())), seed=2, batch=4)
        assert np.array_equal(*(run(session(each), feeds)[0] for each in (made, to_model(result.graph))))
    assert surgeon.run(path, "quantize{guard=false}", data=data, force=True).report["passes"][-1]["changed"]


def test_what_gets_too_many_values_is_stored_as_floats(tmp_path: Path) -> None:
    data = synthetic(graph_inputs(from_model(network())), seed=1, batch=64)
    path = tmp_path / "encoded.onnx"
    surgeon.run(network(), "cluster{clusters=200 refit=false encode=true}", destination=path)
    result = surgeon.run(path, [Jitter()], data=data, force=True)
    assert [text for text in result.report["warnings"] if "are stored as floats; the first: w2" in text]
    assert not any(node.op == "Gather" for node in result.graph.nodes)


@dataclass(frozen=True)
class Jitter(Pass):
    """Every number another one."""

    name = "jitter"

    def run(self, graph: Graph, context: Context) -> Graph:
        for each in weights_of(graph):
            values = each.matrices()
            each.set(values + np.linspace(0, 1e-3, values.size, dtype="f").reshape(values.shape))
        return graph


def test_bytes_that_are_not_full_before_opset_10() -> None:
    model = products((63, 101), then=[oh.make_node("Identity", ["r0"], ["y"])])
    model.opset_import[0].version = 9
    data = synthetic(graph_inputs(from_model(model)), seed=1, batch=16)
    floats, encoded = (surgeon.run(model, f"cluster{{{more}}}", data=data) for more in ("", "encode=true"))
    feeds = synthetic(graph_inputs(from_model(model)), seed=9, batch=4)
    assert np.array_equal(*(run(session(to_model(each.graph)), feeds)[0] for each in (floats, encoded)))


def test_few_values_of_half_precision_are_counted(tmp_path: Path) -> None:
    """numpy has sorted long arrays of few numbers in half precision wrong."""
    model = products((64, 80), then=[oh.make_node("Cast", ["r0"], ["y"], to=1)])
    model.graph.initializer[0].CopyFrom(nh.from_array(nh.to_array(weight("w0", 64, 80)).astype("e"), "w0"))
    model.graph.input[0].type.tensor_type.elem_type = 10
    context = context_for(model)
    result = weights(clustered(model, context, clusters=4))["w0"]
    assert result.dtype == np.float16
    assert len(np.unique(result.astype("f"))) == 4
    (entry,) = context.record["tensors"]  # type: ignore[misc]  # JSON
    assert entry["values"] == entry["distinct_values"] == 4
    data = synthetic(graph_inputs(from_model(model)), seed=1, batch=16)
    report = surgeon.run(model, "cluster{clusters=4 encode=true}", data=data).report
    assert [entry["bits"] for entry in report["passes"][-1]["encoded"]] == [2]


def test_the_same_twice_whatever_the_threads() -> None:
    texts = {
        clustered(network(), context_for(network(), threads=threads)).SerializeToString(deterministic=True)
        for threads in (1, 2, 1)
    }
    assert len(texts) == 1


@pytest.mark.parametrize("options", [{"clusters": 1}, {"clusters": 257}, {"samples": 0}, {"memory": 0}])
def test_options_are_checked(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=rf"cluster\.{next(iter(options))}"):
        Cluster(**options)


def test_groups_of_a_convolution_share_their_values() -> None:
    """No group is taken from one solution and another from another, whose values are others."""
    model = depthwise()
    result = weights(clustered(model, context_for(model), clusters=8))
    assert [len(np.unique(result[name])) for name in ("w1", "w2")] == [8, 8]
