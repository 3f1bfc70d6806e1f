"""Accuracy control: the fewest operators in float against brute force, who is to blame, budgets shared by two passes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx.helper as oh
import pytest
import tiny
from onnx import numpy_helper as nh
from quantizable import crafted, network

import surgeon
from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.passes import Context, Graph, Pass
from surgeon.stats.compare import Outputs
from surgeon.stats.data import graph_inputs, open_data
from surgeon.stats.synthetic import synthetic
from surgeon_passes.prune import Prune
from surgeon_passes.quantize import Quantize
from surgeon_passes.quantizing import guarded
from surgeon_passes.quantizing.control import TRIES, fewest
from surgeon_passes.quantizing.maker import Maker
from surgeon_passes.quantizing.partly import Parts
from surgeon_passes.quantizing.prepare import prepared
from surgeon_passes.quantizing.sensitivity import MOST_GROUPS, groups_of, sensitivities

NAMES = tuple("abcdefghij")
PLAIN = Quantize(
    guard=False, equalize=False, smooth=False, calibration="minmax", rounding="nearest", correct_bias=False
)


def asked(holds: Any, order: tuple[str, ...] = NAMES, tries: int = TRIES) -> tuple[Any, list[frozenset[str]]]:
    seen: list[frozenset[str]] = []

    def counted(names: frozenset[str]) -> bool:
        seen.append(names)
        return bool(holds(names))

    return fewest(order, counted, tries), seen


@pytest.mark.parametrize("needed", [set("a"), set("c"), set("ab"), set("bdh"), set("abcdefghi")])
def test_exactly_what_is_needed_stays_float(needed: set[str]) -> None:
    found, seen = asked(lambda names: needed <= names)
    assert found == needed
    assert len(seen) == len(set(seen))


def test_a_budget_of_costs_is_met_with_no_operator_too_many() -> None:
    """Costs add up; a wrong order costs tries, and what is left cannot lose any single operator."""
    for seed in range(30):
        random = np.random.default_rng(seed)
        costs = dict(zip(NAMES, random.exponential(1, len(NAMES)), strict=True))
        budget = float(random.uniform(0.2, 0.9)) * sum(costs.values())

        def holds(names: frozenset[str], costs: Any = costs, budget: float = budget) -> bool:
            return sum(cost for name, cost in costs.items() if name not in names) <= budget

        order = tuple(sorted(NAMES, key=lambda name: -costs[name] * random.uniform(0.5, 2)))
        found, _ = asked(holds, order)
        assert holds(found)
        assert not any(holds(found - {name}) for name in found)
        best = tuple(sorted(NAMES, key=lambda name: -costs[name]))
        smallest = next(k for k in range(1, 10) if holds(frozenset(best[:k])))
        assert len(asked(holds, best)[0]) == smallest


@pytest.mark.parametrize("seed", range(20))
def test_a_metric_that_is_not_monotone_is_believed_only_where_it_was_measured(seed: int) -> None:
    random = np.random.default_rng(seed)
    answers: dict[frozenset[str], bool] = {}

    def noisy(names: frozenset[str]) -> bool:
        return answers.setdefault(names, bool(random.random() < 0.4))

    found, seen = asked(noisy)
    if found is None:
        assert not answers[frozenset(NAMES[:-1])]
        assert not any(answers.values())
    else:
        assert answers[found]
        assert len(found) == min(len(names) for names in seen if answers[names])


def test_nothing_holds() -> None:
    found, seen = asked(lambda names: False)
    assert found is None
    assert max(map(len, seen)) == len(NAMES) - 1  # something has to be quantized
    assert asked(lambda names: True, ("a",)) == (None, [])


def test_the_number_of_questions_is_bounded() -> None:
    order = tuple(f"n{k}" for k in range(500))
    even = frozenset(order[::2])
    found, seen = asked(lambda names: even <= names, order)
    assert even <= found
    assert len(seen) <= TRIES + 2 * 9 + 2


def test_neighbours_are_measured_together_where_there_are_very_many() -> None:
    assert groups_of("abc") == [("a",), ("b",), ("c",)]
    assert groups_of([]) == []
    many = [str(k) for k in range(1000)]
    groups = groups_of(many)
    assert len(groups) == MOST_GROUPS
    assert list(itertools.chain(*groups)) == many
    assert {len(group) for group in groups} == {10, 11}


@pytest.fixture
def context(tmp_path: Path) -> Context:
    model = crafted()
    path = tmp_path / "crafted.onnx"
    onnx.save(model, str(path))
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(5).standard_normal((256, 3, 8, 8)).astype("f"))
    inputs = tuple(graph_inputs(from_model(model)))
    data = open_data(tmp_path / "d.npz", inputs)
    context = Context(path, inputs=inputs, data=data, evaluation=data, metric="cosine")
    context.max_drop = 0.02
    return context


def test_exactly_the_operator_that_cannot_stand_8_bits_stays_float(context: Context) -> None:
    result = to_model(PLAIN.run(from_model(crafted()), context))
    record: Any = context.record
    (kept,) = record["control"]["float"]
    assert (kept["node"], kept["weights"]) == ("second", "float")  # too few weights to store
    (left,) = record["left_float"]
    assert (left["node"], left["operator"]) == ("second", "Conv")
    assert left["reason"].startswith("accuracy: quantized alone it changes the outputs by")
    assert record["quantized"] == {"Conv": 2, "Gemm": 1}
    assert record["sensitivity"][0]["nodes"] == ["second"]
    assert record["sensitivity"][0]["alone"] > 20 * record["sensitivity"][1]["alone"]
    curve = record["control"]["curve"]
    assert [point["float"] for point in curve[:2]] == [0, None]
    assert not curve[0]["within"]
    assert curve[-1]["within"]
    producers = {output: node.op_type for node in result.graph.node for output in node.output}
    conv = {node.name: node for node in result.graph.node if node.op_type == "Conv"}
    assert producers.get(conv["second"].input[1]) is None
    assert producers[conv["third"].input[1]] == "DequantizeLinear"


def test_weights_of_an_operator_in_float_are_stored_where_that_is_enough(tmp_path: Path) -> None:
    """What the first operator reads has a range that 8 bits cannot hold; its weights are as good as any."""
    random = np.random.default_rng(1)
    shapes = {"w1": (64, 3, 3, 3), "w2": (16, 64, 1, 1), "w3": (10, 16)}
    values = {n: random.standard_normal(s) / np.sqrt(np.prod(s[1:])) for n, s in shapes.items()}
    values["w1"][:, 0] = 0
    nodes = [
        oh.make_node("Conv", ["x", "w1"], ["c1"], name="first", pads=[1] * 4),
        oh.make_node("Relu", ["c1"], ["r1"]),
        oh.make_node("Conv", ["r1", "w2"], ["c2"], name="second"),
        oh.make_node("GlobalAveragePool", ["c2"], ["p"]),
        oh.make_node("Flatten", ["p"], ["f"]),
        oh.make_node("Gemm", ["f", "w3"], ["y"], name="head", transB=1),
    ]
    weights = [nh.from_array(each.astype("f"), name) for name, each in values.items()]
    x, y = oh.make_tensor_value_info("x", 1, ["N", 3, 8, 8]), oh.make_tensor_value_info("y", 1, ["N", 10])
    graph = oh.make_graph(nodes, "g", [x], [y], weights)
    model = oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])
    onnx.save(model, str(tmp_path / "m.onnx"))
    samples = random.standard_normal((128, 3, 8, 8)).astype("f")
    samples[:, 0] *= 1e4
    np.savez(tmp_path / "d.npz", x=samples)
    inputs = tuple(graph_inputs(from_model(model)))
    data = open_data(tmp_path / "d.npz", inputs)
    context = Context(
        tmp_path / "m.onnx", inputs=inputs, data=data, evaluation=data, metric="cosine", max_drop=0.01
    )
    result = to_model(PLAIN.run(from_model(model), context))
    record: Any = context.record
    assert [(each["node"], each["weights"]) for each in record["control"]["float"]] == [("first", "stored")]
    assert record["stored"] == {"Conv": 1}
    assert record["quantized"] == {"Conv": 1, "Gemm": 1}
    before, after = (run(session(each), {"x": samples})[0] for each in (model, result))
    assert np.square(before - after).sum() < 0.01 * np.square(before).sum()


def test_what_is_float_for_speed_gets_float_weights_where_the_budget_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All arithmetic is float then, and only stored weights make errors: those of one operator make most."""
    model = crafted(16)
    onnx.save(model, str(tmp_path / "m.onnx"))
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(5).standard_normal((256, 3, 8, 8)).astype("f"))
    inputs = tuple(graph_inputs(from_model(model)))
    data = open_data(tmp_path / "d.npz", inputs)
    slow = dict.fromkeys([node.name for node in model.graph.node], "slow")
    monkeypatch.setattr(guarded, "guarded", lambda *_: guarded.Guarded(slow))
    context = Context(
        tmp_path / "m.onnx", inputs=inputs, data=data, evaluation=data, metric="cosine", max_drop=0.005
    )
    replace(PLAIN, guard=True).run(from_model(model), context)
    record: Any = context.record
    assert [(each["node"], each["weights"]) for each in record["control"]["float"]] == [("second", "float")]
    assert record["stored"] == {"Conv": 1}
    assert record["sensitivity"][0]["nodes"] == ["second"]
    assert record["sensitivity"][0]["alone"] > 20 * record["sensitivity"][1]["alone"]
    assert {each["node"]: each["reason"].partition(":")[0] for each in record["left_float"]} == {
        "first": "slow",
        "second": "accuracy",
        "third": "slow",
        "head": "slow",
    }


