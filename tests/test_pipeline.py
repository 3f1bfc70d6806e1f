"""The order of passes, what is checked around them, and what is recorded."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
import pytest
import tiny
from quantizable import context_for, network

from surgeon import pipeline
from surgeon.api import load
from surgeon.errors import GateError, PassError, UnsupportedModelError, UsageError
from surgeon.graph.load import from_model
from surgeon.passes import Context, Pass
from surgeon.plugins import load_pass


@dataclass(frozen=True)
class Nothing(Pass):
    name: ClassVar[str] = "nothing"

    def run(self, graph: Any, context: Context) -> Any:
        return graph


@dataclass(frozen=True)
class Act(Pass):
    """Does what the test says."""

    name: ClassVar[str] = "act"
    action: Any = None

    def run(self, graph: Any, context: Context) -> Any:
        return self.action(graph, context)


@dataclass(frozen=True)
class ToQdq(Nothing):
    name: ClassVar[str] = "to-qdq"
    requires: ClassVar[frozenset[str]] = frozenset({"float"})
    ensures: ClassVar[frozenset[str]] = frozenset({"qdq"})
    removes: ClassVar[frozenset[str]] = frozenset({"float"})


@dataclass(frozen=True)
class NeedsFloat(Nothing):
    name: ClassVar[str] = "needs-float"
    requires: ClassVar[frozenset[str]] = frozenset({"float"})


@dataclass(frozen=True)
class NeedsQdq(Nothing):
    name: ClassVar[str] = "needs-qdq"
    requires: ClassVar[frozenset[str]] = frozenset({"qdq"})


@dataclass(frozen=True)
class Excluding(Nothing):
    name: ClassVar[str] = "excluding"
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class Knowing(Excluding):
    name: ClassVar[str] = "knowing"

    def check_names(self, known: Any) -> None:
        assert known


@pytest.fixture
def graph(tmp_path):
    return load(tiny.convnet(tmp_path / "m.onnx"))


def run(graph: Any, *passes: Pass, debug: bool = False) -> pipeline.Outcome:
    return pipeline.run_passes(graph, passes, Context(Path("m.onnx")), debug=debug)


def act(graph: Any, action: Any, **options: Any) -> pipeline.Outcome:
    return run(graph, Act(action), **options)


def test_facts_are_checked_for_the_whole_plan(graph):
    pipeline.check_facts([NeedsFloat(), ToQdq(), NeedsQdq()], graph)
    with pytest.raises(
        UsageError, match=r"needs-float: .*to-qdq runs before it and ends that .put needs-float before to-qdq"
    ):
        pipeline.check_facts([ToQdq(), NeedsFloat()], graph)
    with pytest.raises(UsageError, match=r"'qdq', this one is float, prunable .put to-qdq before needs-qdq"):
        pipeline.check_facts([NeedsQdq(), ToQdq()], graph)


def test_a_quantized_model_starts_as_qdq(tmp_path):
    graph = load(tiny.quantized(tmp_path / "q.onnx"))
    pipeline.check_facts([NeedsQdq()], graph)
    with pytest.raises(UsageError, match="put dequantize before needs-float"):
        pipeline.check_facts([NeedsFloat()], graph)


def _passes_with_exclusions() -> list[str]:
    names = sorted(each.name for each in entry_points(group="surgeon.passes"))
    return [name for name in names if "exclude" in {field.name for field in fields(load_pass(name))}]


@pytest.mark.parametrize("name", _passes_with_exclusions())
def test_an_exclusion_that_means_nothing_is_refused(name):
    model = network()
    options = load_pass(name)(exclude=("con1", "*_weight"))
    with pytest.raises(UsageError, match="matches no node and no tensor") as caught:
        pipeline.run_passes(from_model(model), [options], context_for(model))
    assert caught.value.where == f"{name}.exclude"


def test_an_exclusion_may_name_what_another_pass_made_or_took_away(graph):
    def rename(mine: Any, context: Context) -> Any:
        mine.nodes[0].name = "made"
        return mine

    before = graph.nodes[0].name
    run(graph, Act(rename), Excluding(exclude=("made", before[:-1] + "?")))
    with pytest.raises(UsageError, match="'made' matches"):
        run(graph, Excluding(exclude=("made",)))


def test_a_pass_may_know_names_of_its_own(graph):
    run(graph, Knowing(exclude=("nothing like this",)))
    run(graph, Excluding(exclude=(1, 2)))  # type: ignore[arg-type]  # a plugin's own kind of exclusions


def test_uses_of_shared_weights_may_be_named_as_the_analysis_does(graph):
    name = graph.nodes[0].name
    run(graph, Excluding(exclude=(f"{name}__2",)))


def test_names_are_not_checked_where_passes_are_only_tried(graph):
    context = Context(Path("m.onnx"), trial=True)
    pipeline.run_passes(graph, [Excluding(exclude=("made elsewhere",))], context)


def test_a_pass_gets_its_own_copy(graph):
    seen = {}

    def spoil(mine: Any, context: Context) -> Any:
        seen["shared"] = mine.tensors()["w1"].values is load_values(graph, "w1")
        mine.tensors()["w1"].values = np.zeros((16, 3, 3, 3), np.float32)
        mine.nodes[0].attrs["group"] = 1
        mine.nodes[0].name = "renamed"
        mine.tensors()["c1"].shape = [1, 2]
        return mine

    held = load_values(graph, "w1")
    before = [(node.name, dict(node.attrs)) for node in graph.nodes]
    outcome = act(graph, spoil)
    assert seen["shared"]
    assert held.any()
    assert [(node.name, dict(node.attrs)) for node in graph.nodes] == before
    assert graph.tensors()["w1"].values.any()
    assert outcome.passes[0]["changed"] is True


def load_values(graph: Any, name: str) -> Any:
    return graph.tensors()[name].values


def test_what_is_attached_to_a_graph_survives_the_copy(graph):
    graph.tensors()["w1"].origin = "w0"
    copied = pipeline.copy_of(graph)
    assert copied.surgeon_source is graph.surgeon_source
    assert copied.tensors()["w1"].origin == "w0"
    assert copied.inputs[0].shape == graph.inputs[0].shape
    assert copied.inputs[0].shape is not graph.inputs[0].shape


def test_no_change_is_noticed_even_when_weights_were_read(graph):
    def read(mine: Any, context: Context) -> Any:
        for tensor in mine.tensors().values():
            if isinstance(tensor, gs.Constant):
                tensor.values = tensor.values.copy()
        mine.nodes.reverse()
        return mine

    assert run(graph, Nothing()).passes[0]["changed"] is False
    assert act(graph, read).passes[0]["changed"] is False


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("weight", lambda g: setattr(g.tensors()["w1"], "values", g.tensors()["w1"].values + 1)),
        ("attribute", lambda g: g.nodes[0].attrs.update(group=2)),
        ("wiring", lambda g: g.nodes[1].inputs.__setitem__(0, g.tensors()["x"])),
        ("fewer nodes", lambda g: g.nodes.pop()),
        ("operator", lambda g: setattr(g.nodes[1], "op", "Tanh")),
    ],
)
def test_every_change_is_noticed(graph, what, change):
    other = pipeline.copy_of(graph)
    assert pipeline.same(graph, other)
    change(other)
    assert not pipeline.same(graph, other)


@pytest.mark.parametrize(
    "change",
    [
        lambda g: setattr(g.inputs[0], "name", "other"),
        lambda g: setattr(g.inputs[0], "shape", ["N", 3, 8, 9]),
        lambda g: setattr(g.inputs[0], "shape", ["M", 3, 8, 8]),
        lambda g: setattr(g.outputs[0], "dtype", np.float64),
        lambda g: g.outputs.append(g.tensors()["c1"]),
    ],
)
def test_inputs_and_outputs_must_not_change(graph, change):
    def spoil(mine: Any, context: Context) -> Any:
        change(mine)
        return mine

    with pytest.raises(PassError, match="pass act: changed the model's"):
        act(graph, spoil)


def test_a_pass_must_return_a_graph(graph):
    with pytest.raises(PassError, match="returned NoneType instead of a graph"):
        act(graph, lambda graph, context: None)


def test_a_failing_pass_is_named_and_its_cause_kept(graph):
    def fail(graph: Any, context: Context) -> Any:
        raise ZeroDivisionError("by zero")

    with pytest.raises(PassError, match="pass act: failed inside: ZeroDivisionError: by zero") as error:
        act(graph, fail)
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    assert error.value.exit_code == 3


def test_deliberate_errors_pass_through(graph):
    def fail(graph: Any, context: Context) -> Any:
        raise GateError("no")

    with pytest.raises(GateError, match="no"):
        act(graph, fail)


def test_debug_loads_each_result(graph):
    def spoil(mine: Any, context: Context) -> Any:
        mine.nodes[0].op = "NoSuchOperator"
        return mine

    assert act(graph, spoil).passes[0]["changed"]
    with pytest.raises(UnsupportedModelError):
        act(graph, spoil, debug=True)


def test_records_are_lifted_and_the_proof_is_not_counted(graph):
    def note(status: str, error: float | None, cut: int) -> Any:
        def run(mine: Any, context: Context) -> Any:
            started = time.perf_counter()
            time.sleep(0.05)
            context.record.update(
                groups={"total": 3, "cut": cut, "whole": []},
                certificate={"status": status, "max_rel_err": error, "probes": 2},
                proof_seconds=time.perf_counter() - started,
                own=np.int64(3),
            )
            return mine

        return run

    outcome = run(graph, Act(note("structural", 0.5, 1)), Act(note("exact", 1e-7, 0)), Nothing())
    assert outcome.certificate == {"status": "structural", "max_rel_err": 0.5, "probes": 4}
    assert outcome.groups == {"total": 3, "cut": 0, "whole": []}
    assert [each["changed"] for each in outcome.passes] == [True, False, False]
    first = outcome.passes[0]
    assert first["own"] == 3
    assert first["seconds"] < 0.04 < first["proof_seconds"]
    assert "groups" not in first
    assert "own" not in outcome.passes[2]
