"""The cost polynomial: right for known operators, and at every plan what counting the emitted model gives."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx
import prunable
import pytest

from surgeon.allocate import Candidate, Limits, by_ratio
from surgeon.cost import count
from surgeon.engine import analyse
from surgeon.graph.load import load
from surgeon.tally import KINDS, Tally

MODELS = [prunable.chain, prunable.grouped, prunable.concat, prunable.attention]


def test_a_convolution_costs_outputs_times_inputs_times_taps(tmp_path):
    model = prunable.analysed(prunable.chain(), tmp_path)
    cost = model.cost.evaluate()
    assert cost.macs == 64 * 16 * 27 + 64 * 24 * 16 * 9 + 24 * 10
    assert cost.params == 16 * 27 + 16 + 24 * 16 * 9 + 24 + 240 + 10
    assert cost.bytes == 4 * cost.params


def test_integers_of_shapes_are_no_parameters(tmp_path):
    model = prunable.analysed(prunable.attention(), tmp_path)
    assert model.cost.evaluate().params == 4 * 16 * 32


def test_controlled_is_what_vanishes_with_the_whole_group(tmp_path):
    model = prunable.analysed(prunable.chain(), tmp_path)
    group = next(g for g in model.groups if g.id == "w1:0")
    assert model.cost.controlled(group.atom, "params") == 16 * 27 + 16 + 24 * 16 * 9


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("seed", range(3))
def test_the_polynomial_is_the_count_of_the_emitted_model(make, seed, tmp_path):
    model = prunable.analysed(make(), tmp_path)
    random = np.random.default_rng(seed)
    sizes = {group.atom: int(random.integers(1, group.size + 1)) for group in model.groups}
    kept = {g.id: np.arange(g.size) < sizes[g.atom] for g in model.groups}
    smaller, _ = model.cut(kept)
    assert model.cost.evaluate({atom: float(size) for atom, size in sizes.items()}) == count(smaller)
    assert model.cost.after({group.atom: kept[group.id] for group in model.groups}) == count(smaller)


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_the_tally_follows_the_polynomial(make, tmp_path):
    model = prunable.analysed(make(), tmp_path)
    tally = Tally(model.cost, [group.atom for group in model.groups])
    random = np.random.default_rng(0)
    for _ in range(20):
        group = model.groups[random.integers(len(model.groups))]
        size = float(random.integers(1, tally.sizes[group.atom] + 1))
        before = vars(model.cost.evaluate(tally.sizes))
        after = vars(model.cost.evaluate(tally.sizes | {group.atom: size}))
        np.testing.assert_allclose(tally.gain(group.atom, size), [before[k] - after[k] for k in KINDS])
        tally.shrink(group.atom, size)
        np.testing.assert_allclose(tally.totals, [after[k] for k in KINDS])


def test_vectors_that_were_shared_count_once_for_each_use(tmp_path):
    model = prunable.build(
        prunable.CHAIN.replace("w2, b2", "w2, b1"),
        prunable.CHAIN_SHAPES | {"w2": (16, 16, 3, 3), "w3": (10, 16)},
    )
    del model.graph.initializer[3]  # b2, which nothing reads
    analysed = prunable.analysed(model, tmp_path)
    kept = {"w1:0": np.arange(16) < 8}
    smaller, _ = analysed.cut(kept)
    group = next(each for each in analysed.groups if each.id == "w1:0")
    assert count(smaller).params == 8 * 27 + 8 + 16 * 8 * 9 + 16 + 160 + 10
    assert analysed.cost.after({group.atom: kept["w1:0"]}) == count(smaller)


def filled(shared):
    """The function that puts weights into the shared graphs."""
    spec = importlib.util.spec_from_file_location("fill", shared / "zoo" / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.fill


@pytest.mark.slow
def test_the_polynomial_is_the_count_for_real_architectures(shared, tmp_path):
    wrong = {}
    for source in sorted((shared / "zoo").glob("*.onnx")):
        path = tmp_path / source.name
        onnx.save(filled(shared)(source), str(path))
        model = analyse(load(path))
        candidates = [Candidate(g.id, g.atom, np.arange(g.size, dtype=float), Limits()) for g in model.groups]
        kept = by_ratio(candidates, 0.4)
        smaller, plan = model.cut(kept)
        kept |= plan.kept()  # a cut keeps more where an axis would be left empty
        expected = model.cost.after({group.atom: kept[group.id] for group in model.groups})
        found, slack = count(smaller), model.cost.folded
        if (
            found.macs != expected.macs
            or not expected.params <= found.params <= expected.params + slack.params
            or not expected.bytes <= found.bytes <= expected.bytes + slack.bytes
        ):
            wrong[source.name] = (expected, found, slack)
        path.unlink()
    assert wrong == {}
