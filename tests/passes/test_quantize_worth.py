"""What is not worth its error: few models find who is to blame, and only what costs little time stays float."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx.helper as oh
import pytest
from quantizable import context_for, crafted, network, weight

from surgeon.graph.load import from_model
from surgeon.stats.compare import Outputs
from surgeon.stats.latency import Latency
from surgeon_passes.quantize import Quantize
from surgeon_passes.quantizing import guarded, speed, worth
from surgeon_passes.quantizing.control import Mixes
from surgeon_passes.quantizing.folding import Folding
from surgeon_passes.quantizing.maker import Maker
from surgeon_passes.quantizing.partition import Times
from surgeon_passes.quantizing.prepare import prepared
from surgeon_passes.quantizing.sensitivity import HALVED, LEAST, Sensitivity, largest

OPTIONS = Quantize(equalize=False, smooth=False, calibration="minmax", correct_bias=False)
MOST = 48
CONVOLUTIONS = ("first", "second", "third")


class Added:
    """Outputs whose error is the sum of those of the quantized operators; models are the sets of their names."""

    def __init__(self, errors: dict[str, float]) -> None:
        self.errors, self.asked = errors, 0

    def left(self, floats: Collection[str]) -> Any:
        return self.errors.keys() - set(floats)

    def divergence(self, model: Any, threads: int) -> float:
        self.asked += 1
        return sum(self.errors[name] for name in model)


@pytest.mark.parametrize("blamed", [(), (0,), (63,), (3, 4), (10, 40, 41)])
def test_few_models_find_who_makes_most_of_the_error(blamed: tuple[int, ...]) -> None:
    names = [f"n{index}" for index in range(64)]
    added = Added(dict.fromkeys(names, 0.0001) | {f"n{index}": 1.0 + index for index in blamed})
    found = largest(added.left, names, added, 2, MOST)  # type: ignore[arg-type]  # as Outputs
    assert sum(each.alone for each in found) == pytest.approx(sum(added.errors.values()))
    assert sorted(name for each in found for name in each.nodes) == sorted(names)
    assert [each.nodes for each in found[: len(blamed)]] == [(f"n{index}",) for index in reversed(blamed)]
    assert added.asked <= MOST + 2 * HALVED
    if blamed:
        small = [each for each in found if len(each.nodes) > 1]
        assert all(each.alone < LEAST * sum(added.errors.values()) for each in small)


def test_who_makes_no_error_is_not_looked_for() -> None:
    added = Added(dict.fromkeys((f"n{index}" for index in range(400)), 0.0))
    assert len(largest(added.left, list(added.errors), added, 1, MOST)) == added.asked == 8  # type: ignore[arg-type]  # as Outputs


def mixes_of(model: Any, context: Any, folder: Path) -> Mixes:
    ready = prepared(model, lambda _: False, folder)
    maker = Maker(ready, OPTIONS, lambda _: False, context.calibration, folder, dataless=False, threads=1)
    return Mixes(maker, {}, lambda made: made)


def times_of(mixes: Mixes, slower: float) -> Times:
    """Every operator takes 100 microseconds in float and 50 with 8 bits, but the second so many more in float."""
    names = [node.name for node in mixes.maker.model.graph.node]
    floats = dict.fromkeys(names, 0.0) | dict.fromkeys((*CONVOLUTIONS, "head"), 100.0)
    integers = {name: time / 2 for name, time in floats.items()}
    return Times(floats | {"second": 50.0 + slower}, integers, {}, 0.0, 0.0)


def raced(*ratios: float) -> Any:
    return lambda models, feeds, seconds: [
        Latency(1.0, 1.0, 1.0, each, each, each) for each in (1.0, *ratios)
    ]


@pytest.mark.parametrize(
    ("slower", "ratio", "after", "stays"),
    [
        (20.0, 0.5, 0.55, True),
        (-10.0, 0.5, 0.94, True),  # whatever the race says, it spoils everything
        (-10.0, 0.85, 0.96, False),  # hardly faster than float
        (200.0, 0.5, 0.55, True),  # the race says that it costs less than was foretold
        (200.0, 0.8, 0.85, True),  # and that there is time for it
        (200.0, 0.5, 0.96, False),
        (4000.0, 0.8, 0.8, False),  # not tried
        (20.0, 0.97, 0.97, False),
    ],
)
def test_the_guilty_operator_stays_float_where_that_is_cheap(
    slower: float, ratio: float, after: float, stays: bool, tmp_path: Path
) -> None:
    context = context_for(crafted())
    mixes = mixes_of(crafted(), context, tmp_path)
    found = worth.spared(mixes, times_of(mixes, slower), ratio, context, raced(ratio, after))
    assert [each.node for each in found] == (["second"] if stays else [])
    if stays:
        (only,) = found
        assert only.error > 0.9
        assert only.time == pytest.approx(slower / (350 + slower))
        saved = {-10.0: "no time", 20.0: "5.4 % of the time", 200.0: "36.4 % of the time"}[slower]
        assert only.reason == f"alone its 8 bits save {saved} here and make 100 % of the error"


@pytest.mark.parametrize(("after", "stays"), [(0.501, []), (0.499, ["second"])])
def test_an_error_that_matters_little_is_worth_no_time(
    after: float, stays: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worth, "PRICE", 1e4)
    context = context_for(crafted())
    mixes = mixes_of(crafted(), context, tmp_path)
    found = worth.spared(mixes, times_of(mixes, 20.0), 0.5, context, raced(0.5, after))
    assert [each.node for each in found] == stays


DEAR = 0.05  # of the float model's time: cheap enough for a tenth of the error if taken for half of that
DEARER = 0.1  # or for a quarter


@pytest.mark.parametrize(
    ("ratios", "errors", "stays"),
    [
        ((0.55, 0.56, 0.57), (0.2, 0.1, 0.0), ["second", "third", "first"]),
        ((0.55, 0.56, 0.68), (0.2, 0.1, 0.0), ["second", "third"]),  # the last tenth costs too much
        ((0.55, 0.60, 0.71), (0.2, 0.1, 0.0), ["second"]),
        ((0.80, 0.81, 0.57), (0.2, 0.1, 0.0), ["second", "third", "first"]),
        ((0.80, 0.81, 0.84), (0.2, 0.1, 0.0), []),
        (
            (0.70, 0.71, 0.84),
            (0.25, 0.25, 0.25),
            [],
        ),  # a quarter of the squared error is half of what they are off
        ((0.66, 0.71, 0.84), (0.25, 0.25, 0.25), ["second"]),
        ((0.96, 0.97, 0.97), (0.2, 0.1, 0.0), []),  # hardly faster than float
        ((0.30, 0.30, 0.30), (1.2, 1.1, 1.3), []),  # faster, but no better
    ],
)
def test_what_is_raced_decides_how_much_stays_float(
    ratios: tuple[float, ...],
    errors: tuple[float, ...],
    stays: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second makes most of the error and is cheap; the others look too dear, one more so than the other."""
    context = context_for(crafted())
    mixes = mixes_of(crafted(), context, tmp_path)
    shares = {"second": 0.8, "third": 0.1, "first": 0.1}
    monkeypatch.setattr(
        worth, "largest", lambda *_: [Sensitivity((name,), share) for name, share in shares.items()]
    )
    distances = [0.01, *(each / 100 for each in errors)]
    monkeypatch.setattr(Outputs, "distance", lambda _, model, threads: distances.pop(0))
    times = times_of(mixes, 20.0)
    every = sum(times.floats.values())
    costs = {"third": DEAR, "first": DEARER}
    saved = {name: times.floats[name] - cost * every for name, cost in costs.items()}
    times = replace(times, integers={**times.integers, **saved})
    found = worth.spared(mixes, times, 0.5, context, raced(0.5, *ratios))
    assert [each.node for each in found] == stays