@pytest.mark.parametrize("kind", ["Conv", "grouped", "one channel", "ConvTranspose", "Gemm"])
def test_what_stays_float_is_float_in_onnxruntime(kind: str, tmp_path: Path) -> None:
    """Between two 8-bit operators onnxruntime quantizes float weights itself, with one scale for all of them."""
    random = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        values = random.standard_normal(shape)
        if name == "wide":
            values.reshape(-1)[0] = 3000
        return nh.from_array(values.astype("f"), name)

    first, wide, last = {
        "Conv": ((4, 3, 3, 3), (6, 4, 3, 3), (4, 6, 3, 3)),
        "grouped": ((4, 3, 3, 3), (6, 2, 3, 3), (4, 6, 3, 3)),
        "one channel": ((1, 3, 3, 3), (6, 1, 3, 3), (4, 6, 3, 3)),
        "ConvTranspose": ((4, 3, 3, 3), (4, 6, 3, 3), (4, 6, 3, 3)),
        "Gemm": ((8, 12), (12, 16), (16, 4)),
    }[kind]
    middle = kind if kind in ("ConvTranspose", "Gemm") else "Conv"
    outer = "Gemm" if kind == "Gemm" else "Conv"
    more = {"group": 2} if kind == "grouped" else {}
    nodes = [
        oh.make_node(outer, ["x", "w"], ["a"], name="first"),
        oh.make_node("Relu", ["a"], ["b"]),
        oh.make_node(middle, ["b", "wide", "bias"], ["c"], name="middle", **more),
        oh.make_node("Relu", ["c"], ["d"]),
        oh.make_node(outer, ["d", "v"], ["y"], name="last"),
    ]
    weights = [weight("w", *first), weight("wide", *wide), weight("bias", wide[1] if middle != "Conv" else 6)]
    x = oh.make_tensor_value_info("x", 1, ["N", 8] if kind == "Gemm" else ["N", 3, 9, 9])
    graph = oh.make_graph(
        nodes, "g", [x], [oh.make_tensor_value_info("y", 1, None)], [*weights, weight("v", *last)]
    )
    model = oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])
    feeds = {"x": random.standard_normal((64, 8) if kind == "Gemm" else (64, 3, 9, 9)).astype("f")}
    np.savez(tmp_path / "d.npz", **feeds)
    inputs = tuple(graph_inputs(from_model(model)))
    context = Context(Path("m.onnx"), inputs=inputs, data=open_data(tmp_path / "d.npz", inputs))
    result = to_model(replace(PLAIN, exclude=("middle",)).run(from_model(model), context))
    plain, fast = (run(session(result, optimize=optimize), feeds)[0] for optimize in (False, True))
    step = np.abs(plain).max() / 255  # one step of an 8-bit number may fall the other way
    assert np.abs(plain - fast).max() <= 2 * step


