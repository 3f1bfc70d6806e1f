"""Groups that are tried alone: a few to begin with, and those that a cut would lean on though they were only foretold."""

from __future__ import annotations

import numpy as np
import prunable
import pytest
from ops.oracle import build
from refit import networks

from surgeon.passes import Context
from surgeon.stats.data import Chunk, Input, from_chunks, open_data
from surgeon_passes.prune import Prune
from surgeon_passes.pruning import cutting as module
from surgeon_passes.pruning import obs
from surgeon_passes.pruning.cutting import Cutting
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
    for each in ("surgeon.refit.sensitivity", "surgeon_passes.pruning.obs"):
        monkeypatch.setattr(f"{each}.PROBES", 2)


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


def cutting(model, tmp_path, data=DATASET, **options):
    analysed = prunable.analysed(model, tmp_path)
    context = Context(tmp_path / "model.onnx", data=data)
    return Cutting(Prune(**options), analysed, analysed.analysis.graph, context)


def test_the_same_target_is_always_the_same_cut(few, tmp_path):
    cuts = cutting(branches(2), tmp_path)
    first = cuts.chosen({"macs": 0.6})
    tried = len(cuts.ranking.eliminator.probes)
    cuts.chosen({"macs": 0.8})
    again = cuts.chosen({"macs": 0.6})
    assert all(np.array_equal(again.kept[name], flags) for name, flags in first.kept.items())
    assert tried > 2


def test_a_ratio_needs_no_closer_look(few, tmp_path):
    cuts = cutting(branches(), tmp_path, ratio=0.5)
    cuts.chosen(None)
    assert len(cuts.ranking.eliminator.probes) == 2


def test_the_whole_cut_is_looked_at_before_its_first_step(few, tmp_path):
    cuts = cutting(branches(), tmp_path, steps=2)
    cuts.to({"macs": 0.6})
    assert len(cuts.ranking.eliminator.probes) > 2


IMAGES = np.random.default_rng(5).standard_normal((40, 3, 16, 16)).astype(np.float32)
LOADER = """
import numpy as np


def data():
    yield {"x": np.random.default_rng(5).standard_normal((40, 3, 16, 16)).astype(np.float32)}


def augment(feeds, random):
    return AUGMENTED
"""


def filled(tmp_path, data, *, trains=False, **options):
    body = "h = Conv (x, w1) r = Relu (h) g = GlobalAveragePool (r) f = Flatten (g) y = MatMul (f, w2)"
    model = build("float[N,3,16,16] x", "float[N,5] y", body, {"w1": (8, 3, 3, 3), "w2": (8, 5)})
    cuts = cutting(model, tmp_path, data, **options)
    cuts.context.trains = trains
    return cuts, len(cuts._variants)


def images(count=40):
    chunk = Chunk({"x": IMAGES[:count]})
    entry = Input("x", np.dtype(np.float32), ("N", 3, 16, 16))
    return from_chunks("images", [entry], lambda: iter([chunk]), 20)


@pytest.mark.parametrize(("trains", "batches"), [(False, 2), (True, 6)])
def test_variants_fill_up_more_where_a_later_pass_trains(tmp_path, monkeypatch, trains, batches):
    monkeypatch.setattr(module, "SAMPLES", 80)
    cuts, found = filled(tmp_path, images(), trains=trains)
    assert found == batches
    assert cuts.context.warnings == []


def test_variants_take_no_more_than_their_part_of_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAMPLES", 4000)
    large = IMAGES.repeat(5, axis=0)  # 600 kB: a quarter of a megabyte holds less than half of them
    entry = Input("x", np.dtype(np.float32), ("N", 3, 16, 16))
    data = from_chunks("images", [entry], lambda: iter([Chunk({"x": large})]), 20)
    assert filled(tmp_path, data)[1] == 30
    assert 0 < filled(tmp_path, data, memory=1)[1] < 10


@pytest.mark.parametrize(
    ("returned", "warned"), [("{'x': feeds['x'] * 2}", 0), ("{'x': feeds['labels']}", 1)]
)
def test_a_function_that_wants_labels_is_done_without(tmp_path, returned, warned):
    (tmp_path / "loader.py").write_text(LOADER.replace("AUGMENTED", returned))
    data = open_data(f"{tmp_path}/loader.py:data", [("x", np.float32, ("N", 3, 16, 16))])
    cuts, found = filled(tmp_path, data)
    assert (found == 0) == bool(warned)
    assert len(cuts.context.warnings) == warned
