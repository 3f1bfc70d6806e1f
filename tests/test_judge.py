"""Judging candidates: on all samples, or on as many as it takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import numpy_helper as nh

from surgeon.errors import UsageError
from surgeon.graph.load import from_model
from surgeon.judge import Judge
from surgeon.passes import Context
from surgeon.stats.data import graph_inputs, open_data
from surgeon.stats.metrics import OFTEN

SAMPLES = 4000


def classifier(weight: np.ndarray) -> onnx.ModelProto:
    nodes = [oh.make_node("MatMul", ["x", "w"], ["y"])]
    x, y = oh.make_tensor_value_info("x", 1, ["N", 4]), oh.make_tensor_value_info("y", 1, ["N", 4])
    graph = oh.make_graph(nodes, "g", [x], [y], [nh.from_array(weight.astype("f"), "w")])
    return oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    path = tmp_path / "m.onnx"
    onnx.save(classifier(np.eye(4)), str(path))
    x = np.random.default_rng(0).standard_normal((SAMPLES, 4)).astype("f")
    np.savez(tmp_path / "d.npz", x=x, labels=x.argmax(axis=1))
    inputs = tuple(graph_inputs(from_model(onnx.load(path))))
    context = Context(path, inputs=inputs, evaluation=open_data(str(tmp_path / "d.npz"), inputs))
    return Judge.of(context, 0.05, "--max-drop")


def tilted(much: float) -> onnx.ModelProto:
    """Loses more the more of another channel is mixed into the first."""
    weight = np.eye(4)
    weight[1, 0] = much
    return classifier(weight)


@pytest.mark.parametrize(("much", "within"), [(0.0, True), (0.9, False)])
def test_what_is_clear_is_not_measured_to_the_end(much: float, within: bool, judge: Judge) -> None:
    early, whole = judge.measure(tilted(much), early="clear"), judge.measure(tilted(much))
    assert early.within == whole.within == within
    assert OFTEN <= early.units < SAMPLES == whole.units
    assert early.part
    assert not whole.part
    assert early.metric == pytest.approx(judge.before - early.loss)
    assert judge.context.warnings == []


def test_what_is_not_clear_is_measured_on_all(judge: Judge) -> None:
    much = next(k / 100 for k in range(100) if judge.measure(tilted(k / 100)).loss > 0.05)
    assert judge.measure(tilted(much), early="clear") == judge.measure(tilted(much))


def test_what_is_not_lost_may_be_measured_to_the_end(judge: Judge) -> None:
    assert judge.measure(tilted(0.0), early="lost") == judge.measure(tilted(0.0))
    lost = judge.measure(tilted(0.9), early="lost")
    assert lost.units < SAMPLES
    assert not lost.within


def test_a_metric_that_is_no_number_for_the_original_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(classifier(np.eye(4)), str(path))
    x = np.random.default_rng(0).standard_normal((SAMPLES, 4)).astype("f")
    np.savez(tmp_path / "d.npz", x=x, labels=np.where(x > 3, np.nan, x))
    inputs = tuple(graph_inputs(from_model(onnx.load(path))))
    context = Context(
        path, inputs=inputs, evaluation=open_data(str(tmp_path / "d.npz"), inputs), metric="mse"
    )
    with pytest.raises(UsageError, match="not a number for the original"):
        Judge.of(context, 0.05, "--max-drop")