def test_within_the_budget_nothing_is_measured_further(context: Context) -> None:
    context.max_drop = 1.0
    context.confidence = 0.5
    PLAIN.run(from_model(crafted()), context)
    record: Any = context.record
    assert record["left_float"] == record["control"]["float"] == []
    assert len(record["control"]["curve"]) == 1
    assert "sensitivity" not in record


def test_a_budget_that_nothing_meets(context: Context) -> None:
    context.max_drop = 1e-9
    with pytest.raises(surgeon.GateError, match="no mix of float and quantized operators") as caught:
        replace(PLAIN, max_drop=1e-9).run(from_model(crafted()), context)
    assert caught.value.where == "quantize.max_drop"
    assert "3 operators in float" in str(caught.value)


def test_without_a_budget_there_is_no_control(context: Context) -> None:
    context.max_drop = None
    PLAIN.run(from_model(crafted()), context)
    assert "control" not in context.record
    with pytest.raises(surgeon.UsageError, match=r"must lie in \[0, 1\]"):
        Quantize(max_drop=2.0)


def test_sensitivity_is_the_error_relative_to_the_variance(tmp_path: Path) -> None:
    model = crafted()
    samples = np.random.default_rng(0).standard_normal((24, 3, 8, 8)).astype("f")
    np.savez(tmp_path / "d.npz", x=samples)
    data = open_data(tmp_path / "d.npz", graph_inputs(from_model(model)), batch=8)

    def rounded(names: Any) -> onnx.ModelProto:
        """Coarse weights everywhere but in the nodes named."""
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        for node in copy.graph.node:
            for entry in copy.graph.initializer:
                if entry.name in node.input and node.name not in names:
                    entry.CopyFrom(nh.from_array(np.round(nh.to_array(entry) * 8) / 8, entry.name))
        return copy

    def outputs(names: Any) -> np.ndarray:
        return run(session(rounded(names)), {"x": samples})[0].astype(np.float64)

    truth = run(session(model), {"x": samples})[0].astype(np.float64)

    def error(names: Any) -> float:
        return float(np.square(outputs(names) - truth).sum() / np.square(truth - truth.mean(axis=0)).sum())

    names = ["first", "second", "third", "head"]
    expected = Outputs.of(model, data)
    found = sensitivities(rounded, names, expected, 1)
    assert sensitivities(rounded, names, expected, 3) == found
    assert [each.alone for each in found] == sorted((each.alone for each in found), reverse=True)
    for each in found:
        assert each.alone == pytest.approx(error([n for n in names if n not in each.nodes]), rel=1e-5)


