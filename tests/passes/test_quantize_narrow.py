"""Weights of 4 bits: rounding against brute force, storage bit for bit, and a budget that is spent on them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper as nh
from quantizable import context_for, network, quantized

import surgeon
from surgeon.errors import GateError, UsageError
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.judge import OFFERS, Offer, Verdict, bytes_left
from surgeon.passes import Context
from surgeon.reference import Reference
from surgeon.refit.gptq import round_apart
from surgeon.stats.weight import is_rounded, weight_values
from surgeon_passes.quantize import Quantize
from surgeon_passes.quantizing.control import Mixes
from surgeon_passes.quantizing.halved import OPSET, halved, same_outputs
from surgeon_passes.quantizing.maker import Maker
from surgeon_passes.quantizing.narrow import mixed, narrow, places, rounded
from surgeon_passes.quantizing.prepare import prepared
from surgeon_passes.quantizing.spending import NARROW, Spending

PLAIN = Quantize(guard=False, equalize=False, smooth=False, calibration="minmax", correct_bias=False)
WEIGHTED = ("first", "second", "head")


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {entry.name: nh.to_array(entry) for entry in model.graph.initializer}


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    context = context_for(network())
    ready = prepared(network(), lambda _: False, tmp_path)
    return Maker(ready, PLAIN, lambda _: False, context.calibration, tmp_path, dataless=False, threads=1)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from([(3, 5), (4, 2, 3), (2, 3, 1, 2)]),
    axis=st.integers(0, 1),
    seed=st.integers(0, 2**16),
    one=st.booleans(),
)
def test_scales_have_the_least_error_of_those_tried(shape: Any, axis: int, seed: int, one: bool) -> None:
    random = np.random.default_rng(seed)
    integers = random.integers(-127, 128, shape).astype(np.int8)
    scale = random.uniform(0.01, 2, () if one else shape[axis]).astype("f")
    few, found = rounded(integers, scale, axis)
    assert few.dtype == np.int8
    assert few.shape == integers.shape
    assert found.shape == scale.shape
    assert found.dtype == np.float32
    assert np.abs(few).max() <= 7
    channels = [integers] if one else list(np.moveaxis(integers, axis, 0))
    steps = [few] if one else list(np.moveaxis(few, axis, 0))
    for old, new, before, after in zip(channels, steps, scale.ravel(), found.ravel(), strict=True):
        values = old.astype(float) * before
        error = np.square(new * float(after) - values).sum()
        largest = np.abs(values).max() or before
        for share in np.linspace(0.4, 1, 31):
            step = largest * share / 7
            assert error <= np.square(np.clip(np.rint(values / step), -7, 7) * step - values).sum() * (
                1 + 1e-5
            )


def test_a_channel_of_zeros_stays_zero() -> None:
    few, scale = rounded(np.zeros((2, 3), np.int8), np.array([1, 2], "f"), 0)
    assert not few.any()
    assert (scale > 0).all()


def test_weights_and_biases_keep_what_they_stand_for(maker: Maker) -> None:
    draft = maker.draft(maker.choose())
    found = places(draft, WEIGHTED)
    assert set(found) == set(WEIGHTED)
    assert found["second"].saved == 32 * 32 * 9 // 2
    assert found["second"].bias is None
    before = initializers(draft)
    narrow(draft, found.values())
    after = initializers(draft)
    for place in found.values():
        assert np.abs(after[place.weight]).max() <= 7
        if place.bias is None or place.bias_scale is None:
            continue
        unit = after[place.bias_scale]
        was = before[place.bias] * before[place.bias_scale].astype(float)
        assert np.allclose(after[place.bias] * unit.astype(float), was, atol=unit.max() * 0.51)
        # the unit of a bias is that of the weight times that of the input, as the integer kernel takes it
        ratio = after[place.scale] / before[place.scale]
        assert np.allclose(unit, before[place.bias_scale] * ratio, rtol=1e-6)
    run(session(draft), {"x": np.zeros((2, 3, 8, 8), "f")})


def test_what_is_shared_small_or_not_around_zero_is_left(maker: Maker) -> None:
    draft = maker.draft(maker.choose())
    assert set(places(draft, ("second",))) == {"second"}
    zero = next(e for e in draft.graph.initializer if e.name == "w2_zero_point")
    zero.CopyFrom(nh.from_array(np.full(32, 3, np.int8), zero.name))
    assert set(places(draft, WEIGHTED)) == {"first", "head"}
    made = next(n.output[0] for n in draft.graph.node if n.input and n.input[0] == "w3_quantized")
    draft.graph.node.append(oh.make_node("Identity", [made], ["seen"]))
    assert set(places(draft, WEIGHTED)) == {"first"}


def test_a_mix_has_the_weights_that_were_asked_for(maker: Maker) -> None:
    draft = maker.draft(maker.choose())
    found, few = places(draft, WEIGHTED), onnx.ModelProto()
    few.CopyFrom(draft)
    narrow(few, found.values())
    mix = initializers(mixed(draft, few, [found["second"]]))
    whole, other = initializers(draft), initializers(few)
    for name, values in mix.items():
        taken = other if name in found["second"].names else whole
        assert np.array_equal(values, taken[name])


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_four_bits_in_the_file_and_the_same_outputs(opset: int, tmp_path: Path) -> None:
    context = context_for(network(opset))
    ready = prepared(network(opset), lambda _: False, tmp_path)
    maker = Maker(ready, PLAIN, lambda _: False, context.calibration, tmp_path, dataless=False, threads=1)
    choice = maker.choose()
    draft = maker.draft(choice)
    found = places(draft, WEIGHTED)
    narrow(draft, [found["second"], found["head"]])
    made = maker.finished(draft, choice, {}).model
    stored, done = halved(made, [place.weight for place in found.values()])
    assert sorted(done) == ["w2_quantized", "w3_quantized"]  # the first has 8 bits
    kinds = {entry.name: entry.data_type for entry in stored.graph.initializer}
    assert kinds["w2_quantized4"] == onnx.TensorProto.INT4
    assert kinds["w1_quantized"] == onnx.TensorProto.INT8
    before, after = initializers(made), initializers(stored)
    assert np.array_equal(after["w2_quantized4"].astype(np.int8), before["w2_quantized"])
    assert same_outputs(
        made, stored, {"x": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype("f")}
    )
    saved = found["second"].saved + found["head"].saved
    assert made.ByteSize() - stored.ByteSize() > saved - 200
    onnx.checker.check_model(stored)
    versions = {entry.domain: entry.version for entry in stored.opset_import}
    assert versions[""] == max(opset, OPSET)


@settings(max_examples=30, deadline=None)
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_any_number_of_integers_is_packed(shape: list[int], seed: int) -> None:
    values = np.random.default_rng(seed).integers(-8, 8, shape).astype(np.int8)
    nodes = [oh.make_node("Cast", ["w"], ["y"], to=onnx.TensorProto.INT32)]
    y = oh.make_tensor_value_info("y", onnx.TensorProto.INT32, shape)
    graph = oh.make_graph(nodes, "g", [], [y], [nh.from_array(values, "w")])
    model = oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])
    stored, done = halved(model, ["w"])
    assert done == ["w"]
    assert np.array_equal(run(session(stored), {})[0], values)
    entry = next(iter(stored.graph.initializer))
    assert len(entry.raw_data) == -(-values.size // 2)


def test_nothing_that_fits_is_no_change() -> None:
    model = network()
    assert halved(model, ["w1", "no such"]) == (model, [])


class Scripted:
    """A judge for whom each weight of 4 bits costs what a table says; what was rounded anew costs ``anew`` more."""

    def __init__(self, costs: dict[str, float], max_drop: float, anew: float = 0.0) -> None:
        self.costs, self.max_drop, self.anew = costs, max_drop, anew
        self.seen: list[frozenset[str]] = []
        self.first: dict[frozenset[str], bytes] = {}

    def measure(self, model: onnx.ModelProto, *, early: str = "no") -> Verdict:
        arrays = initializers(model)
        few = frozenset(name for name in self.costs if np.abs(arrays[f"{name}_quantized"]).max() <= 7)
        integers = arrays["w2_quantized"].tobytes()
        again = integers != self.first.setdefault(few, integers)
        self.seen.append(few)
        loss = sum(self.costs[name] for name in few) + (self.anew if again else 0.0)
        return Verdict(
            1 - loss, loss, loss, 0.9, loss <= self.max_drop + 1e-12, model.ByteSize(), 1, part=early != "no"
        )


def spender(maker: Maker, judge: Scripted, context: Context) -> Spending:
    mixes = Mixes(maker, {}, lambda model: model)
    draft = mixes.draft({})
    return Spending(mixes, draft, (), judge, context, 64, 64)  # type: ignore[arg-type]  # a scripted judge


@pytest.mark.parametrize("costs", list(itertools.product((0.0, 0.4, 0.7), repeat=3)))
def test_as_much_is_spent_as_holds(costs: tuple[float, ...], maker: Maker) -> None:
    context = context_for(network())
    judge = Scripted(dict(zip(("w1", "w2", "w3"), costs, strict=True)), 1.0)
    made = spender(maker, judge, context).run(lambda verdict: verdict.within)
    record: Any = context.record["narrow"]
    assert made is not None
    arrays = initializers(made.model)
    few = {name for name in judge.costs if np.abs(arrays[f"{name}_quantized"]).max() <= 7}
    assert context.kept[NARROW] == tuple(f"{name}_quantized" for name in _in_order(record, few))
    assert sum(judge.costs[name] for name in few) <= 1.0
    for more in set(judge.costs) - few:
        assert sum(judge.costs[name] for name in few) + judge.costs[more] > 1.0
    assert {entry["node"] for entry in record["nodes"]} | set(record["left"]) == set(WEIGHTED)


def _in_order(record: Any, few: set[str]) -> list[str]:
    weights = dict(zip(WEIGHTED, ("w1", "w2", "w3"), strict=True))
    names = [weights[entry["node"]] for entry in record["nodes"]]
    assert set(names) == few
    return names


def test_where_none_holds_the_model_stays(maker: Maker) -> None:
    context = context_for(network())
    judge = Scripted(dict.fromkeys(("w1", "w2", "w3"), 2.0), 1.0)
    assert spender(maker, judge, context).run(lambda verdict: verdict.within) is None
    assert NARROW not in context.kept
    assert context.record["narrow"]["nodes"] == []  # type: ignore[index]  # a record


@pytest.mark.parametrize("anew", [5.0, 0.01])
def test_what_was_measured_is_taken_where_rounding_anew_is_worse(anew: float, maker: Maker) -> None:
    context = context_for(network())
    judge = Scripted(dict.fromkeys(("w1", "w2", "w3"), 0.1), 1.0, anew=anew)
    spent = spender(maker, judge, context)
    made = spent.run(lambda verdict: verdict.within)
    assert made is not None
    taken, few = initializers(made.model), initializers(spent.few)
    assert np.array_equal(taken["w2_quantized"], few["w2_quantized"])


def test_offers_are_measured_on_more_and_fewer_weights(maker: Maker) -> None:
    context = context_for(network())
    judge = Scripted({"w1": 0.1, "w2": 0.3, "w3": 0.2}, 1.0)
    spender(maker, judge, context).offer()
    offers = context.kept[OFFERS]
    assert offers[0].loss == pytest.approx(0.6)
    assert [each.factor for each in offers] == sorted(each.factor for each in offers)
    assert all(0 < each.factor < 1 for each in offers)
    assert judge.seen[0] == frozenset()


def test_the_best_offer_that_can_be_paid() -> None:
    offers = (Offer(0.5, 0.6), Offer(0.1, 0.8), Offer(0.2, 0.7))
    assert [bytes_left(offers, spare) for spare in (-1, 0.05, 0.1, 0.3, 0.5)] == [1, 1, 0.8, 0.7, 0.6]
    assert bytes_left((), 1.0) == 1.0


def test_each_weight_is_rounded_as_if_the_others_were_not(maker: Maker) -> None:
    context = context_for(network())
    draft = maker.draft(maker.choose())
    few = onnx.ModelProto()
    few.CopyFrom(draft)
    found = places(draft, WEIGHTED)
    narrow(few, found.values())
    feeds = [batch for batch, _ in context.calibration()]
    results = []
    for names in (WEIGHTED, ("second",)):
        around, into = from_model(draft), from_model(few)
        skipped = set(WEIGHTED) - set(names)
        round_apart(around, into, Reference(from_model(maker.model)), feeds, excluded=skipped.__contains__)
        assert to_model(around).SerializeToString() == to_model(from_model(draft)).SerializeToString()
        results.append(initializers(to_model(into))["w2_quantized"])
    assert np.array_equal(*results)
    assert not np.array_equal(results[0], initializers(few)["w2_quantized"])
    assert np.abs(results[0]).max() <= 7


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "m.onnx"
    onnx.save(network(), str(path))
    x = np.random.default_rng(5).standard_normal((192, 3, 8, 8)).astype("f")
    return {"model": path, "data": {"x": x[:64]}, "evaluation": {"x": x[64:]}}


def test_a_run_stores_them_and_what_it_wrote_can_be_cut_and_made_float(
    files: dict[str, Any], tmp_path: Path
) -> None:
    out, plain = tmp_path / "o.onnx", tmp_path / "plain.onnx"
    given: dict[str, Any] = {"data": files["data"], "evaluation": files["evaluation"], "force": True}
    options = {**given, "metric": "mse", "max_drop": 0.01}
    surgeon.run(files["model"], "quantize{guard=false}", destination=plain, **options)
    report = surgeon.run(
        files["model"], "quantize{guard=false narrow=true}", destination=out, **options
    ).report
    stored = onnx.load(out)
    few = [entry.name for entry in stored.graph.initializer if entry.data_type == onnx.TensorProto.INT4]
    quantize = report["passes"][-1]
    assert [name.removesuffix("4") for name in few] == quantize["halved"]
    assert len(few) == 3
    assert out.stat().st_size < 0.65 * plain.stat().st_size
    assert report["after"]["metric"] <= 0.01
    assert report["after"]["metric"] in [point["metric"] for point in quantize["narrow"]["curve"][-2:]]
    graph = surgeon.load(out)
    conv = next(node for node in graph.nodes if node.name == "second")
    assert is_rounded(conv.inputs[1])
    assert weight_values(conv.inputs[1]).shape == (32, 32, 3, 3)
    assert np.isfinite(weight_values(conv.inputs[1])).all()
    cut = surgeon.run(out, "prune{ratio=0.5}", data=files["data"], destination=tmp_path / "cut.onnx").report
    assert cut["certificate"]["status"] == "exact"
    assert cut["after"]["macs"] < cut["before"]["macs"]
    kinds = [e.data_type for e in onnx.load(tmp_path / "cut.onnx").graph.initializer]
    assert onnx.TensorProto.INT4 in kinds
    surgeon.run(out, "dequantize", destination=tmp_path / "f.onnx")
    nodes = {node.op_type for node in onnx.load(tmp_path / "f.onnx").graph.node}
    assert "DequantizeLinear" not in nodes


def test_alone_quantize_keeps_its_bits_unless_asked(files: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    report = surgeon.run(
        files["model"],
        "quantize{guard=false}",
        data=files["data"],
        evaluation=files["evaluation"],
        metric="mse",
        max_drop=0.5,
        destination=out,
        force=True,
    ).report
    assert "narrow" not in report["passes"][-1]
    assert not [e for e in onnx.load(out).graph.initializer if e.data_type == onnx.TensorProto.INT4]


@pytest.mark.parametrize("late", [False, True], ids=["known before", "only in the end"])
def test_what_cannot_be_converted_keeps_a_byte_each(
    files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """Then nothing is spent on fewer bits, if that is known before."""

    def refuse(*_: Any) -> None:
        raise GateError("no converter")

    monkeypatch.setattr("surgeon_passes.quantizing.halved.raise_opset", refuse)
    if late:
        monkeypatch.setattr("surgeon_passes.quantizing.halved.why_not", lambda _: None)
    report = surgeon.run(
        files["model"],
        "quantize{guard=false narrow=true}",
        data=files["data"],
        evaluation=files["evaluation"],
        metric="mse",
        max_drop=0.5,
        destination=tmp_path / "o.onnx",
        force=True,
    ).report
    said = "take a byte each in the file: no converter" if late else "no weights get 4 bits: no converter"
    assert any(said in each for each in report["warnings"])
    assert ("narrow" in report["passes"][-1]) == late
    assert "halved" not in report["passes"][-1]


def test_a_shared_budget_is_spent_by_both(files: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    report = surgeon.run(
        files["model"],
        "prune{tries=3},quantize{guard=false}",
        data=files["data"],
        evaluation=files["evaluation"],
        metric="mse",
        max_drop=0.05,
        destination=out,
        force=True,
    ).report
    prune, quantize = report["passes"][-2:]
    taken = next(point for point in prune["budget"]["curve"] if point["taken"])
    assert not taken["quick"]
    assert quantize["halved"]
    assert report["after"]["bytes"] == out.stat().st_size < taken["bytes"]
    assert report["after"]["metric"] <= 0.05


def test_fewer_bits_need_a_mode_and_a_budget():
    with pytest.raises(UsageError, match=r"quantize\.narrow: takes static mode"):
        Quantize(mode="dynamic", narrow=True)
    model = network()
    with pytest.raises(UsageError, match="spends what a budget leaves"):
        quantized(model, context_for(model), mode="static", narrow=True)
