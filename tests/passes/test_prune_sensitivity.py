"""Groups that are tried alone: a few to begin with, and those that a cut would lean on though they were only foretold."""

from __future__ import annotations

import numpy as np
import prunable
import pytest
from ops.oracle import build
from refit import networks

from surgeon.passes import Context
from surgeon.stats.data import Chunk, Input, from_chunks
from surgeon_passes.prune import Prune
from surgeon_passes.pruning import obs
from surgeon_passes.pruning.rank import Ranking

BRANCHES, LOUD = 6, 3
SCALES = [60.0 if k == LOUD else 1.0 for k in range(BRANCHES)]
X = np.random.default_rng(3).standard_normal((240, 10)).astype(np.float32)
DATA = [{"x": X[k : k + 20]} for k in range(0, 200, 20)]
DATASET = from_chunks(
    "samples", [Input("x", np.dtype(np.float32), ("N", 10))], lambda: iter([Chunk(each) for each in DATA]), 20
)


@pytest.fixture
def few(monkeypatch):
    """Only the first and the last group are tried to begin with."""
    for module in ("surgeon.refit.sensitivity", "surgeon_passes.pruning.obs"):
        monkeypatch.setattr(f"{module}.PROBES", 2)


def branches(seed=0):
    """Branches alike, each seen by its consumer on a scale of its own; one of them is what the output is made of."""
    body = "".join(
        f"h{k} = Gemm (x, a{k}) r{k} = Relu (h{k}) m{k} = MatMul (r{k}, b{k}) t{k} = Tanh (m{k}) s{k} = Mul (t{k}, c{k})"
        for k in range(BRANCHES)
    )
    sums = "".join(f"u{k} = Add ({f'u{k - 1}' if k > 1 else 's0'}, s{k})" for k in range(1, BRANCHES))
    weights = {}
    for k in range(BRANCHES):
        weights |= {f"a{k}": (10, 24), f"b{k}": (24, 6), f"c{k}": np.float32(SCALES[k])}
    return build(
        "float[N,10] x", "float[N,6] y", f"{body} {sums} y = Identity (u{BRANCHES - 1})", weights, seed=seed
    )


@pytest.mark.parametrize("seed", range(3))
def test_what_a_cut_leans_on_is_tried_before_it_is_believed(few, monkeypatch, seed):
    errors, left = [], []
    for closer in (0, obs.CLOSER):
        monkeypatch.setattr(obs, "CLOSER", closer)
        smaller = networks.pruned(branches(seed), "prune", lambda: iter(DATA), target={"macs": 0.6}).model
        errors.append(networks.relative_error(branches(seed), smaller, X[200:]))
        left.append(networks.widths(smaller)[f"a{LOUD}"][1])
    assert left[1] > left[0]
    assert errors[1] < 0.5 * errors[0]


def test_no_more_are_tried_than_allowed(few, tmp_path, monkeypatch):
    monkeypatch.setattr(obs, "MOST_CLOSER", 1)
    analysed = prunable.analysed(branches(), tmp_path)
    context = Context(tmp_path / "model.onnx", data=DATASET)
    ranking = Ranking(Prune(), analysed, context)
    scores = ranking.of(analysed.groups)
    nothing = {name: np.zeros(len(each), bool) for name, each in scores.items()}
    assert len(ranking.eliminator.probes) == 2
    ranking.look_closer(nothing)
    assert len(ranking.eliminator.probes) == 3
    assert ranking.of(analysed.groups).keys() == scores.keys()
    assert not ranking.look_closer(nothing)
    assert len(ranking.eliminator.probes) == 3


def test_what_stays_whole_or_was_tried_needs_no_closer_look(few, tmp_path):
    analysed = prunable.analysed(branches(), tmp_path)
    context = Context(tmp_path / "model.onnx", data=DATASET)
    ranking = Ranking(Prune(), analysed, context)
    scores = ranking.of(analysed.groups)
    whole = {name: np.ones(len(each), bool) for name, each in scores.items()}
    assert not ranking.look_closer(whole)
    tried = whole | {name: ~whole[name] for name in ranking.eliminator.probes}
    assert not ranking.look_closer(tried)
    assert len(ranking.eliminator.probes) == 2