def taken_apart(model: onnx.ModelProto, tmp_path: Path) -> tuple[Maker, onnx.ModelProto, Parts]:
    feeds = synthetic(graph_inputs(from_model(model)), seed=1, batch=64)
    np.savez(tmp_path / "d.npz", **feeds)
    data = open_data(tmp_path / "d.npz", graph_inputs(from_model(model)))
    ready = prepared(model, lambda _: False, tmp_path)
    maker = Maker(ready, PLAIN, lambda _: False, lambda: data, tmp_path, dataless=False, threads=1)
    whole = maker.draft(maker.whole)
    return maker, whole, Parts(maker.model, whole, maker.whole.nodes, maker.whole.weighted)


@pytest.mark.parametrize("build", [crafted, network])
def test_parts_of_a_quantized_model(build: Any, tmp_path: Path) -> None:
    """All of it together is the quantized model, none of it the float one, and what is in between as if made anew."""
    maker, whole, parts = taken_apart(build(), tmp_path)
    feeds = synthetic(graph_inputs(from_model(build())), seed=2, batch=4)

    def outputs(model: onnx.ModelProto) -> np.ndarray:
        return run(session(model, optimize=False), feeds)[0]

    names = list(maker.whole.weighted)
    np.testing.assert_array_equal(outputs(parts.with_quantized(names)), outputs(whole))
    np.testing.assert_array_equal(outputs(parts.with_quantized([])), outputs(maker.model))
    for name in names:
        others = [each for each in names if each != name]
        anew = outputs(maker.draft(maker.choose(dict.fromkeys(others, "for the test"))))
        alone = parts.with_quantized([name])
        if not any(
            node.name == "sum" for node in maker.model.graph.node
        ):  # anew, a sum with a float stays float
            np.testing.assert_array_equal(outputs(alone), anew)
        assert not np.array_equal(outputs(alone), outputs(maker.model))


def test_a_sum_goes_with_the_last_convolution_before_it(tmp_path: Path) -> None:
    maker, _, parts = taken_apart(network(), tmp_path)
    for name, rounds in (("first", False), ("second", True)):
        found = parts.with_quantized([name])
        readers = {node.input[0]: node.op_type for node in found.graph.node}
        total = next(node for node in found.graph.node if node.name == "sum")
        assert (readers[total.output[0]] == "QuantizeLinear") is rounds
    assert set(maker.whole.weighted) == {"first", "second", "head"}


