"""``prune`` without data: refits to made-up inputs, and falls back to magnitude where these are of no use."""

from __future__ import annotations

import numpy as np
import onnx
import prunable
import pytest

from surgeon.graph.copy import copy_of
from surgeon.graph.load import load
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.passes import Context
from surgeon.stats.data import graph_inputs
from surgeon.stats.synthetic import synthetic
from surgeon_passes.prune import Prune
from surgeon_passes.pruning import datafree


def pruned(model, folder, **options):
    path = folder / "model.onnx"
    onnx.save(model, str(path))
    graph = load(path)
    context = Context(path, inputs=tuple(graph_inputs(graph)))
    return Prune(macs=0.5, **options).run(copy_of(graph), context), graph, context


def error(smaller, graph):
    feeds = synthetic(graph_inputs(graph), seed=77, batch=64)
    ours, theirs = (run(session(to_model(each)), feeds)[0] for each in (smaller, graph))
    return float(np.square(ours - theirs).sum() / np.square(theirs).sum())


@pytest.mark.parametrize("make", [prunable.attention])
def test_a_refit_to_made_up_inputs_beats_magnitude_on_inputs_it_has_not_seen(make, tmp_path):
    smaller, graph, context = pruned(make(), tmp_path)
    plain, _, _ = pruned(make(), tmp_path, reconstruct=False)
    assert error(smaller, graph) < error(plain, graph)
    facts = context.record["synthetic"]
    assert facts["used"]
    assert all(a <= b for a, b in zip(facts["error"], facts["error_of_magnitude"], strict=True))
    assert [text for text in context.warnings if "no --data" in text] == [datafree.SAID]


@pytest.mark.parametrize("options", [{"reconstruct": False}, {"score": "l1"}])
def test_nothing_is_made_up_and_nothing_said_where_it_is_not_wanted(options, tmp_path):
    _, _, context = pruned(prunable.attention(), tmp_path, **options)
    assert "synthetic" not in context.record
    assert not context.warnings


def test_where_magnitude_is_closer_the_result_is_magnitudes(tmp_path, monkeypatch):
    monkeypatch.setattr(datafree, "_errors", lambda *_: [(0.1, 0.2), (0.3, 0.2)])
    smaller, _, context = pruned(prunable.attention(), tmp_path)
    plain, _, _ = pruned(prunable.attention(), tmp_path, reconstruct=False)
    assert to_model(smaller).SerializeToString() == to_model(plain).SerializeToString()
    assert context.record["synthetic"]["used"] is False
    assert "closer to the original" in context.warnings[-1]
    assert "reconstruct" not in context.record


def test_models_that_are_too_large_are_ranked_by_magnitude_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(datafree, "MOST_ONE", 1.0)
    smaller, _, context = pruned(prunable.attention(), tmp_path)
    plain, _, _ = pruned(prunable.attention(), tmp_path, reconstruct=False)
    assert to_model(smaller).SerializeToString() == to_model(plain).SerializeToString()
    assert ["too large" in text for text in context.warnings] == [True]
