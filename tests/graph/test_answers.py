"""Graphs run and are forgotten, in memory or by way of a file, with the same answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from surgeon.errors import SurgeonError, UnsupportedModelError
from surgeon.graph import answers as module
from surgeon.graph.answers import answers

TEXT = "net (float[N, 8] x) => (float[N, 2048] y) { a = MatMul(x, w)  y = Relu(a) }"
WEIGHT = np.random.default_rng(0).standard_normal((8, 2048)).astype(np.float32)
FEEDS = [{"x": np.full((n, 8), n, np.float32)} for n in (1, 3)]


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["by file", "in memory"])
@pytest.mark.parametrize("optimize", [False, True])
def test_answers(graph_of, monkeypatch, tmp_path: Path, limit: int, optimize: bool) -> None:
    monkeypatch.setattr(module, "HELD_IN_MEMORY", limit)
    found = answers(graph_of(TEXT, w=WEIGHT), FEEDS, optimize=optimize, folder=tmp_path)
    for feeds, answer in zip(FEEDS, found, strict=True):
        assert not isinstance(answer, SurgeonError)
        assert np.allclose(answer[0], np.maximum(feeds["x"] @ WEIGHT, 0), atol=1e-5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["by file", "in memory"])
def test_inputs_that_are_refused_are_answered_with_the_reason(graph_of, monkeypatch, limit: int) -> None:
    monkeypatch.setattr(module, "HELD_IN_MEMORY", limit)
    found = answers(graph_of(TEXT, w=WEIGHT), [{"x": np.ones((1, 9), np.float32)}, FEEDS[0]])
    assert isinstance(found[0], SurgeonError)
    assert not isinstance(found[1], SurgeonError)


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["by file", "in memory"])
def test_a_graph_that_does_not_load(graph_of, monkeypatch, tmp_path: Path, limit: int) -> None:
    monkeypatch.setattr(module, "HELD_IN_MEMORY", limit)
    graph = graph_of(TEXT, w=WEIGHT)
    graph.nodes[0].op = "NoSuchOperator"
    with pytest.raises(UnsupportedModelError):
        answers(graph, FEEDS, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_same_bytes_whatever_the_way(graph_of, monkeypatch) -> None:
    monkeypatch.setattr(module, "HELD_IN_MEMORY", 0)
    graph = graph_of(TEXT, w=WEIGHT)
    first, second = (answers(graph, FEEDS)[1] for _ in range(2))
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert first[0].tobytes() == second[0].tobytes()