class Blur(Pass):
    """Adds the same number to all weights of the classifier's first class, as a pass with a price would."""

    name: ClassVar[str] = "blur"
    ran: ClassVar[list[bool]] = []

    def run(self, graph: Graph, context: Context) -> Graph:
        self.ran.append(context.trial)
        gemm = next(node for node in graph.nodes if node.op == "Gemm")
        gemm.inputs[2].values = gemm.inputs[2].values + np.eye(10, dtype=np.float32)[0] * 0.05
        return graph


class Learner(Blur):
    """A pass that is left out of trials."""

    name: ClassVar[str] = "learner"
    learns: ClassVar[bool] = True


def test_a_cut_is_judged_by_what_later_passes_make_of_it(tmp_path: Path) -> None:
    model, data = tiny.convnet(tmp_path / "m.onnx"), tiny.samples(tmp_path / "d.npz", 200, labels=False)
    prune = Prune(tries=3, score="l2", reconstruct=False)

    def budget(*passes: Pass) -> Any:
        Blur.ran.clear()
        result = surgeon.run(
            model,
            passes=[prune, *passes],
            data=data,
            evaluation=data,
            metric="mse",
            max_drop=0.01,
            confidence=0.5,
        )
        found = next(each for each in result.report["passes"] if each["name"] == "prune")["budget"]
        return found, result.report

    alone, _ = budget()
    both, report = budget(Blur())
    assert (alone["judged_after"], both["judged_after"]) == ([], ["blur"])
    assert Blur.ran == [True] * len(both["curve"]) + [False]
    taken = next(point for point in both["curve"] if point["within"])
    assert taken["metric"] == report["after"]["metric"] <= 0.01
    assert both["curve"][-1]["asked"] == 1.0
    same = {point["asked"]: point["metric"] for point in alone["curve"]}
    more = [point["metric"] - same[point["asked"]] for point in both["curve"] if point["asked"] in same]
    assert more
    assert all(difference != 0 for difference in more)
    assert budget(Learner())[0] == alone
    assert Blur.ran == [False]


def test_prune_and_quantize_share_one_budget(tmp_path: Path) -> None:
    model, data = tiny.convnet(tmp_path / "m.onnx"), tiny.samples(tmp_path / "d.npz", 200, labels=False)
    out = tmp_path / "o.onnx"
    report = surgeon.run(
        model,
        "prune{tries=2 score=l2 reconstruct=false},quantize{guard=false}",
        data=data,
        evaluation=data,
        max_drop=0.2,
        destination=out,
        force=True,
    ).report
    prune, quantize = report["passes"][-2:]
    taken = next(point for point in prune["budget"]["curve"] if point["taken"])
    assert prune["budget"]["judged_after"] == ["quantize"]
    assert taken["metric"] == quantize["control"]["curve"][0]["metric"]
    assert report["after"]["metric"] in [point["metric"] for point in quantize["narrow"]["curve"]]
    assert taken["bytes"] > report["after"]["bytes"] == out.stat().st_size
    assert quantize["control"]["float"] == []
    assert report["after"]["macs"] < report["before"]["macs"]
    assert report["after"]["metric"] >= 0.8


def test_where_the_whole_model_needs_operators_in_float_cuts_are_tried_with_these(tmp_path: Path) -> None:
    path, out = tmp_path / "crafted.onnx", tmp_path / "o.onnx"
    onnx.save(crafted(), str(path))
    x = np.random.default_rng(5).standard_normal((256, 3, 8, 8)).astype("f")
    report = surgeon.run(
        path,
        [Prune(tries=2, score="l2", reconstruct=False, exclude=("w1", "w2")), PLAIN],
        clean=False,
        data={"x": x[:128]},
        evaluation={"x": x[128:]},
        metric="mse",
        max_drop=0.01,
        destination=out,
        force=True,
    ).report
    prune, quantize = report["passes"][-2:]
    uncut = [point for point in prune["budget"]["curve"] if point["asked"] == 1.0]
    assert [point["within"] for point in uncut] == [False, True]
    assert [entry["node"] for entry in quantize["control"]["float"]] == ["second"]
    assert len(quantize["control"]["curve"]) == 1
    assert [entry["node"] for entry in quantize["left_float"]] == ["second"]
    assert report["after"]["metric"] <= 0.01
