"""The Python interface, from a model to a smaller one."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx.helper as oh
import pytest
import tiny
from onnx import numpy_helper as nh

import surgeon
from surgeon.passes import Context, Pass


@dataclass(frozen=True)
class Halve(Pass):
    """Drops the second convolution's influence without changing any shape."""

    name: ClassVar[str] = "halve"
    factor: float = 0.5

    def run(self, graph: Any, context: Context) -> Any:
        weight = graph.tensors()["w2"]
        weight.values = weight.values * np.float32(self.factor)
        context.record["samples"] = context.calibration().total()
        return graph


@pytest.fixture
def model(tmp_path):
    return tiny.convnet(tmp_path / "m.onnx")


def test_prune_a_path_and_write_everything(model, tmp_path):
    raw = model.read_bytes()
    out = tmp_path / "o" / "small.onnx"
    out.parent.mkdir()
    result = surgeon.run(
        model, passes=["prune{ratio=0.5}"], destination=out, report_folder=tmp_path / "r" / "s"
    )
    assert model.read_bytes() == raw
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "small.onnx", "small.plan.json", "small.recipe.toml", "small.report.json",
    ]  # fmt: skip
    facts = result.report
    assert json.loads((out.parent / "small.report.json").read_text()) == facts
    assert (tmp_path / "r" / "s" / "small.report.md").read_text().startswith("# ")
    assert facts["schema"] == 1
    assert facts["before"]["bytes"] == model.stat().st_size
    assert facts["after"]["bytes"] == out.stat().st_size
    assert facts["before"]["params"] == sum(int(np.prod(shape)) for shape in tiny.SHAPES.values())
    assert facts["before"]["macs"] == 16 * 27 * 64 + 24 * 144 * 64 + 240
    assert facts["after"]["params"] == sum(
        int(np.prod(t.dims)) for t in onnx.load(str(out)).graph.initializer if t.dims
    )
    assert facts["after"]["macs"] < 0.5 * facts["before"]["macs"]
    assert facts["before"]["metric"] is None
    assert facts["before"]["latency_ms"] is None
    assert facts["groups"]["cut"] == facts["groups"]["total"] == 2
    assert facts["certificate"]["status"] == "exact"
    assert [each["name"] for each in facts["passes"]] == ["clean", "prune"]
    assert json.loads((out.parent / "small.plan.json").read_text())["model_sha256"] == facts["model_sha256"]
    assert result.plan is not None
    assert result.model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    written = tomllib.loads((out.parent / "small.recipe.toml").read_text())
    assert [each["name"] for each in written["passes"]] == ["clean", "prune"]


@pytest.mark.parametrize("mode", ["static", "dynamic", "fp16"])
def test_a_quantized_model_can_be_cut(model, tmp_path, mode):
    quantized, data = tmp_path / "q.onnx", tiny.samples(tmp_path / "d.npz", labels=False)
    surgeon.run(model, f"quantize{{mode={mode} guard=false}}", data=data, destination=quantized, force=True)
    facts = surgeon.run(quantized, "prune{ratio=0.5}", data=data).report
    assert facts["certificate"]["status"] == "exact"
    assert facts["groups"]["cut"] == 2
    assert facts["after"]["params"] < 0.5 * facts["before"]["params"]
    refitted = facts["passes"][-1]["reconstruct"]["operators"]
    assert bool(refitted) != any("refitted" in warning for warning in facts["warnings"])


def test_what_a_run_quantizes_is_cut_before(model):
    with pytest.raises(surgeon.UsageError, match="put prune before quantize"):
        surgeon.run(model, ["quantize", "prune"])


