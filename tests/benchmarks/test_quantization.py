"""The table of quantizers: what is measured once stays, what fails is a row, and figures get worse in the right direction."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

sys.path.append(str(Path(__file__).resolve().parent))  # behind all else: a file there is called coverage

import quantization
import quantized
import stored_feeds
import subprocesses
import together
from integer_kernels import Kernels, kernels
from pretrained import Task

import surgeon


def task(unit: str = "top-1") -> Task:
    return Task("some_model", lambda seed: iter(()), lambda: iter(()), unit=unit)


def measured(
    metric: float | None, cosine: float = 0.99, size: int = 30, ratio: float = 0.5
) -> quantized.Cell:
    return {
        "metric": metric,
        "cosine": cosine,
        "bytes": size,
        "latency": {"ratio": ratio},
        "integer": 3,
        "products": 4,
        "conversions": 2,
        "notes": [],
        "seconds": 1.4,
        "peak_mb": 200,
        "samples": 8,
    }


DENSE = {"metric": 0.9, "bytes": 100}


def test_a_batch_is_cut_at_the_number_of_samples(tmp_path):
    batches = [{"x": np.full((4, 2), k)} for k in range(3)]
    assert stored_feeds.store(stored_feeds.limited(batches, 6), tmp_path) == 6
    found = list(stored_feeds.stored(tmp_path))
    assert [feeds["x"].shape for feeds in found] == [(4, 2), (2, 2)]
    assert [int(feeds["x"][0, 0]) for feeds in stored_feeds.singles(found)] == [0, 0, 0, 0, 1, 1]


def test_inputs_of_different_lengths_are_one_sample():
    feeds = {"frame": np.zeros((1, 5)), "state": np.zeros((2, 1, 3)), "rate": np.array(16000)}
    assert stored_feeds.samples_in(feeds) == 1
    assert list(stored_feeds.singles([feeds])) == [feeds]


def test_a_data_file_of_the_command_line_reads_the_same_batches(tmp_path, monkeypatch):
    stored_feeds.store([{"x": np.arange(3.0)}], tmp_path)
    monkeypatch.setenv("SURGEON_FEEDS", str(tmp_path))
    (feeds,) = stored_feeds.calibration()
    assert feeds["x"].tolist() == [0.0, 1.0, 2.0]


def test_a_cell_is_measured_once_and_outlives_the_process(tmp_path):
    path = tmp_path / "cells.json"
    assert quantized.Cells(path).get("a", lambda: {"metric": 1}) == {"metric": 1}
    assert quantized.Cells(path).get("a", lambda: pytest.fail("measured again")) == {"metric": 1}


def test_two_tables_may_share_a_cache(tmp_path):
    path = tmp_path / "cells.json"
    one, two = quantized.Cells(path), quantized.Cells(path)
    one.get("a", lambda: {"metric": 1})
    two.get("b", lambda: {"metric": 2})
    assert sorted(json.loads(path.read_text())) == ["a", "b"]


def test_a_key_changes_with_the_model_the_samples_and_what_makes_it(tmp_path, monkeypatch):
    model = tmp_path / "some_model.onnx"
    monkeypatch.setattr(Task, "path", property(lambda self: model))
    monkeypatch.setattr(quantized, "surgeon_version", lambda: "surgeon 1")
    model.write_bytes(b"one")
    settings = quantized.Settings(passes={"surgeon": "quantize"})
    keys = [quantized.key_of(task(), "surgeon", settings)]
    keys.append(quantized.key_of(task(), "surgeon", quantized.Settings(64, passes=settings.passes)))
    keys.append(quantized.key_of(task(), "surgeon", quantized.Settings(passes=settings.passes, draw=1)))
    keys.append(
        quantized.key_of(task(), "surgeon", quantized.Settings(passes={"surgeon": "quantize{samples=3}"}))
    )
    monkeypatch.setattr(quantized, "surgeon_version", lambda: "surgeon 2")
    keys.append(quantized.key_of(task(), "surgeon", settings))
    model.write_bytes(b"two")
    keys.append(quantized.key_of(task(), "surgeon", settings))
    assert len(set(keys)) == len(keys)


def test_the_float_cell_depends_on_no_quantizer(tmp_path, monkeypatch):
    model = tmp_path / "some_model.onnx"
    model.write_bytes(b"one")
    monkeypatch.setattr(Task, "path", property(lambda self: model))
    keys = {quantized.key_of(task(), "float", quantized.Settings(samples)) for samples in (8, 16)}
    assert len(keys) == 1


def test_a_drop_is_positive_where_the_figure_is_worse():
    assert quantized.drop(task("top-1"), 0.9, 0.897) == pytest.approx(0.3)
    assert quantized.drop(task("phoneme error"), 0.09, 0.10) == pytest.approx(1.0)
    assert quantized.drop(task("cross-entropy"), 1.25, 1.20) == pytest.approx(-0.05)
    assert quantized.drop(task("Y-PSNR in dB"), 30.1, 30.0) == pytest.approx(0.1)


def test_a_row_shows_ratios_against_the_original():
    row = quantization.row_of(task(), "nncf", DENSE, measured(0.897))
    line = quantization.line_of(task(), row)
    assert line == (
        "| some_model | top-1 | 90.00 | nncf | 89.70 | +0.30 | 0.99000 | 0.300 | 0.50 | 3 of 4 | 2 | 1 | 200 |"
    )
    assert line.count("|") == len(quantization.HEADS) + 1


def test_a_quantizer_that_fails_is_a_row_that_says_so():
    failed = {"why": "RuntimeError: no", "seconds": 3.0, "peak_mb": 50, "samples": 8}
    row = quantization.row_of(task(), "ort-minmax", DENSE, failed)
    line = quantization.line_of(task(), row)
    assert "| none |" in line
    assert line.count("|") == len(quantization.HEADS) + 1
    assert list(quantization.remarks([row])) == ["- some_model, ort-minmax: RuntimeError: no"]


def test_a_model_without_a_figure_has_dashes_in_its_place():
    row = quantization.row_of(task(""), "surgeon", {**DENSE, "metric": None}, measured(None))
    line = quantization.line_of(task(""), row)
    assert line.startswith("| some_model | – | – | surgeon | – | – | 0.99000 |")
    assert line.count("|") == len(quantization.HEADS) + 1


def test_what_another_does_better_is_listed_and_noise_is_not():
    rows = [
        quantization.row_of(task(), "surgeon", DENSE, measured(0.890, size=40, ratio=0.51)),
        quantization.row_of(task(), "nncf", DENSE, measured(0.897, size=30, ratio=0.50)),
        quantization.row_of(task(), "ort-minmax", DENSE, measured(0.880, size=40, ratio=0.60)),
    ]
    assert list(quantization.behind(rows)) == [
        "- some_model, drop: +1.00, nncf +0.30",
        "- some_model, bytes: × 0.400, nncf × 0.300",
    ]


def test_likeness_decides_where_there_is_no_figure():
    dense = {**DENSE, "metric": None}
    rows = [
        quantization.row_of(task(""), "surgeon", dense, measured(None, cosine=0.98)),
        quantization.row_of(task(""), "nncf", dense, measured(None, cosine=0.99)),
    ]
    assert list(quantization.behind(rows)) == ["- some_model, cosine: 0.98000, nncf 0.99000"]


@pytest.mark.parametrize(("ratio", "behind"), [(0.5, 1), (0.98, 0), (1.2, 0)])
def test_no_result_is_being_behind_where_another_is_faster_than_the_original(ratio, behind):
    refused = {"why": "no", "seconds": 3.0, "peak_mb": 50, "samples": 8}
    rows = [
        quantization.row_of(task(), "surgeon", DENSE, refused),
        quantization.row_of(task(), "nncf", DENSE, measured(0.9, ratio=ratio)),
    ]
    line = "- some_model: nothing from surgeon; faster than the original: nncf"
    assert list(quantization.behind(rows)) == [line] * behind


def test_columns_without_their_package_are_left_out():
    settings = quantized.Settings(passes={"surgeon": "quantize", "surgeon a,b": "a,b"})
    assert quantization.columns_asked("*", settings) == [
        "ort-minmax",
        "ort-percentile",
        "surgeon",
        "surgeon a,b",
    ]
    with_nncf = quantized.Settings(nncf_python=Path(sys.executable))
    assert quantization.columns_asked("nncf*", with_nncf) == ["nncf", "nncf-transformer"]


def test_a_crash_a_hang_and_an_error_end_in_a_reason():
    python = [sys.executable, "-c"]
    assert subprocesses.run([*python, "print('fine')"], 60).output == "fine\n"
    assert subprocesses.run([*python, "import os; os.abort()"], 60).why == "killed by SIGABRT"
    error = subprocesses.run([*python, "raise ValueError('too odd')"], 60)
    assert error.why == "ValueError: too odd"
    started = time.perf_counter()
    assert subprocesses.run([*python, "import time; time.sleep(60)"], 0.5).why == "stopped after 0 s"
    assert time.perf_counter() - started < 30


def test_memory_is_that_of_the_program():
    small = subprocesses.run([sys.executable, "-c", "import time; time.sleep(0.3)"], 60).peak_mb
    code = "import time; kept = b'1' * 200_000_000; time.sleep(0.3)"
    large = subprocesses.run([sys.executable, "-c", code], 60).peak_mb
    assert 180 < large - small < 220


def tiny(folder: Path, opset: int) -> Path:
    """A convolution with a ReLU behind it: [N, 3, 8, 8] to [N, 4, 6, 6]."""
    weights = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]> g (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y)'
        " { c = Conv(x, w) y = Relu(c) }"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    onnx.save(model, folder / "tiny.onnx")
    return folder / "tiny.onnx"


def test_float_products_are_counted_as_such(tmp_path):
    found = kernels(tiny(tmp_path, 13))
    assert (found.integer, found.products, found.conversions) == (0, 1, 0)


def test_fused_integer_kernels_are_counted():
    found = Kernels(
        {"QLinearConv": 3, "Conv": 1, "QuantizeLinear": 1, "DequantizeLinear": 2, "QLinearAdd": 5}
    )
    assert (found.integer, found.products, found.conversions) == (3, 4, 3)


@pytest.mark.parametrize("column", ["ort-minmax", "ort-percentile", "surgeon"])
def test_a_model_is_quantized_and_judged(tmp_path, monkeypatch, column):
    path = tiny(tmp_path, 12)
    monkeypatch.setattr(Task, "path", property(lambda self: path))
    monkeypatch.setattr("accuracy.dense", lambda name: quantized.session(path))

    def batches(seed: int):
        for _ in range(3):
            yield {"x": np.random.default_rng(seed).standard_normal((4, 3, 8, 8)).astype(np.float32)}

    # so small a network is not faster with 8 bits
    settings = quantized.Settings(samples=10, passes={"surgeon": "quantize{guard=false}"}, force=True)
    subject = Task("tiny", batches, lambda: batches(9), lambda run: 0.5, "top-1")
    found = quantized.quantized_cell(subject, column, settings)
    assert found.get("why") is None
    assert (found["samples"], found["metric"], found["integer"], found["products"]) == (10, 0.5, 1, 1)
    assert found["cosine"] > 0.999
    # without sympy onnxruntime prepares models in another way, and says so
    notes = [note for note in found["notes"] if "sympy" not in note]
    assert notes == ([] if column == "surgeon" else ["converted from opset 12"])


def test_a_model_that_cannot_be_quantized_is_a_cell_with_a_reason(tmp_path, monkeypatch):
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    monkeypatch.setattr(Task, "path", property(lambda self: tmp_path / "broken.onnx"))
    subject = Task("broken", lambda seed: iter([{"x": np.zeros((1, 2))}]), lambda: iter(()))
    for column in ("ort-minmax", "surgeon"):
        assert quantized.quantized_cell(subject, column, quantized.Settings())["why"]


def test_together_compares_with_the_run_before():
    run = together.Run("prune,quantize", ("--target", "macs=0.5"), against=together.PRUNED)
    row = together.row_of(task(), run, DENSE, measured(0.89), measured(0.888, size=20, ratio=0.3))
    assert together.line_of(row) == (
        "| some_model | prune,quantize --target macs=0.5 | prune --target macs=0.474 "
        "| 89.00 | 88.80 | +0.20 | 0.200 | 0.30 | 1 | 200 |"
    )


def test_together_says_what_failed():
    failed = {"why": "gate: too much", "seconds": 3.0, "peak_mb": 50}
    row = together.row_of(task(), together.BUDGET, DENSE, DENSE, failed)
    line = together.line_of(row)
    assert "failed: gate: too much" in line
    assert line.count("|") == len(together.HEADS) + 1


def test_a_budget_is_tried_where_there_are_data_to_search_by():
    def titles(model: str) -> list[str]:
        found = Task(model, lambda seed: iter(()), lambda: iter(()))
        return [run.title for run in together.runs_of(found)]

    assert titles("cifar10_vit") == ["prune,quantize --max-drop 0.01"]
    assert titles("cifar10_resnet56")[:2] == [
        "prune --target macs=0.474",
        "prune,quantize --target macs=0.474",
    ]
    assert titles("yolox_nano") == []


def test_the_surgeon_that_runs_is_the_one_that_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "surgeon").mkdir()
    (tmp_path / "surgeon" / "__init__.py").write_text("raise SystemExit('another one')")
    ended = subprocesses.run([*quantized.SURGEON_RUN, "--help"], 60, quantized.OURS)
    assert ended.why is None
    assert "usage: surgeon run" in ended.output


def test_versions_name_what_makes_a_cell():
    assert quantized.surgeon_version().startswith(f"surgeon {surgeon.__version__} ")
    assert quantized.rival_version("ort-minmax", sys.executable).startswith("onnxruntime ")
