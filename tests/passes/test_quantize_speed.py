"""The speed guard: what it proposes is the best split, what it takes is the fastest model, and what runs is counted."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper as nh
from quantizable import context_for, fed_by_eight_bits, network, quantized, weight

from surgeon.graph.load import from_model
from surgeon.graph.save import to_model
from surgeon.graph.sessions import run, session
from surgeon.stats.kernels import Kernel
from surgeon.stats.latency import Latency
from surgeon_passes.quantize import Quantize
from surgeon_passes.quantizing import speed
from surgeon_passes.quantizing.choose import FUSED, Choice, choose
from surgeon_passes.quantizing.kernels import count
from surgeon_passes.quantizing.partition import Times, Unit, best, predicted, units_of


def convolutions(edges: Sequence[tuple[str, ...]], operators: Sequence[str] = ()) -> onnx.ModelProto:
    """Nodes ``n0``, ``n1``, … that read the tensors named and write ``t0``, ``t1``, …; the last one is the output."""
    nodes = []
    for index, inputs in enumerate(edges):
        operator = operators[index] if operators else ("Conv" if len(inputs) == 1 else "Add")
        weights = ["w"] if operator == "Conv" else []
        nodes.append(oh.make_node(operator, [*inputs, *weights], [f"t{index}"], name=f"n{index}"))
    x = oh.make_tensor_value_info("x", 1, [1, 8, 4, 4])
    y = oh.make_tensor_value_info(f"t{len(edges) - 1}", 1, [1, 8, 4, 4])
    graph = oh.make_graph(nodes, "g", [x], [y], [weight("w", 8, 8, 1, 1)])
    return oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])


def whole_of(model: onnx.ModelProto) -> Choice:
    names = [node.name for node in model.graph.node]
    return Choice(names, {node.name: node.op_type for node in model.graph.node if node.op_type == "Conv"})


def cost(model: onnx.ModelProto, times: Times, integer: set[str]) -> float:
    """Time of a split, written out: every node its own, and every tensor that is needed on the other side once."""
    total = sum(
        (times.integers if node.name in integer else times.floats)[node.name] for node in model.graph.node
    )
    made = {name: node.name in integer for node in model.graph.node for name in node.output}
    readers: dict[str, list[bool]] = {model.graph.output[0].name: [False]}
    for node in model.graph.node:
        for name in node.input:
            if name != "w":
                readers.setdefault(name, []).append(node.name in integer)
    for tensor, sides in readers.items():
        if any(side != made.get(tensor, False) for side in sides):
            total += times.conversion(tensor)
    return total


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_the_split_is_the_best_of_all(data: st.DataObject) -> None:
    number = data.draw(st.integers(1, 6))
    tensors = ["x", *(f"t{index}" for index in range(number))]
    edges = [
        tuple(data.draw(st.lists(st.sampled_from(tensors[: index + 1]), min_size=1, max_size=2, unique=True)))
        for index in range(number)
    ]
    # every node a unit: sums read what comes from elsewhere too
    model = convolutions(edges)
    microseconds = st.integers(0, 50).map(float)
    times = Times(
        {f"n{index}": data.draw(microseconds) for index in range(number)},
        {f"n{index}": data.draw(microseconds) for index in range(number)},
        {name: data.draw(st.integers(0, 20)) for name in tensors},
        1.0,
        2.0,
    )
    whole = whole_of(model)
    units = units_of(model.graph, whole, times)
    floats, least = best(model.graph, whole, times)
    integer = set(whole.nodes) - {name for unit in floats for name in unit.nodes}
    splits = [
        {name for unit, taken in zip(units, chosen, strict=True) if taken for name in unit.nodes}
        for chosen in itertools.product((False, True), repeat=len(units))
        # a sum has 8 bits only where what it adds up does
        if all(
            chosen[need] for unit, taken in zip(units, chosen, strict=True) if taken for need in unit.needs
        )
    ]
    assert least == pytest.approx(cost(model, times, integer))
    assert least == pytest.approx(min(cost(model, times, each) for each in splits))
    for each in splits:
        assert predicted(model.graph, whole, times, set(whole.nodes) - each) == pytest.approx(
            cost(model, times, each)
        )


@pytest.mark.parametrize(
    ("joined", "nodes", "needs"),
    [
        (True, [["n0", "n1", "n2"], ["n3"], ["n4"]], [set(), set(), {0, 1}]),
        (False, [["n0"], ["n1"], ["n2"], ["n3"], ["n4"]], [set(), {0}, {0}, set(), {0, 3}]),
    ],
)
def test_what_depends_on_one_operator_alone_goes_with_it(
    joined: bool, nodes: list[list[str]], needs: list[set[int]]
) -> None:
    model = convolutions(
        [("x",), ("t0",), ("t1", "t0"), ("x",), ("t2", "t3")], ["Conv", "Sigmoid", "Mul", "Conv", "Add"]
    )
    times = Times({f"n{index}": 1.0 for index in range(5)}, {"n1": 3.0}, {}, 0.0, 0.0)
    units = units_of(model.graph, whole_of(model), times, joined=joined)
    assert [unit.nodes for unit in units] == nodes
    assert [unit.needs for unit in units] == needs
    assert sum(unit.float_us for unit in units) == 5.0
    assert (units[0].float_us, units[0].integer_us) == ((3.0, 3.0) if joined else (1.0, 0.0))


def test_what_is_fused_into_an_operator_goes_with_it() -> None:
    model = convolutions([("x",), ("t0",), ("t1",)], ["Conv", "Relu", "AveragePool"])
    for floats in (
        {"n0": 9.0, "n2": 1.0},
        {"n1": 9.0, "n2": 1.0},
    ):  # a fused kernel may be named after either
        times = Times(floats, {"n0": 3.0, "n2": 8.0}, {}, 0.0, 0.0)
        units = units_of(model.graph, whole_of(model), times)
        assert [unit.nodes for unit in units] == [["n0", "n1"], ["n2"]]
        assert [(unit.float_us, unit.integer_us) for unit in units] == [(9.0, 3.0), (1.0, 8.0)]
    said = speed.reasons([Unit(["n0"], 0.0, 3.0), Unit(["n2"], 1.0, 8.0), Unit(["n3"], 9.0, 3.0)])
    assert said["n2"] == "8 bits take 8.0 times as long here"
    assert said["n0"] == said["n3"] == "converting to 8 bits and back costs more here than it saves"


POOLED = Times(
    {"n0": 90.0, "n1": 2.0, "n2": 90.0},
    {"n0": 30.0, "n1": 50.0, "n2": 30.0},
    dict.fromkeys(("x", "t0", "t1", "t2"), 1),
    1.0,
    0.0,
)


def test_a_pooling_that_is_slow_in_eight_bits_stays_float_without_the_convolution_before_it() -> None:
    """Together they lose nothing in 8 bits, and a convolution in float takes its pooling along."""
    model = convolutions([("x",), ("t0",), ("t1",)], ["Conv", "AveragePool", "Exp"])
    whole = choose(model, lambda name: False, static=True)
    assert whole.nodes == ["n0", "n1"]
    floats, least = best(model.graph, whole, POOLED)
    assert [unit.nodes for unit in floats] == [["n1"]]
    assert least == predicted(model.graph, whole, POOLED, {"n1"}) == 30 + 2 + 2
    assert best(model.graph, whole, POOLED, joined=True) == ([], 30 + 50 + 2)
    assert predicted(model.graph, whole, POOLED, {"n0"}) == 90 + 2
    proposed = speed._proposals(
        model, whole, lambda stay: choose(model, lambda name: False, static=True, stay=stay), POOLED
    )
    assert [(choice.nodes, list(stay)) for choice, stay in proposed] == [(["n0"], ["n1"])]


def test_a_pooling_between_eight_bits_has_such_whatever_is_written() -> None:
    """onnxruntime sees to that: it is not proposed, and its time is not hoped for."""
    model = convolutions([("x",), ("t0",), ("t1",)], ["Conv", "AveragePool", "Conv"])
    whole = choose(model, lambda name: False, static=True)
    assert best(model.graph, whole, POOLED) == ([], 30 + 50 + 30 + 2)


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes"),
    [
        ("AveragePool", ["b"], {"kernel_shape": [3, 3], "pads": [1] * 4}),
        ("GlobalAveragePool", ["b"], {}),
        ("Add", ["a", "b"], {}),
        ("Mul", ["a", "b"], {}),
        ("Sigmoid", ["b"], {}),
        ("LeakyRelu", ["b"], {}),
        ("Concat", ["a", "b"], {"axis": 1}),
        ("Resize", ["b", "", "scales"], {"mode": "nearest"}),
        ("MaxPool", ["b"], {"kernel_shape": [3, 3], "pads": [1] * 4}),
    ],
)
def test_what_onnxruntime_computes_in_eight_bits_all_the_same(
    operator: str, inputs: list[str], attributes: dict[str, object]
) -> None:
    channels = 16 if operator == "Concat" else 8
    nodes = [
        oh.make_node("Conv", ["x", "w"], ["a"], name="one"),
        oh.make_node("Conv", ["a", "w"], ["b"], name="two"),
        oh.make_node(operator, inputs, ["c"], name="middle", **attributes),
        oh.make_node("Conv", ["c", "v"], ["y"], name="three"),
    ]
    weights = [weight("w", 8, 8, 1, 1), weight("v", 8, channels, 1, 1)]
    weights.append(nh.from_array(np.array([1, 1, 2, 2], np.float32), "scales"))
    ends = [oh.make_tensor_value_info("x", 1, ["N", 8, 6, 6]), oh.make_tensor_value_info("y", 1, None)]
    model = oh.make_model(
        oh.make_graph(nodes, "g", ends[:1], ends[1:], weights),
        ir_version=8,
        opset_imports=[oh.make_opsetid("", 17)],
    )
    counts = []
    for exclude in ((), ("middle",)):
        context = context_for(model)
        quantized(model, context, exclude=exclude)
        counts.append((context.record["kernels"], context.record["leftover"]))
    assert (counts[0] == counts[1]) == (operator in FUSED)


OPERATORS = ("Conv", "Add", "Concat", "AveragePool", "Sigmoid", "Mul", "Exp", "Resize")


@given(st.data(), st.booleans())
@settings(max_examples=80, deadline=None)
def test_a_split_is_what_is_made_of_it(data: st.DataObject, joined: bool) -> None:
    """Whatever stays float by the split: of the others, all have 8 bits, and no more."""
    number = data.draw(st.integers(2, 9))
    tensors = ["x", *(f"t{index}" for index in range(number))]
    operators, edges = [], []
    for index in range(number):
        operators.append(data.draw(st.sampled_from(OPERATORS)) if index else "Conv")
        count = 2 if operators[-1] in ("Add", "Mul", "Concat") else 1
        edges.append(tuple(data.draw(st.sampled_from(tensors[: index + 1])) for _ in range(count)))
    model = convolutions(edges, operators)
    whole = choose(model, lambda name: False, static=True)
    microseconds = st.integers(0, 50).map(float)
    floats, integers = ({f"n{k}": data.draw(microseconds) for k in range(number)} for _ in range(2))
    times = Times(floats, integers, dict.fromkeys(tensors, data.draw(st.integers(0, 20))), 1.0, 2.0)
    units, least = best(model.graph, whole, times, joined=joined)
    stay = {name: "slow" for unit in units for name in unit.nodes}
    made = choose(model, lambda name: False, static=True, stay=stay)
    assert made.nodes == [name for name in whole.nodes if name not in stay]
    assert least < float("inf")


def test_what_only_moves_values_takes_the_side_of_its_neighbours() -> None:
    model = convolutions([("x",), ("t0",), ("t1",)], ["Conv", "Flatten", "Conv"])
    whole = Choice(["n0", "n2"], {"n0": "Conv", "n2": "Conv"})
    times = Times({"n0": 10.0, "n2": 10.0}, {"n0": 1.0, "n2": 1.0}, {"t0": 100, "t1": 100}, 1.0, 0.0)
    floats, least = best(model.graph, whole, times)
    assert floats == []
    assert least == 2.0


def latency(ratio: float) -> Latency:
    return Latency(ratio, ratio, ratio, ratio, ratio, ratio, rounds=100)


class Clockwork:
    """A stopwatch for which the operators named are slow in 8 bits, and everything else takes half of the time."""

    def __init__(self, slow: Mapping[str, float], float_us: float = 100.0) -> None:
        self.slow, self.float_us = slow, float_us
        self.raced: list[list[float]] = []

    def time(self, model: onnx.ModelProto, node: onnx.NodeProto) -> float:
        producers = {name: each.op_type for each in model.graph.node for name in each.output}
        if len(node.input) < 2 or producers.get(node.input[1]) != "DequantizeLinear":
            return self.float_us
        return self.float_us * self.slow.get(node.name, 0.5)

    def profile(self, model: onnx.ModelProto, feeds: object) -> Sequence[Kernel]:
        del feeds
        return [
            Kernel(node.name, node.op_type, self.time(model, node), 10)
            for node in model.graph.node
            if node.op_type in ("Conv", "Gemm", "MatMul")
        ]

    def race(self, models: Sequence[onnx.ModelProto], feeds: object, seconds: float) -> Sequence[Latency]:
        totals = [sum(kernel.microseconds for kernel in self.profile(model, feeds)) for model in models]
        self.raced.append([total / totals[0] for total in totals])
        assert seconds > 0
        return [latency(ratio) for ratio in self.raced[-1]]

    def stopwatch(self) -> speed.Stopwatch:
        return speed.Stopwatch(self.profile, self.race)


def with_clockwork(monkeypatch: pytest.MonkeyPatch, clockwork: Clockwork) -> None:
    stopwatch = clockwork.stopwatch()
    monkeypatch.setattr(speed, "Stopwatch", lambda: stopwatch)


def test_a_slow_operator_stays_float(monkeypatch: pytest.MonkeyPatch) -> None:
    with_clockwork(monkeypatch, Clockwork({"second": 3.0}))
    context = context_for(network())
    result = quantized(network(), context, guard=True)
    assert fed_by_eight_bits(result, "Conv") == [True, False]
    assert fed_by_eight_bits(result, "Gemm") == [True]
    assert context.record["left_float"] == [
        {"node": "second", "operator": "Conv", "reason": "8 bits take 3.0 times as long here"}
    ]
    facts: dict[str, object] = context.record["speed"]  # type: ignore[assignment]  # JSON facts
    ratios = [(each["operators"], each["ratio"], each["taken"]) for each in facts["candidates"]]  # type: ignore[attr-defined]
    assert ratios[0] == (3, pytest.approx(4 / 3), False)
    assert (2, pytest.approx(2 / 3), True) in ratios


def test_what_the_guard_decided_can_be_repeated_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with_clockwork(monkeypatch, Clockwork({"first": 3.0}))
    context = context_for(network())
    guarded = quantized(network(), context, guard=True)
    patterns = tuple(context.record["speed"]["exclude"])  # type: ignore[index]  # JSON facts
    assert "first" in patterns
    repeated = quantized(network(), context_for(network()), exclude=patterns)
    assert repeated.SerializeToString(deterministic=True) == guarded.SerializeToString(deterministic=True)


def test_more_eight_bits_are_preferred_where_the_difference_is_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    clockwork = Clockwork({"second": 1.05})  # 105 of 300 against 100: less than 3 % of the model's time
    with_clockwork(monkeypatch, clockwork)
    context = context_for(network())
    assert fed_by_eight_bits(quantized(network(), context, guard=True), "Conv") == [True, True]


@pytest.mark.parametrize(
    ("ratio", "expected", "taken"),
    [(0.53, 1, "light"), (0.509, 1, "all"), (0.509, 3, "light"), (0.495, 3, "light"), (0.488, 3, "all")],
)
def test_the_profile_decides_where_neither_time_nor_bytes_differ(
    ratio: float, expected: float, taken: str
) -> None:
    """Time is 0.5 without an operator that has a thousandth of the weights, ``ratio`` with it, less with fewer weights."""
    model = convolutions([("x",), ("t0",), ("t1",)])
    for index, channels in enumerate((1, 99, 900)):
        model.graph.node[index].input[1] = f"w{index}"
        model.graph.initializer.append(weight(f"w{index}", channels, 8, 1, 1))

    def candidate(time: float, expected: float, *names: str) -> speed.Candidate:
        left = dict.fromkeys({"n0", "n1", "n2"} - set(names), ("Conv", "slow"))
        choice = Choice(list(names), dict.fromkeys(names, "Conv"), left)
        return speed.Candidate(choice, {}, latency(time), expected)

    every, light = candidate(ratio, expected, "n0", "n1", "n2"), candidate(0.5, 2, "n1", "n2")
    heavy, slow = candidate(0.48, 0, "n1"), candidate(0.6, 0, "n2")
    candidates = {"all": every, "light": light, "heavy": heavy, "slow": slow}
    assert speed._pick(list(candidates.values()), model) is candidates[taken]


def test_nothing_is_left_out_where_everything_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    clockwork = Clockwork({})
    with_clockwork(monkeypatch, clockwork)
    context = context_for(network())
    quantized(network(), context, guard=True)
    assert context.record["left_float"] == []
    assert all(len(ratios) <= 3 for ratios in clockwork.raced)


@pytest.mark.parametrize("slow", [3.0, 1.0])
def test_where_nothing_pays_only_weights_are_stored(slow: float, monkeypatch: pytest.MonkeyPatch) -> None:
    with_clockwork(monkeypatch, Clockwork(dict.fromkeys(("first", "second", "head"), slow)))
    context = context_for(network())
    result = quantized(network(), context, guard=True)
    assert not any(node.op_type == "QuantizeLinear" for node in result.graph.node)
    assert context.record["quantized"] == {}
    assert context.record["stored"] == {"Conv": 1}  # the others have fewer than 1,024 weights
    left: list[dict[str, str]] = context.record["left_float"]  # type: ignore[assignment]  # JSON facts
    assert [each["node"] for each in left] == ["first", "second", "head"]
    assert all("times as long" in each["reason"] for each in left)


def layers(*, head: bool) -> onnx.ModelProto:
    """Two LSTMs, and a matrix product behind them or nothing."""
    nodes = [
        oh.make_node("LSTM", ["x", "w", "r"], ["h", "", ""], name="one", hidden_size=32),
        oh.make_node("Squeeze", ["h", "axis"], ["s"]),
        oh.make_node("LSTM", ["s", "v", "u"], ["g", "", ""], name="two", hidden_size=32),
        oh.make_node("Squeeze", ["g", "axis"], ["t" if head else "y"]),
        oh.make_node("MatMul", ["t", "o"], ["y"], name="head"),
    ]
    weights = [
        weight("w", 1, 128, 24),
        weight("r", 1, 128, 32),
        weight("v", 1, 128, 32),
        weight("u", 1, 128, 32),
    ]
    weights += [nh.from_array(np.array([1]), "axis"), weight("o", 32, 64)]
    ends = [oh.make_tensor_value_info("x", 1, ["T", "N", 24]), oh.make_tensor_value_info("y", 1, None)]
    graph = oh.make_graph(nodes[: 4 + head], "g", ends[:1], ends[1:], weights[: 5 + head])
    return oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])


class Layers(Clockwork):
    """The same for LSTMs, which have an operator of their own in 8 bits."""

    def time(self, model: onnx.ModelProto, node: onnx.NodeProto) -> float:
        if node.op_type == "DynamicQuantizeLSTM":
            return self.float_us * self.slow.get(node.name.removesuffix("_quant"), 0.5)
        return self.float_us if node.op_type == "LSTM" else 1.0

    def profile(self, model: onnx.ModelProto, feeds: object) -> Sequence[Kernel]:
        del feeds
        nodes = [node for node in model.graph.node if node.op_type in ("LSTM", "DynamicQuantizeLSTM")]
        return [Kernel(node.name, node.op_type, self.time(model, node), 10) for node in nodes]


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize(
    ("slow", "kept"), [({}, []), ({"two": 3.0}, ["two"]), ({"one": 1.0, "two": 1.0}, ["one", "two"])]
)
def test_an_lstm_that_8_bits_do_not_make_faster_stays_float(
    slow: dict[str, float], kept: list[str], head: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_clockwork(monkeypatch, Layers(slow))
    model = layers(head=head)
    context = context_for(model)
    result = quantized(model, context, guard=True)
    operators = [node.op_type for node in result.graph.node]
    assert operators.count("LSTM") == len(kept)
    assert operators.count("DynamicQuantizeLSTM") == 2 - len(kept)
    record: Any = context.record
    assert record["quantized"].get("LSTM", 0) == 2 - len(kept)
    assert record["stored"].get("LSTM", 0) == len(kept)  # their weights have 8 bits in the file all the same
    left = {each["node"]: each["reason"] for each in record["left_float"] if each["operator"] == "LSTM"}
    assert list(left) == kept
    assert all("times as long" in reason for reason in left.values())
    assert set(kept) <= set(record["speed"]["exclude"])
    assert any(each["taken"] for each in record["speed"]["recurrent"]) == (len(kept) < 2)


def spoken() -> onnx.ModelProto:
    """A table, a recurrent layer without 8-bit kernel, and a product that transposes what it reads: none can be static."""
    nodes = [
        oh.make_node("Gather", ["table", "ids"], ["x"], name="table"),
        oh.make_node("GRU", ["x", "w", "r"], ["h"], name="layer", hidden_size=64),
        oh.make_node("Squeeze", ["h", "axis"], ["s"]),
        oh.make_node("Squeeze", ["s", "first"], ["t"]),
        oh.make_node("Gemm", ["t", "o", "b"], ["y"], name="head"),
    ]
    weights = [weight("table", 200, 32), weight("w", 1, 192, 32), weight("r", 1, 192, 64)]
    weights += [nh.from_array(np.array([1]), "axis"), nh.from_array(np.array([0]), "first")]
    weights += [weight("o", 64, 300), weight("b", 300)]
    ends = [oh.make_tensor_value_info("ids", 7, [1, "N"]), oh.make_tensor_value_info("y", 1, ["N", 300])]
    graph = oh.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    return oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])


class Stored(Clockwork):
    """Nothing pays in 8 bits; a MatMulNBits and a look-up in 8 bits take this many times as long as floats."""

    def __init__(self, product: float, look_up: float) -> None:
        super().__init__(dict.fromkeys(("table", "head"), 3.0))
        self.product, self.look_up = product, look_up

    def time(self, model: onnx.ModelProto, node: onnx.NodeProto) -> float:
        stored = {each.name for each in model.graph.initializer if each.data_type == onnx.TensorProto.INT8}
        if node.op_type == "MatMulNBits":
            return self.float_us * self.product
        if node.name == "table" and node.input[0] in stored:
            return self.float_us * self.look_up
        return super().time(model, node)

    def profile(self, model: onnx.ModelProto, feeds: object) -> Sequence[Kernel]:
        del feeds
        return [
            Kernel(node.name, node.op_type, self.time(model, node), 10)
            for node in model.graph.node
            if node.name in ("table", "head") or node.op_type == "DequantizeLinear"
        ]


@pytest.mark.parametrize(
    ("product", "look_up", "folded"),
    [
        (0.5, 0.9, []),
        (0.5, 1.0, []),  # as fast, and smaller in memory
        (3.0, 0.9, ["Gemm"]),
        (0.5, 1.2, ["Gather"]),
        (3.0, 1.2, ["Gather", "Gemm"]),
    ],
)
def test_stored_weights_are_read_as_floats_where_their_kernels_are_slower(
    product: float, look_up: float, folded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_clockwork(monkeypatch, Stored(product, look_up))
    model = spoken()
    context = context_for(model)
    result = quantized(model, context, guard=True)
    operators = [node.op_type for node in result.graph.node]
    assert operators.count("MatMulNBits") == ("Gemm" not in folded)
    assert operators.count("Gather") == (1 if "Gather" in folded else 2)
    record: Any = context.record
    assert record["stored"] == dict.fromkeys(sorted([*folded, "GRU"]), 1)
    assert record["quantized"] == dict.fromkeys(sorted({"Gather", "Gemm"} - {*folded}), 1)
    assert [each["folded"] for each in record["speed"]["stored"] if each["taken"]] == [folded]
    assert result.ByteSize() < 0.35 * model.ByteSize()
    feeds = {"ids": np.arange(24).reshape(1, 24)}
    expected, found = (run(session(each), feeds)[0] for each in (model, result))
    assert np.abs(expected - found).max() < 0.05 * np.abs(expected).max()


def test_what_the_guard_refused_was_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with_clockwork(monkeypatch, Clockwork(dict.fromkeys(("first", "second", "head"), 3.0)))
    context = context_for(network())
    quantized(network(), context, guard=True)
    facts: Any = context.record["speed"]
    assert not any(each["taken"] for each in facts["candidates"])
    assert {"first", "second", "head"} <= set(facts["exclude"])


def test_dynamic_mode_is_guarded_by_the_names_onnxruntime_gives() -> None:
    nodes = [
        oh.make_node("MatMul", ["x", "w1"], ["h"], name="one"),
        oh.make_node("Gemm", ["h", "w2"], ["y"], name="two", transB=1),
    ]
    ends = [oh.make_tensor_value_info(name, 1, ["N", 64]) for name in "xy"]
    graph = oh.make_graph(nodes, "g", ends[:1], ends[1:], [weight("w1", 64, 64), weight("w2", 64, 64)])
    model = oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])
    floats = [Kernel("one", "MatMul", 10.0, 64), Kernel("two", "Gemm", 10.0, 64)]
    integers = [
        Kernel("one_quant", "MatMulInteger", 5.0, 64),
        Kernel("two_MatMul_quant", "MatMulInteger", 20.0, 64),
    ]
    times = speed.measure(floats, integers, model, {"x": np.zeros((1, 64), "f")})
    assert (times.floats, times.integers) == ({"one": 10.0, "two": 10.0}, {"one": 5.0, "two": 20.0})


def test_what_converting_costs_is_taken_from_the_profile() -> None:
    model = convolutions([("x",), ("t0",)])
    floats = [Kernel("n0", "Conv", 10.0, 128), Kernel("n1", "Conv", 10.0, 128)]
    integers = [
        Kernel("x_QuantizeLinear", "QuantizeLinear", 3.0, 100),
        Kernel("", "Transpose", 2.0, 100),
        Kernel("n0", "QLinearConv", 4.0, 128),
        Kernel("n1", "QLinearConv", 4.0, 128),
        Kernel("t1_DequantizeLinear", "DequantizeLinear", 5.0, 300),
    ]
    times = speed.measure(floats, integers, model, {"x": np.zeros((1, 8, 4, 4), "f")})
    assert times.per_element == (2.0 + 1.0 + 4.0) / 400  # without the microsecond that starts each kernel
    assert times.sizes == {"x": 128, "t0": 128, "t1": 128}


def test_the_guard_says_when_it_cannot_measure() -> None:
    nodes = [oh.make_node("Gather", ["table", "ids"], ["e"]), oh.make_node("MatMul", ["e", "w"], ["y"])]
    ids = oh.make_tensor_value_info("ids", 7, ["N", "length"])
    y = oh.make_tensor_value_info("y", 1, None)
    graph = oh.make_graph(nodes, "g", [ids], [y], [weight("table", 2, 1024), weight("w", 1024, 8)])
    model = oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])
    context = context_for(model, data=False)
    result = Quantize(mode="dynamic").run(from_model(model), context)  # made-up indices are out of range
    assert context.record["quantized"] == {"Gather": 1, "MatMul": 1}
    assert any("could not be measured" in text for text in context.warnings)
    assert to_model(result).graph.output[0].name == "y"


def test_integer_kernels_conversions_and_float_kernels_are_counted() -> None:
    context = context_for(network())
    quantized(network(), context)
    assert context.record["kernels"] == {
        "QGemm": 1,
        "QLinearAdd": 1,
        "QLinearConv": 2,
        "QLinearGlobalAveragePool": 1,
    }
    assert context.record["leftover"] == {"DequantizeLinear": 0, "QuantizeLinear": 1}
    assert context.record["float_kernels"] == {}
    context = context_for(network())
    quantized(network(), context, exclude=("second",))
    assert context.record["float_kernels"] == {"Conv": 1}


def test_kernels_of_a_float_model() -> None:
    assert count(network()) == {
        "kernels": {},
        "leftover": {"DequantizeLinear": 0, "QuantizeLinear": 0},
        "float_kernels": {"Conv": 2, "Gemm": 1},
    }