def test_a_recipe_repeats_a_run_byte_for_byte(model, tmp_path):
    first, second, third = (tmp_path / name for name in ("a.onnx", "b.onnx", "c.onnx"))
    surgeon.run(model, "prune{ratio=0.25 score=l1}", destination=first, seed=3, threads=1)
    surgeon.run(model, recipe=tmp_path / "a.recipe.toml", destination=second, threads=2)
    surgeon.run(model, "prune{ratio=0.25 score=l1}", destination=third, seed=3)
    assert first.read_bytes() == second.read_bytes() == third.read_bytes()
    assert (tmp_path / "a.recipe.toml").read_text() == (tmp_path / "b.recipe.toml").read_text()
    assert (tmp_path / "a.plan.json").read_text() == (tmp_path / "b.plan.json").read_text()


def test_models_in_memory_and_pass_instances(model, tmp_path):
    before = sorted(tmp_path.iterdir())
    message = onnx.load(str(model))
    for given in (message, surgeon.load(model), str(model)):
        result = surgeon.run(given, [Halve(factor=0.25)])
        weight = next(t for t in result.model.graph.initializer if t.name == "w2")
        original = next(t for t in message.graph.initializer if t.name == "w2")
        assert np.array_equal(onnx.numpy_helper.to_array(weight), onnx.numpy_helper.to_array(original) / 4)
        assert result.plan is None
        assert result.report["output"] is None
        assert result.report["warnings"]
        assert "synthetic" in result.report["warnings"][0]
        assert result.report["certificate"] == {"status": "none", "max_rel_err": None, "probes": 0}
    assert sorted(tmp_path.iterdir()) == before


def test_save_takes_models_and_graphs(model, tmp_path):
    surgeon.save(surgeon.load(model), tmp_path / "a.onnx")
    surgeon.save(onnx.load(str(model)), tmp_path / "b.onnx")
    assert onnx.load(str(tmp_path / "a.onnx")).graph == onnx.load(str(tmp_path / "b.onnx")).graph
    with pytest.raises(surgeon.UsageError):
        surgeon.save("text", tmp_path / "c.onnx")


def test_labelled_data_are_split_and_evaluated(model, tmp_path):
    data = tiny.samples(tmp_path / "d.npz", 20)
    facts = surgeon.run(model, [Halve()], data=data).report
    assert facts["metric"]["name"] == "top1"
    assert 0 <= facts["before"]["metric"] <= 1
    assert next(each for each in facts["passes"] if each["name"] == "halve")["samples"] == 18
    assert facts["warnings"] == []


def test_data_in_other_forms(model, tmp_path):
    arrays = dict(np.load(tiny.samples(tmp_path / "d.npz", 20)))
    unlabelled = {"x": arrays["x"]}

    def batches():
        for start in range(0, 20, 8):
            yield {name: array[start : start + 8] for name, array in arrays.items()}

    for data, count, metric in ((arrays, 18, "top1"), (unlabelled, 20, None), (batches, 18, "top1")):
        facts = surgeon.run(model, [Halve()], data=data).report
        assert facts["passes"][-1]["samples"] == count
        assert (facts["metric"] or {}).get("name") == metric
    facts = surgeon.run(model, [Halve()], data=unlabelled, evaluation=unlabelled).report
    assert facts["metric"]["name"] == "agreement"
    assert facts["before"]["metric"] == 1.0
    facts = surgeon.run(model, [Halve()], data=unlabelled, max_drop=1.0).report
    assert facts["passes"][-1]["samples"] == 18
    assert facts["metric"]["name"] == "agreement"
    with pytest.raises(surgeon.UsageError, match="needs labels"):
        surgeon.run(model, [Halve()], data=unlabelled, max_drop=1.0, metric="top1")
    with pytest.raises(surgeon.UsageError, match="expected a path"):
        surgeon.run(model, [Halve()], data=3)
    with pytest.raises(surgeon.DataError):
        surgeon.run(model, [Halve()], data={"wrong": arrays["x"]})


