"""What inspect reports: the contract's fields, figures that agree with a run, and no model it fails on."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import tiny
from onnx import TensorProto, helper, numpy_helper, parser
from onnx.backend.test.case.node import collect_testcases
from rich.console import Console

from surgeon.cli import main
from surgeon.errors import UnsupportedModelError
from surgeon.graph.load import from_model, load
from surgeon.graph.save import to_model
from surgeon.inspect import inspect, render
from surgeon.measure import figures
from surgeon.report import to_json


def shown(facts, width=140):
    console = Console(file=io.StringIO(), width=width)
    console.print(render(facts))
    return console.file.getvalue()


def parsed(text):
    return from_model(parser.parse_model(text))


@pytest.fixture
def convnet(tmp_path):
    return load(tiny.convnet(tmp_path / "m.onnx"))


def test_the_fields_of_the_contract(convnet):
    facts = inspect(convnet)
    assert facts["schema"] == 1
    assert facts["nodes"] == 7
    assert facts["params"] == 16 * 27 + 16 + 24 * 16 * 9 + 24 + 240 + 10
    assert facts["macs"] == 64 * 16 * 27 + 64 * 24 * 16 * 9 + 240
    assert facts["unknown_ops"] == {}
    first, second = facts["groups"]
    assert (first["id"], first["kind"], first["size"]) == ("w1:0", "channel", 16)
    assert {"tensor": "w1", "axis": 0} in first["members"]
    assert {"tensor": "c1", "axis": 1} in first["members"]
    assert (first["producers"], first["consumers"]) == (["Conv_0"], ["Conv_2"])
    assert (second["producers"], second["consumers"]) == (["Conv_2"], ["Gemm_6"])
    assert second["params"] == 24 * 16 * 9 + 24 + 240
    assert first["macs"] == 64 * 16 * 27 + 64 * 24 * 16 * 9
    assert first["structural"] is None


def test_pinned_axes_name_their_operator_and_reason(convnet):
    pinned = inspect(convnet)["pinned"]
    taps = next(each for each in pinned if each["reason"] == "Conv Conv_0: kernel taps")
    assert (taps["size"], taps["op"], taps["why"]) == (3, "Conv Conv_0", "kernel taps")
    assert taps["members"] == [{"tensor": "w1", "axis": 2}, {"tensor": "w1", "axis": 3}]
    assert {"tensor": "y", "axis": 1} in next(p for p in pinned if p["reason"] == "y: graph output")[
        "members"
    ]


def test_the_ceiling_is_one_index_of_every_group(convnet):
    left = inspect(convnet)["ceiling"]
    whole = 16 * 27 + 16 + 24 * 16 * 9 + 24 + 240 + 10
    assert left["params"] == pytest.approx((27 + 1 + 9 + 1 + 10 + 10) / whole)
    assert 0 < left["macs"] < 0.02


def test_the_model_is_not_changed(convnet):
    before = to_model(convnet).SerializeToString(deterministic=True)
    inspect(convnet)
    assert to_model(convnet).SerializeToString(deterministic=True) == before


def test_figures_agree_with_those_of_a_run(demo):
    graph = load(demo)
    facts, run = inspect(graph), figures(graph, 0)
    assert (facts["params"], facts["macs"]) == (run.params, run.macs)


def test_an_operator_without_a_rule_is_counted_and_pins():
    facts = inspect(
        parsed("""
        <ir_version: 8, opset_import: ["" : 17, "acme" : 1]>
        g (float[2,4] x) => (float[2,4] y) { a = Relu (x)  b = acme.Mystery (a)  y = Relu (b) }
        """)
    )
    assert facts["unknown_ops"] == {"Mystery": 1}
    assert facts["groups"] == []
    assert facts["ceiling"] == {"params": 1.0, "macs": 1.0}
    text = shown(facts)
    assert "nothing can be removed" in text
    assert "Mystery (1 ×)" in text


def test_the_table_names_groups_and_what_they_cost(convnet):
    text = shown(inspect(convnet))
    assert "7 nodes, 4.18 k parameters" in text
    assert "Conv_0 → Conv_2" in text
    assert "kernel taps" in text
    assert "would be left" in text


def test_names_are_not_markup(convnet):
    facts = inspect(convnet)
    facts["groups"][0].update(producers=["[bold]odd[/]"])
    facts["pinned"][0].update(op="[/]", why="[red]because[/]")
    assert "[bold]odd[/]" in shown(facts)
    assert "[red]because[/]" in shown(facts)


@pytest.mark.parametrize("shape", [[], [0], [0, 3], ["N", 0, 3], None])
def test_scalars_empty_axes_and_unknown_ranks(shape):
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    facts = inspect(from_model(model))
    assert facts["groups"] == []
    assert json.loads(to_json(facts))["nodes"] == 1
    assert shown(facts)


def test_a_weight_without_elements_costs_nothing():
    graph = helper.make_graph(
        [helper.make_node("Concat", ["x", "w"], ["y"], axis=0)],
        "g",
        [helper.make_tensor_value_info("x", 1, [2, 3])],
        [helper.make_tensor_value_info("y", 1, [2, 3])],
        [numpy_helper.from_array(np.zeros((0, 3), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert inspect(from_model(model))["params"] == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # onnx computes the expected outputs of its cases, overflows and all
def test_models_of_a_single_operator():
    count = 0
    for case in collect_testcases(None):
        try:
            graph = from_model(case.model) if case.model else None
        except UnsupportedModelError:
            continue  # an operator version before those that are supported
        if graph is not None:
            facts = inspect(graph)
            assert json.loads(to_json(facts))["schema"] == 1
            assert shown(facts)
            count += 1
    assert count > 1000


@pytest.mark.slow
def test_real_models(shared):
    for path in sorted((shared / "models").glob("*.onnx")):
        graph = load(path)
        facts, run = inspect(graph), figures(graph, 0)
        assert (facts["params"], facts["macs"]) == (run.params, run.macs), path.name
        assert all(group["members"] for group in facts["groups"]), path.name


def test_the_command_prints_one_object(demo, capsys):
    assert main(["inspect", str(demo), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {"nodes", "params", "macs", "unknown_ops", "groups", "pinned", "ceiling"} <= facts.keys()
    assert main(["inspect", str(demo)]) == 0
    assert "channel groups" in capsys.readouterr().out


def test_the_command_explains_a_broken_file(tmp_path, capsys):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"nothing of the kind")
    assert main(["inspect", str(path)]) == 2
    assert "not an ONNX model" in capsys.readouterr().err
