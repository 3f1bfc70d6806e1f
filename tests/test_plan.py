"""Plans can be saved, read back, and are refused when they were changed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ops.oracle import drop, features, ints, of_size, solved

import surgeon
from surgeon.errors import GateError, SurgeonError, UsageError
from surgeon.plan import GroupPlan, Plan
from surgeon.replay import verify_files


def a_plan() -> Plan:
    return Plan(
        "0" * 64,
        (GroupPlan("w:0", "channel", 4, (0, 3)), GroupPlan("v:1", "head", 2, (1,))),
        {"w": {0: (0, 3), 1: (2,)}},
        ("clean",),
    )


def test_a_plan_survives_a_round_trip(tmp_path):
    path = tmp_path / "model.plan.json"
    a_plan().save(path)
    assert Plan.load(path) == a_plan()


def test_what_is_kept():
    kept = a_plan().kept()
    assert kept["w:0"].tolist() == [True, False, False, True]
    assert kept["v:1"].tolist() == [False, True]


def test_the_file_is_what_the_contract_says(tmp_path):
    path = tmp_path / "model.plan.json"
    a_plan().save(path)
    body = json.loads(path.read_text())
    assert body["schema"] == 1
    assert body["model_sha256"] == "0" * 64
    assert body["groups"][0] == {"id": "w:0", "kind": "channel", "size": 4, "kept": [0, 3]}
    assert body["tensors"] == {"w": {"0": [0, 3], "1": [2]}}
    assert len(body["sha256"]) == 64


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body["groups"][0]["kept"].append(2),
        lambda body: body["tensors"]["w"]["0"].pop(),
        lambda body: body.update(model_sha256="1" * 64),
        lambda body: body.update(sha256="1" * 64),
        lambda body: body.pop("sha256"),
    ],
)
def test_a_changed_plan_is_refused(tmp_path, change):
    path = tmp_path / "model.plan.json"
    a_plan().save(path)
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))
    with pytest.raises(GateError, match="changed"):
        Plan.load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", '{"schema": 2}', '"plan"'])
def test_what_is_no_plan_is_refused(tmp_path, text):
    path = tmp_path / "model.plan.json"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        Plan.load(path)
    assert str(path) in str(caught.value)


def test_a_missing_plan_is_refused(tmp_path):
    with pytest.raises(SurgeonError, match="cannot read the plan"):
        Plan.load(tmp_path / "nothing.json")


def test_the_same_plan_has_the_same_hash():
    assert a_plan().to_json() == a_plan().to_json()
    assert a_plan().to_json()["sha256"] != Plan("1" * 64, (), {}).to_json()["sha256"]


def test_a_plan_replays():
    """Cutting by what a saved plan keeps gives the same model."""
    body = "r = Reshape (a, s)\nb = Reshape (r, j)"
    model = features(body, 12, {"s": ints(0, 0, 3, 4), "j": ints(0, 0, -1)})
    found = solved(model)
    _, plan = found.cut({of_size(found, 3).id: drop(3, 1), of_size(found, 4).id: drop(4, 0)}, "abc")
    assert plan.model_sha256 == "abc"
    again, replayed = solved(model).cut(plan.kept(), "abc")
    assert replayed == plan
    np.testing.assert_array_equal(
        again.nodes[0].inputs[1].values,
        found.analysis.graph.nodes[0].inputs[1].values[:, list(plan.tensors["w_in"][1])],
    )


def test_two_cuts_are_one_plan():
    first = Plan("h", (GroupPlan("a", "channel", 4, (0, 2, 3)),), {"w": {0: (0, 2, 3)}})
    later = Plan(
        "h",
        (GroupPlan("a", "channel", 3, (1, 2)), GroupPlan("b", "channel", 2, (1,))),
        {"w": {0: (1, 2), 1: (1,)}, "v": {0: (1,)}},
    )
    both = first.then(later)
    assert both.groups == (GroupPlan("a", "channel", 4, (2, 3)), GroupPlan("b", "channel", 2, (1,)))
    assert both.tensors == {"w": {0: (2, 3), 1: (1,)}, "v": {0: (1,)}}


def test_a_plan_of_two_cuts_can_be_verified(demo, tmp_path):
    result = surgeon.run(demo, "prune{macs=0.7 score=l2},prune{macs=0.8 score=l2}")
    surgeon.save(result.model, tmp_path / "small.onnx")
    result.plan.save(tmp_path / "plan.json")
    found = verify_files(demo, tmp_path / "small.onnx", tmp_path / "plan.json")
    assert found.weights == "original"