def test_gates(model, tmp_path):
    data, out = tiny.samples(tmp_path / "d.npz", 40), tmp_path / "o.onnx"
    before = sorted(tmp_path.iterdir())
    with pytest.raises(
        surgeon.GateError, match=r"target params: reached 1\.000 of the original, asked for 0.5"
    ):
        surgeon.run(model, [Halve()], target={"params": 0.5}, destination=out)
    with pytest.raises(surgeon.GateError, match=r"--max-drop: cosine went from 1\.0000"):
        surgeon.run(
            model, [Halve(factor=-500.0)], evaluation=data, metric="cosine", max_drop=0.0, destination=out
        )
    with pytest.raises(surgeon.UsageError, match="needs data to measure accuracy on"):
        surgeon.run(model, [Halve()], max_drop=0.1, destination=out)
    with pytest.raises(surgeon.GateError, match="nothing to do: halve changed nothing"):
        surgeon.run(model, [Halve(factor=1.0)], destination=out)
    with pytest.raises(surgeon.GateError, match="nothing to do"):
        surgeon.run(model, "clean,clean", destination=out)
    with pytest.raises(
        surgeon.GateError, match=r"distill changed nothing \(warnings of the run: .*made nothing better"
    ) as caught:
        surgeon.run(model, "distill{steps=2 rate=1e-9}", data=data, destination=out)
    assert "channel groups" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_gate_on_decisions_wants_a_model_that_decides(model, tmp_path):
    single = onnx.load(str(model))
    for tensor in single.graph.initializer:
        if tensor.name in ("w3", "b3"):
            values = onnx.numpy_helper.to_array(tensor)[:1].copy()
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    single.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    data = tiny.samples(tmp_path / "d.npz", 40, labels=False)
    with pytest.raises(surgeon.UsageError, match="always agrees") as caught:
        surgeon.run(single, [Halve()], data=data, max_drop=0.1)
    assert "mse" in caught.value.hint
    assert (
        surgeon.run(single, [Halve()], data=data, max_drop=0.5, metric="mse").report["metric"]["name"]
        == "mse"
    )


def test_a_result_that_does_not_load_is_not_written(model, tmp_path):
    @dataclass(frozen=True)
    class Spoil(Pass):
        name: ClassVar[str] = "spoil"

        def run(self, graph: Any, context: Context) -> Any:
            graph.nodes[0].op = "NoSuchOperator"
            return graph

    with pytest.raises(surgeon.GateError, match="does not run in onnxruntime"):
        surgeon.run(model, [Spoil()], destination=tmp_path / "o.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_latency_target(model):
    with pytest.raises(surgeon.GateError, match="target latency"):
        surgeon.run(model, [Halve()], target={"latency": 0.01})
    facts = surgeon.run(model, [Halve()], latency=True).report
    assert facts["before"]["latency_ms"] > 0
    assert facts["after"]["latency_ms"] > 0


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"exclude": ["nothing_like_this*"]}, "matches no node and no tensor"),
        ({"exclude": ["Conv_1"]}, "did you mean 'Conv_"),
        ({"metric": "topp1"}, "top1"),
        ({"threads": 0}, "threads"),
        ({"seed": -1}, "seed"),
        ({"target": {"mac": 0.5}}, "did you mean 'macs'"),
        ({"report_folder": "r"}, "needs a destination"),
        ({"passes": "haalve"}, "no such pass"),
        ({"passes": [3]}, "expected a pass or its name"),
    ],
)
def test_wrong_arguments(model, keywords, said):
    with pytest.raises(surgeon.UsageError, match=said):
        surgeon.run(model, **{"passes": [Halve()], **keywords})


def test_a_name_with_brackets_is_suggested_as_the_pattern_that_matches_it(model):
    model = onnx.load(model)
    model.graph.node[0].name = "/net[0]/conv"
    with pytest.raises(surgeon.UsageError) as caught:
        surgeon.run(model, passes=[Halve()], exclude=["/net[0]/conv"])
    assert caught.value.hint == "did you mean '/net[[]0]/conv'?"
    surgeon.run(model, passes=[Halve()], exclude=["/net[[]0]/conv"])


