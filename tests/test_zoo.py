"""Whole networks: half of every channel axis goes, with a proof, and what is left runs like the original did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from zoo import LIGHT, SHARED, paths, read

from surgeon.engine import analyse
from surgeon.errors import DataError, UnsupportedModelError
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.measure import parameters
from surgeon.passes import Context
from surgeon.probes import probe_feeds
from surgeon_passes.prune import Prune

# one of each kind, and the least fraction of parameters that has to go; embeddings and outputs are pinned at one end
SLICE = {
    "resnet18_bn.legacy": 0.74,
    "densenet121.dynamo": 0.70,
    "mobilenet_v3_small.legacy": 0.70,
    "shufflenet_v2_x1_0.legacy": 0.70,
    "yolo_c2f.legacy": 0.70,
    "lstm_classifier.dynamo": 0.70,
    "unet_convtranspose.legacy": 0.70,
    "swin_t.dynamo": 0.70,
    "deit_tiny.legacy": 0.68,
    "bert_tiny.legacy": 0.60,
    "llama_tiny.dynamo": 0.60,
    "mamba.legacy": 0.55,
}


def cut(path: Path) -> tuple[float, Context]:
    """Cuts half of everything; returns the fraction of parameters removed, and what the pass recorded."""
    model = read(path)
    graph, context = from_model(model, path), Context(path)
    whole = parameters(graph)
    smaller = Prune(ratio=0.5, allow_structural=True, score="l2").run(graph, context)
    result = session(to_model(smaller))
    original = session(model)
    ran = 0
    analysis = analyse(from_model(model, path)).analysis
    misfits = [op.name for op in analysis.ops if "none its rule expects" in (op.facts.barrier or "")]
    assert not misfits  # a fault in a rule of ours looks like a malformed node
    for feeds in probe_feeds(analysis):
        try:
            expected = run(original, feeds)
        except (UnsupportedModelError, DataError):
            continue  # what the original refuses, the cut model may refuse
        found = run(result, feeds)
        assert [a.shape for a in found] == [a.shape for a in expected]
        assert [a.dtype for a in found] == [a.dtype for a in expected]
        ran += 1
    assert ran
    return 1 - parameters(smaller) / whole, context


@pytest.mark.parametrize("name", SLICE)
def test_half_of_a_network_goes(name, shared):
    removed, context = cut(shared / "zoo" / f"{name}.onnx")
    assert removed >= SLICE[name]
    assert context.record["certificate"]["status"] in ("exact", "structural")
    assert "unproved" not in context.record


def test_an_architecture_of_the_onnx_package():
    removed, context = cut(LIGHT / "light_squeezenet.onnx")
    assert removed >= 0.64
    assert context.record["certificate"]["status"] == "exact"


@pytest.mark.slow
@pytest.mark.parametrize("path", paths(), ids=lambda path: path.stem)
def test_half_of_every_network_goes(path):
    if not SHARED.is_dir() and path.parent != LIGHT:
        pytest.skip("no folder of shared models")
    removed, context = cut(path)
    assert removed > 0
    assert context.record["certificate"]["status"] in ("exact", "structural")
    assert "unproved" not in context.record
    assert np.isfinite(removed)
