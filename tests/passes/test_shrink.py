"""The pass ``shrink``: what is deleted and what is split follows from what either costs."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import numpy_helper as nh
from quantizable import context_for, network

import surgeon
from surgeon.allocate import Candidate
from surgeon.cost import count
from surgeon.engine import analyse
from surgeon.errors import GateError, UsageError
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.stats.data import graph_inputs
from surgeon.stats.synthetic import synthetic
from surgeon_passes.drop import Drop
from surgeon_passes.factorize import Factorize
from surgeon_passes.pruning import cutting
from surgeon_passes.shrink import Shrink
from surgeon_passes.shrinking.share import Operator, Sharer

WIDTHS = (24, 32, 32, 10)


def perceptron(*weights: np.ndarray) -> onnx.ModelProto:
    """Matrix products ``h0, h1, …`` with Relu between them."""
    nodes = []
    for k in range(len(weights)):
        source = "x" if k == 0 else f"r{k - 1}"
        last = k == len(weights) - 1
        nodes.append(oh.make_node("MatMul", [source, f"w{k}"], ["y" if last else f"h{k}"], name=f"m{k}"))
        if not last:
            nodes.append(oh.make_node("Relu", [f"h{k}"], [f"r{k}"], name=f"relu{k}"))
    x = oh.make_tensor_value_info("x", 1, ["N", weights[0].shape[0]])
    y = oh.make_tensor_value_info("y", 1, ["N", weights[-1].shape[1]])
    constants = [nh.from_array(w.astype("f"), f"w{k}") for k, w in enumerate(weights)]
    graph = oh.make_graph(nodes, "g", [x], [y], constants)
    return oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])


def drawn(seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.standard_normal((a, b)) / np.sqrt(a) for a, b in pairwise(WIDTHS)]


def sharer(
    scores: tuple[float, float], errors: tuple[float, float, float], seed: int | None = None
) -> Sharer:
    """Two hidden layers and three products: what all of a layer costs, and what each product loses at half its rank."""
    model = analyse(from_model(perceptron(*drawn())))
    random = np.random.default_rng(seed)
    candidates = []
    for group, each in zip(model.groups, scores, strict=True):
        shares = random.random(group.size) if seed is not None else np.ones(group.size)
        candidates.append(Candidate(group.id, group.atom, each * shares / group.size))
    operators = []
    for k, error in enumerate(errors):
        axes = model.analysis.axes[f"w{k}"]
        reading, writing = np.array([[0, 4, 8]]) * np.array([[axes[0].size], [axes[1].size]])
        losses = error * np.array([0, 1, 0.3])
        operators.append(Operator(axes[0], axes[1], axes[0].size * axes[1].size, losses, reading, writing))
    return Sharer(candidates, model.cost, operators)


def chosen(found: Sharer, fraction: float) -> list[bool]:
    sharing = found.to(fraction)
    assert sharing.macs <= fraction
    return [sharing.kept[each.id] < each.size for each in found.candidates]


def test_what_costs_nothing_is_done():
    assert chosen(sharer((1, 1), (0, 0, 0)), 0.6) == [False, False]
    assert chosen(sharer((0, 0), (1, 1, 1)), 0.6) == [True, True]
    assert chosen(sharer((0, 9), (9, 9, 0)), 0.55) == [True, False]


@pytest.mark.parametrize("seed", range(8))
def test_it_is_the_best_at_its_price(seed):
    """All sizes of both groups and all ways of what is whole, one by one."""
    random = np.random.default_rng(seed)
    found = sharer(tuple(random.random(2)), tuple(random.random(3)), seed)
    price = found.to(0.5).price
    sharing = found.at(price)

    def objective(kept):
        sizes = {each.atom: float(k) for each, k in zip(found.candidates, kept, strict=True)}
        ends = [24, *kept, 10]
        total = sum(each.scores[~each.mask(k)].sum() for each, k in zip(found.candidates, kept, strict=True))
        for op, inputs, outputs in zip(found.operators, ends[:-1], ends[1:], strict=True):
            costs = [inputs * outputs, *(rank * (inputs + outputs) for rank in (4, 8))]
            total += min(e + price * c / 2112 for e, c in zip(op.errors, costs, strict=True))
        assert found.cost.evaluate(sizes).macs == 24 * kept[0] + kept[0] * kept[1] + kept[1] * 10
        return total

    steps = [list(range(4, each.size + 1, 4)) for each in found.candidates]
    best = min(objective(kept) for kept in product(*steps))
    mine = objective([sharing.kept[each.id] for each in found.candidates])
    alone = [
        min(objective(kept) for kept in product(steps[0], [32])),
        min(objective(kept) for kept in product([32], steps[1])),
    ]
    assert best - 1e-9 <= mine <= min(alone) + 1e-9
    assert mine == pytest.approx(sharing.error + price * sharing.macs)


def test_what_a_price_leaves_of_the_target_is_given_back():
    """Steps of one layer only, of 96 multiply-accumulates each: no price has just as many as are allowed."""
    found = sharer((1, 50), (50, 50, 50))
    exact = [
        k for k in range(4, 33, 4) if found.cost.evaluate({found.candidates[0].atom: k}).macs <= 0.7 * 2112
    ]
    assert found.to(0.7).kept[found.candidates[0].id] == max(exact)


def test_a_cut_that_is_enough_says_why_nothing_is_split():
    weights = drawn()
    weights[0][:, 16:] = weights[0][:, :16]
    _, record = shrunk(perceptron(*weights), macs=0.7, multiple_of=4)
    assert record["split"] == []
    assert {each["node"] for each in record["left"]} == {"m0", "m1", "m2"}


def test_both_ways_are_compared_at_the_same_saving():
    found = sharer((0, 9), (9, 9, 0.3))
    sharing = found.to(0.6)
    compared = found.compare(sharing)
    first, second = (compared[each.id] for each in found.candidates)
    assert first.chosen
    assert first.kept == sharing.kept[found.candidates[0].id]
    assert first.deleted == 0
    assert first.saved == pytest.approx(
        (32 - first.kept) * (24 + sharing.kept[found.candidates[1].id]) / 2112
    )
    assert not second.chosen
    assert second.deleted == pytest.approx(9 * (32 - second.kept) / 32)


def outputs(model):
    return run(session(model), synthetic(graph_inputs(from_model(model)), seed=9, batch=16))[0]


def shrunk(model, context=None, **options):
    context = context or context_for(model)
    return to_model(Shrink(**options).run(from_model(model), context)), context.record


def test_superfluous_channels_go_and_a_layer_of_low_rank_is_split():
    """Half of the first hidden layer repeats the other half; the second product has rank 4."""
    weights = drawn()
    weights[0][:, 16:] = weights[0][:, :16]
    random = np.random.default_rng(1)
    weights[1] = random.standard_normal((32, 4)) @ random.standard_normal((4, 32)) / 10
    model = perceptron(*weights)
    result, record = shrunk(model, macs=0.45, multiple_of=4, round_to=4)
    sizes = sorted(tuple(tensor.dims) for tensor in result.graph.initializer)
    assert sizes == [(4, 32), (16, 4), (24, 16), (32, 10)]
    first = record["compared"][0]
    assert first["chosen"]
    assert first["kept"] == 16
    assert [each["node"] for each in record["split"]] == ["m1"]
    assert record["certificate"]["status"] == "exact"
    errors = record["attempts"]["errors"]
    assert record["attempts"]["taken"] == min(errors, key=errors.get) == "cuts and splits"
    assert set(errors) == {"cuts and splits", "cuts", "splits"}
    wanted = outputs(model)
    assert np.square(outputs(result) - wanted).sum() < 1e-6 * np.square(wanted).sum()


@pytest.mark.parametrize("target", [0.8, 0.5, 0.3])
def test_the_target_holds(target):
    model = network()
    whole = count(from_model(model)).macs
    result, record = shrunk(model, macs=target)
    onnx.checker.check_model(result, full_check=True)
    assert count(from_model(result)).macs <= target * whole
    assert record["macs"] == {"before": whole, "after": count(from_model(result)).macs, "asked": target}
    assert record["changed"]


def test_groups_whose_cut_cannot_be_proved_are_split(monkeypatch):
    weights = drawn()
    weights[0][:, 16:] = weights[0][:, :16]
    asked = []
    real = cutting.cut_and_prove

    def fussy(model, kept, context):
        asked.append(set(kept))
        first = model.groups[0].id
        return {first: "it cannot be proved"} if first in kept else real(model, kept, context)

    monkeypatch.setattr(cutting, "cut_and_prove", fussy)
    model = perceptron(*weights)
    result, record = shrunk(model, macs=0.6)
    assert asked
    assert count(from_model(result)).macs <= 0.6 * count(from_model(model)).macs
    reasons = {each["group"]: each["reason"] for each in record["groups"]["whole"]}
    assert "it cannot be proved" in reasons.values()


def test_what_is_out_of_reach_or_no_target_is_refused():
    with pytest.raises(GateError, match=r"at most 0\.001 of .* leaves 0\.\d+") as caught:
        shrunk(network(), macs=0.001)
    assert caught.value.where == "shrink.macs"
    with pytest.raises(UsageError, match=r"shrink\.macs"):
        Shrink(macs=1.5)
    with pytest.raises(UsageError, match=r"shrink\.samples"):
        Shrink(samples=0)


@pytest.mark.parametrize("passes", [Shrink(), Factorize(), Drop()])
def test_a_target_that_a_pass_cannot_aim_at_is_no_other_target(passes):
    with pytest.raises(UsageError, match=f"target is of size, and {passes.name} can only aim") as caught:
        surgeon.run(network(), [passes], target={"size": 0.9})
    assert caught.value.where == f"{passes.name}.macs"


def test_one_sample_is_too_few_to_compare_by():
    model = perceptron(*drawn())
    one = {"x": np.ones((1, WIDTHS[0]), np.float32)}
    with pytest.raises(UsageError, match="there is one sample"):
        surgeon.run(model, [Shrink()], data=lambda: iter([one]))