def test_not_everything_stays_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All look as if 8 bits saved nothing, and all make as much of the error."""
    context = context_for(crafted())
    mixes = mixes_of(crafted(), context, tmp_path)
    names = (*CONVOLUTIONS, "head")
    monkeypatch.setattr(worth, "largest", lambda *_: [Sensitivity((name,), 1.0) for name in names])
    times = replace(times_of(mixes, 0.0), integers=dict.fromkeys(names, 100.0))
    monkeypatch.setattr(Outputs, "distance", lambda _, model, threads: distances.pop(0))
    distances = [1.0, 0.25]
    found = worth.spared(mixes, times, 0.5, context, raced(0.5, 0.5))
    assert [each.node for each in found] == ["first", "second", "third"]


def test_small_errors_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_for(network())
    mixes = mixes_of(network(), context, tmp_path)
    monkeypatch.setattr(worth, "FINE", 1.0)
    monkeypatch.setattr(worth, "largest", None)  # nobody is asked
    assert worth.spared(mixes, Times({}, {}, {}, 0.0, 0.0), 0.5, context) == []


@pytest.mark.parametrize("light", [True, False])
def test_what_is_spared_is_better_off_in_the_file_as_well(
    light: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second convolution is so large that its weights would be stored with 8 bits, which is what spoils it."""
    model = crafted(16)
    context = context_for(model)
    mixes = mixes_of(model, context, tmp_path)
    monkeypatch.setattr(worth, "LIGHT", 1.0 if light else 0.0)
    found = worth.spared(mixes, times_of(mixes, 20.0), 0.5, context, raced(0.5, 0.5))
    assert [each.node for each in found] == (
        ["second"] if light else []
    )  # heavy ones stay stored: nothing gained
    if light:
        stay = {each.node: each.reason for each in found}
        made = replace(mixes, stay=stay, bare=worth.light_of(found)).make({})
        assert "second" not in made.stored