def test_warnings_reach_the_monitor(model):
    class Listening:
        said: ClassVar[list[str]] = []

        def warn(self, text: str) -> None:
            self.said.append(text)

        def progress(self, label: str, total: int | None) -> Any:
            from contextlib import nullcontext

            return nullcontext(lambda steps: None)

    surgeon.run(model, [Halve(), Halve()], monitor=Listening())
    assert len(Listening.said) == 1


def test_names_are_exported_lazily():
    assert surgeon.Pass is Pass
    assert set(surgeon.__all__) <= set(dir(surgeon))
    for name in surgeon.__all__:
        assert getattr(surgeon, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = surgeon.nothing


@dataclass(frozen=True)
class Zero(Pass):
    """Makes a part of the second convolution zero, which only shows when the file is compressed."""

    name: ClassVar[str] = "zero"
    sizes: ClassVar[bool] = True

    def run(self, graph: Any, context: Context) -> Any:
        weight = graph.tensors()["w2"]
        values = weight.values.copy()
        values[4:] = 0
        weight.values = values
        return graph


def test_a_pass_can_ask_for_sizes(model):
    before, after = (surgeon.run(model, passes=[Zero()]).report[key] for key in ("before", "after"))
    assert before["nonzeros"] - after["nonzeros"] == 20 * 16 * 9
    assert before["distinct_values"] - after["distinct_values"] >= 20 * 16 * 9 - 10
    assert after["gzip_bytes"] < 0.5 * before["gzip_bytes"]
    assert after["zstd_bytes"] < 0.5 * before["zstd_bytes"]
    assert after["bytes"] > 0.9 * before["bytes"]


def test_sizes_are_not_measured_unasked(model):
    unasked = surgeon.run(model, passes=[Halve()]).report
    assert all(
        unasked[key][name] is None for key in ("before", "after") for name in ("gzip_bytes", "nonzeros")
    )
    asked = surgeon.run(model, passes=[Halve()], sizes=True).report
    assert asked["before"]["nonzeros"] == asked["after"]["nonzeros"] == 16 * 27 + 24 * 144 + 240


def test_encoded_weights_stay_encoded_in_memory_as_in_files(tmp_path):
    random = np.random.default_rng(0)
    weights = [
        nh.from_array(random.standard_normal(s).astype("f"), n) for n, s in (("a", (64, 64)), ("b", (64, 64)))
    ]
    nodes = [
        oh.make_node("MatMul", ["x", "a"], ["h"]),
        oh.make_node("Relu", ["h"], ["r"]),
        oh.make_node("MatMul", ["r", "b"], ["y"]),
    ]
    ends = [oh.make_tensor_value_info(n, 1, ["N", 64]) for n in "xy"]
    plain = oh.make_model(
        oh.make_graph(nodes, "g", ends[:1], ends[1:], weights),
        opset_imports=[oh.make_opsetid("", 17)],
        ir_version=8,
    )
    path, again, cut = (tmp_path / f"{name}.onnx" for name in ("encoded", "again", "cut"))
    surgeon.run(plain, "cluster{encode=true}", destination=path)
    assert path.stat().st_size < 0.2 * plain.ByteSize()
    surgeon.save(surgeon.load(path), again)
    assert again.stat().st_size <= path.stat().st_size
    surgeon.run(onnx.load(path), "prune{ratio=0.5}", destination=cut)
    assert cut.stat().st_size < path.stat().st_size


def test_labels_that_the_metric_does_not_fit_are_told_before_any_pass_runs(tmp_path, monkeypatch):
    model, data = tiny.convnet(tmp_path / "m.onnx"), tmp_path / "d.npz"
    x = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)
    np.savez(data, x=x, labels=np.zeros((16, 5, 5), np.int64))

    def run(self, graph, context):
        raise AssertionError("it ran")

    monkeypatch.setattr("surgeon_passes.prune.Prune.run", run)
    with pytest.raises(surgeon.DataError, match="values per sample"):
        surgeon.run(model, "prune{ratio=0.5}", data=str(data))
