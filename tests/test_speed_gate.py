"""A quantized model that is slower than its input is not written: by injected timings, never by real ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny

import surgeon
from surgeon import measure
from surgeon.passes import Context
from surgeon.stats.latency import Latency
from surgeon_passes.quantize import Quantize


def pair(ratio: float, spread: float = 0.02, rounds: int = 100) -> list[Latency]:
    return [
        Latency(10, 9, 11, 1, 1, 1, rounds),
        Latency(10 * ratio, 9, 11, ratio, ratio - spread, ratio + spread, rounds),
    ]


class Scripted:
    """Gives one measurement after the other."""

    def __init__(self, *ratios: float, spread: float = 0.02, rounds: int = 100) -> None:
        self.left, self.seconds = [pair(ratio, spread, rounds) for ratio in ratios], list[float]()

    def __call__(self, seconds: float) -> Sequence[Latency]:
        self.seconds.append(seconds)
        return self.left.pop(0)


def check(compare: Scripted) -> tuple[float, float] | None:
    return measure.check_speed(Path("a.onnx"), Path("b.onnx"), Context(Path("a.onnx")), 1, compare=compare)


def test_a_faster_model_is_measured_once() -> None:
    compare = Scripted(0.6)
    assert check(compare) == (10, 6)
    assert len(compare.seconds) == 1


def test_a_slower_one_is_measured_again_and_longer_before_it_is_refused() -> None:
    compare = Scripted(1.3, 1.25, 1.28)
    with pytest.raises(
        surgeon.GateError, match=r"1\.30, 1\.25, 1\.28 times as long.*12\.8 ms instead of 10 ms"
    ) as caught:
        check(compare)
    assert caught.value.exit_code == 1
    assert "--force" in str(caught.value.hint)
    assert len(compare.seconds) == 3
    assert compare.seconds == sorted(compare.seconds)


def test_noise_is_no_reason() -> None:
    assert check(Scripted(1.3, 1.01)) == (10, pytest.approx(10.1))
    assert check(Scripted(1.019)) is not None  # as much as two sessions of one model differ
    assert check(Scripted(1.1, spread=1.0, rounds=10)) is not None  # a spread as large says nothing


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_comparison", lambda *_: lambda _: pair(2.0))


def test_nothing_is_written_without_force(tmp_path: Path, slow: None) -> None:
    model, out = tiny.convnet(tmp_path / "m.onnx"), tmp_path / "out" / "q.onnx"
    data = tiny.samples(tmp_path / "d.npz", labels=False)
    out.parent.mkdir()
    with pytest.raises(surgeon.GateError, match="slower than the original") as caught:
        surgeon.run(model, "quantize{guard=false}", data=data, destination=out)
    assert (
        caught.value.hint
        == "--force writes it all the same; quantize.guard=true leaves slow operators in float"
    )
    assert list(out.parent.iterdir()) == []
    surgeon.run(model, "quantize{guard=false}", data=data, destination=out, force=True)
    assert out.exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (Quantize(), ""),
        (Quantize(guard=False), "guard=true"),
        (Quantize(mode="dynamic", guard=False), "guard=true"),
        (Quantize(mode="weights"), "mode=auto"),
        (Quantize(mode="weights", bits=4), ""),
        (Quantize(mode="fp16"), ""),
    ],
)
def test_no_option_is_named_that_changes_nothing(options: Quantize, named: str) -> None:
    hint = options.if_slow()
    assert hint.startswith(f"quantize.{named} ") if named else not hint


def test_only_what_quantizes_is_held_to_it(tmp_path: Path, slow: None) -> None:
    model = tiny.convnet(tmp_path / "m.onnx")
    report = surgeon.run(model, "prune{ratio=0.5 score=l2}").report
    assert report["after"]["latency_ms"] is None


def test_what_was_measured_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_comparison", lambda *_: lambda _: pair(0.5))
    model, data = tiny.convnet(tmp_path / "m.onnx"), tiny.samples(tmp_path / "d.npz", labels=False)
    report = surgeon.run(model, "quantize{guard=false}", data=data).report
    assert (report["before"]["latency_ms"], report["after"]["latency_ms"]) == (10, 5)


def test_what_does_not_run_on_a_sample_is_said() -> None:
    context = Context(Path("a.onnx"))

    def fails(_: float) -> Sequence[Latency]:
        raise surgeon.UnsupportedModelError("no such index")

    assert measure.check_speed(Path("a"), Path("b"), context, 1, compare=fails) is None
    assert context.warnings == ["whether the result is slower was not measured: no such index"]