def test_the_report_says_what_was_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are scripted, so that every machine takes the same."""
    context = context_for(crafted())
    real = speed.guard

    def scripted(model: Any, whole: Any, *args: Any, **options: Any) -> speed.Verdict:
        found = real(model, whole, *args, **options)
        floats = dict.fromkeys(whole.weighted, 100.0) | {"second": 51.0}
        times = Times(floats, dict.fromkeys(whole.weighted, 50.0), {}, 0.0, 0.0)
        latency = replace(found.taken.latency, ratio=0.5)
        return replace(found, taken=replace(found.taken, choice=whole, stay={}, latency=latency), times=times)

    monkeypatch.setattr(guarded, "guard", scripted)
    monkeypatch.setattr(worth.spared, "__defaults__", (raced(0.5, 0.5),))
    OPTIONS.run(from_model(crafted()), context)
    record: Any = context.record
    assert [(each["node"], each["weights"]) for each in record["speed"]["spared"]] == [("second", "float")]
    assert record["speed"]["exclude"] == ["second"]
    (left,) = record["left_float"]
    assert left["node"] == "second"
    assert "of the error" in left["reason"]


@pytest.mark.parametrize(("folded", "large"), [(frozenset(), "blocks"), (frozenset({"MatMul"}), "stored")])
def test_the_report_says_what_became_of_the_weights(
    folded: frozenset[str], large: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel reads those of large products in blocks; those of others become floats when the model is loaded."""
    shapes = {"large": (128, 128), "small": (128, 64), "tiny": (64, 8), "fast": (8, 8)}
    nodes, last = [], "x"
    for name in shapes:
        nodes.append(oh.make_node("MatMul", [last, f"w_{name}"], [f"y_{name}"], name=name))
        last = f"y_{name}"
    ends = [oh.make_tensor_value_info("x", 1, ["N", 128]), oh.make_tensor_value_info(last, 1, ["N", 8])]
    weights = [weight(f"w_{name}", *shape) for name, shape in shapes.items()]
    graph = oh.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])
    real = speed.guard

    def scripted(*args: Any, **options: Any) -> speed.Verdict:
        found = real(*args, **options)
        latency = replace(found.taken.latency, ratio=0.5)
        return replace(found, taken=replace(found.taken, stay={}, latency=latency))

    monkeypatch.setattr(guarded, "guard", scripted)
    monkeypatch.setattr(
        guarded, "spared", lambda *_: [worth.Spared(n, 0.3, 0.0, False) for n in list(shapes)[:3]]
    )
    monkeypatch.setattr(guarded, "folding", lambda *_: Folding(folded, 1.0, []))
    context = context_for(model)
    OPTIONS.run(from_model(model), context)
    record: Any = context.record
    kept = {each["node"]: each["weights"] for each in record["speed"]["spared"]}
    assert kept == {"large": large, "small": "stored", "tiny": "float"}
    blocks = large == "blocks"
    assert (record["quantized"], record["stored"]) == ({"MatMul": 1 + blocks}, {"MatMul": 2 - blocks})
