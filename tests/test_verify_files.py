"""Checking a certificate again from the files alone: what holds, and everything that must not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from onnx import numpy_helper

import surgeon
from surgeon.cli import main
from surgeon.engine import analyse
from surgeon.errors import GateError, UsageError
from surgeon.graph.load import load
from surgeon.graph.save import save
from surgeon.graph.source import source_of
from surgeon.plan import Plan
from surgeon.replay import verify_files


@pytest.fixture
def files(tmp_path):
    """The original, a model with every group halved, and the plan."""
    return cut(tiny.convnet(tmp_path / "a.onnx"), tmp_path)


def cut(path: Path, folder: Path, after: tuple[str, ...] = ()) -> tuple[Path, Path, Path]:
    graph = load(path)
    sha256 = source_of(graph).sha256
    model = analyse(graph)
    smaller, plan = model.cut({g.id: np.arange(g.size) % 2 == 0 for g in model.groups}, sha256)
    save(smaller, folder / "b.onnx")
    replace(plan, after=after).save(folder / "b.plan.json")
    return path, folder / "b.onnx", folder / "b.plan.json"


def edited(path: Path, change) -> Path:
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    return path


def test_a_cut_holds(files):
    found = verify_files(*files)
    assert found.certificate.status == "exact"
    assert found.certificate.max_rel_err <= 1e-4
    assert found.certificate.probes == 3
    assert (found.weights, found.difference) == ("original", 0.0)


def test_a_plan_without_a_cut_says_so(tmp_path):
    before = tiny.convnet(tmp_path / "a.onnx")
    Plan(source_of(load(before)).sha256, ()).save(tmp_path / "p.json")
    found = verify_files(before, before, tmp_path / "p.json")
    assert found.certificate.status == "none"
    assert found.weights == "original"


def test_other_weights_are_structure_only(files):
    before, after, plan = files

    def refit(model):
        weight = model.graph.initializer[0]
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.5, weight.name))

    edited(after, refit)
    found = verify_files(before, after, plan)
    assert found.certificate.status == "exact"
    assert found.weights == "changed"
    assert found.difference > 1e-3


def test_the_uncut_model_is_not_the_result(files):
    before, _, plan = files
    with pytest.raises(GateError, match=r"weight \w+ has shape"):
        verify_files(before, before, plan)


def test_another_original_is_refused(files, tmp_path):
    _, after, plan = files
    with pytest.raises(GateError, match="hashes differ"):
        verify_files(tiny.convnet(tmp_path / "other.onnx", seed=1), after, plan)


def test_a_changed_plan_is_refused(files):
    before, after, plan = files
    body = json.loads(plan.read_text())
    body["groups"][0]["kept"][0] = 1
    plan.write_text(json.dumps(body))
    with pytest.raises(GateError, match="changed after it was written"):
        verify_files(before, after, plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: replace(plan.groups[0], id="nothing:0"), "no channel group nothing:0"),
        (lambda plan: replace(plan.groups[0], size=5), "of size 5"),
        (lambda plan: replace(plan.groups[0], kept=()), "not ascending"),
        (lambda plan: replace(plan.groups[0], kept=(0, 99)), "not ascending"),
        (lambda plan: replace(plan.groups[0], kept=(1, 0)), "not ascending"),
        (lambda plan: replace(plan.groups[0], kept=(0, 1)), "do not follow from its groups"),
    ],
)
def test_a_forged_plan_is_refused(files, change, message):
    before, after, path = files
    plan = Plan.load(path)
    forged = replace(plan, groups=(change(plan), *plan.groups[1:]))
    body = forged.to_json()
    path.write_text(json.dumps(body))
    with pytest.raises(GateError, match=message):
        verify_files(before, after, path)


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 2}', "not json"])
def test_what_is_no_plan_is_bad_usage(files, text):
    before, after, plan = files
    plan.write_text(text)
    with pytest.raises(UsageError):
        verify_files(before, after, plan)


def test_a_renamed_output_is_refused(files):
    before, after, plan = files

    def rename(model):
        model.graph.output[0].name = model.graph.node[-1].output[0] = "z"

    edited(after, rename)
    with pytest.raises(GateError, match="outputs are not those"):
        verify_files(before, after, plan)


def test_a_batch_that_became_fixed_is_refused(files):
    before, after, plan = files
    edited(
        after, lambda model: model.graph.input[0].type.tensor_type.shape.dim[0].__setattr__("dim_value", 1)
    )
    with pytest.raises(GateError, match="inputs are not those"):
        verify_files(before, after, plan)


def test_a_missing_weight_is_refused(files):
    before, after, plan = files

    def drop(model):
        """The last layer is replaced by one that reads a smaller matrix of another name."""
        gemm = model.graph.node[-1]
        weight = next(w for w in model.graph.initializer if w.name == gemm.input[1])
        model.graph.initializer.remove(weight)
        smaller = numpy_helper.to_array(weight)[:, :-1]
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(smaller), "other"))
        gemm.input[1] = "other"

    edited(after, drop)
    with pytest.raises(GateError, match="has no weight of shape"):
        verify_files(before, after, plan)


def test_lossless_passes_are_replayed(demo, tmp_path):
    out = tmp_path / "o.onnx"
    surgeon.run(demo, passes="prune{ratio=0.25}", destination=out)
    plan = Plan.load(tmp_path / "o.plan.json")
    assert plan.after == ("clean",)
    found = verify_files(demo, out, tmp_path / "o.plan.json")
    assert found.certificate.status == "exact"


def test_a_quantized_model_is_checked_for_structure(demo, tmp_path):
    out = tmp_path / "q.onnx"
    surgeon.run(
        demo, passes="prune{ratio=0.25},quantize{mode=dynamic guard=false}", destination=out, force=True
    )
    found = verify_files(demo, out, tmp_path / "q.plan.json")
    assert (found.certificate.status, found.weights) == ("exact", "changed")


def test_a_pass_that_is_not_lossless_is_refused(tmp_path):
    """A plan that claims to follow a pruning cannot be compared with the original."""
    path, out, plan = cut(tiny.convnet(tmp_path / "a.onnx"), tmp_path, after=("prune{ratio=0.25}",))
    with pytest.raises(GateError, match="changes what the model computes"):
        verify_files(path, out, plan)


def test_the_command_reports_both_facts(files, capsys):
    before, after, plan = map(str, files)
    assert main(["verify", before, after, "--plan", plan, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["schema"] == 1
    assert set(facts["certificate"]) == {"status", "max_rel_err", "probes"}
    assert facts["output"] == {"weights": "original", "max_rel_err": 0.0}
    assert main(["verify", before, after, "--plan", plan]) == 0
    said = capsys.readouterr().out
    assert "proved: equal to the masked original" in said
    assert "original weights" in said


def test_the_command_fails_with_exit_code_1(files, capsys):
    before, _, plan = map(str, files)
    assert main(["verify", before, before, "--plan", plan]) == 1
    assert "has shape" in capsys.readouterr().err
