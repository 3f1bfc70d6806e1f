"""Metrics: each against a hand-computed value, streaming, look-up by name, file and plugin."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from distributions import announce

from surgeon.errors import DataError, PluginError, UsageError
from surgeon.graph.sessions import session
from surgeon.stats import metrics
from surgeon.stats.data import open_data

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
scaled (float[N, 4] x) => (float[N, 4] y) <float factor = {FACTOR}> { y = Mul(x, factor) }
"""


def runner(factor: float) -> object:
    return session(onnx.parser.parse_model(TEXT.replace("FACTOR", str(factor))))


def test_top1_and_top5() -> None:
    scores = np.array([[0, 3, 1], [5, 3, 1]], np.float32)
    assert metrics.top1([scores], np.array([1, 1])).tolist() == [1, 0]
    assert metrics.top1([scores[:, :, None, None]], np.array([[1], [1]])).tolist() == [1, 0]
    assert metrics.top1([scores], np.eye(3)[[1, 1]]).tolist() == [1, 0]
    assert metrics.top1([np.array([1, 0])], np.array([1, 1])).tolist() == [1, 0]
    wide = np.arange(10, dtype=np.float32)[None]
    assert metrics.top5([wide], np.array([5])).tolist() == [1]
    assert metrics.top5([wide], np.array([4])).tolist() == [0]


def test_mse_and_cosine() -> None:
    a, b = np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[3.0, 2.0], [0.0, 0.0]])
    assert metrics.mse([a], b).tolist() == [2, 0]
    assert metrics.mse([a, a], [b, a]).tolist() == [2, 0, 0, 0]
    assert metrics.cosine([a], [a * 2]).tolist() == pytest.approx([1, 1])
    assert metrics.cosine([a[:1]], [np.array([[-4.0, 3.0]])]).tolist() == pytest.approx([0])


def test_agreement_looks_at_the_class_axis() -> None:
    text = np.array([[[0.0, 1.0], [1.0, 0.0]]])
    assert metrics.agreement([text], [text[:, :, ::-1]]).tolist() == [0]
    image = np.zeros((1, 2, 3, 3))
    other = image.copy()
    other[0, 1, 0, :] = 1
    assert metrics.agreement([image], [other]).tolist() == pytest.approx([2 / 3])


def test_miou_ignores_void_pixels() -> None:
    scores = np.zeros((1, 2, 1, 4))
    scores[0, 1, 0, :2] = 1
    hits, union = metrics.miou([scores], np.array([[[1, 0, 0, 255]]]))
    assert (hits.tolist(), union.tolist()) == ([1, 1], [2, 2])
    with pytest.raises(DataError, match="pixels"):
        metrics.miou([scores], np.zeros((1, 3)))


def test_character_errors() -> None:
    assert metrics.edit_distance([1, 2, 3], [1, 3, 3, 4]) == 2
    scores = np.eye(4)[[[0, 1, 1, 0, 1, 2]]]
    assert metrics.cer([scores], np.array([[1, 1, 2, -1]])) == (0, 3)
    assert metrics.cer([np.array([[1, 2, -1]])], np.array([[1, 3, -1]])) == (1, 2)


def test_evaluation_streams_and_weighs_samples(tmp_path: Path) -> None:
    x = np.eye(4, dtype=np.float32)[np.arange(10) % 4]
    np.savez(tmp_path / "d.npz", x=x, labels=np.where(np.arange(10) < 7, np.arange(10) % 4, 0))
    data = open_data(str(tmp_path / "d.npz"), [("x", "float32", ("N", 4))], batch=4)
    expected = float((np.arange(10) % 4 == np.where(np.arange(10) < 7, np.arange(10) % 4, 0)).mean())
    assert metrics.evaluate(runner(2.0), data, "top1") == pytest.approx(expected)
    assert metrics.evaluate(runner(-1.0), data, "cosine", runner(1.0)) == pytest.approx(-1)
    assert metrics.evaluate(runner(-1.0), data, "agreement", runner(1.0)) < 0.5
    script = tmp_path / "m.py"
    script.write_text(
        "def share(outputs, truth):\n    return float(len(outputs[0]))\n"
        "def loss(outputs, truth):\n    return (outputs[0] ** 2).sum(1)\n"
        "loss.higher_is_better = False\n"
        "def wrong(outputs, truth):\n    return outputs[3]\n"
    )
    assert metrics.evaluate(runner(1.0), data, f"{script}:share") == pytest.approx((16 + 16 + 4) / 10)
    assert metrics.evaluate(runner(2.0), data, f"{script}:loss") == pytest.approx(4)
    assert not metrics.find_metric(f"{script}:loss").higher_is_better
    with pytest.raises(DataError, match="does not fit"):
        metrics.evaluate(runner(1.0), data, f"{script}:wrong")


def test_without_labels_or_reference(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((2, 4), np.float32))
    data = open_data(str(tmp_path / "d.npz"), [("x", "float32", ("N", 4))])
    with pytest.raises(DataError, match=r"needs labels.*agreement"):
        metrics.evaluate(runner(1.0), data, "top1")
    with pytest.raises(DataError, match="original"):
        metrics.evaluate(runner(1.0), data, "mse")
    assert metrics.evaluate(runner(3.0), data, "mse", runner(1.0)) == pytest.approx(4)


def test_what_a_change_costs_depends_on_the_direction() -> None:
    top1, mse = metrics.find_metric("top1"), metrics.find_metric("mse")
    assert top1.loss(0.9, 0.8) == pytest.approx(0.1)
    assert mse.loss(0.9, 0.8) == pytest.approx(-0.1)
    assert top1.within(0.9, 0.8, 0.1)
    assert not top1.within(0.9, 0.79, 0.1)
    assert mse.within(0.0, 0.1, 0.1)
    assert not mse.within(0.0, 0.11, 0.1)
    assert not mse.within(0.0, float("nan"), 1.0)


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        (("N", 10), "float32", True),
        (("N", 1), "float32", False),
        (("N",), "float32", False),
        (("N",), "int64", True),
        (("N", "T", 30), "float32", True),
        (("N", 10, 1, 1), "float32", True),
        (("N", 1, 1, 1), "float32", False),
        (("N", 1, 32, 32), "float32", False),
        (("N", 21, 32, 32), "float32", True),
    ],
)
def test_some_outputs_hold_no_decision(shape: tuple[object, ...], dtype: str, expected: bool) -> None:
    assert metrics.decides(shape, np.dtype(dtype)) == expected


def test_metrics_of_plugins_are_found_by_the_name_they_are_announced_under(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "acme_metrics.py").write_text(
        "from surgeon.stats.metrics import Metric\n"
        "loss = Metric('another name', lambda outputs, truth: 0.0, higher_is_better=False)\n"
        "def share(outputs, truth): return 1.0\n"
    )
    entries = {"acme_loss": "acme_metrics:loss", "acme_share": "acme_metrics:share"}
    announce(tmp_path, "acme-metrics", {"surgeon.metrics": entries})
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        loss = metrics.find_metric("acme_loss")
        assert (loss.name, loss.higher_is_better) == ("acme_loss", False)
        assert metrics.find_metric("acme_share").higher_is_better
    finally:
        sys.modules.pop("acme_metrics", None)


def test_plugins_that_take_a_name_or_do_not_load_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = {"top1": "os:getcwd", "broken": "none:f", "number": "math:pi"}
    announce(tmp_path, "acme-metrics", {"surgeon.metrics": entries})
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PluginError, match="'top1' is provided twice"):
        metrics.find_metric("top1")
    with pytest.raises(PluginError, match="'broken' cannot be imported"):
        metrics.find_metric("broken")
    with pytest.raises(PluginError, match="'number': math:pi cannot be called"):
        metrics.find_metric("number")
    assert metrics.find_metric("top5").name == "top5"  # plugins harm only those who use them
    with pytest.raises(UsageError, match="no such metric") as caught:
        metrics.find_metric("top55")
    assert caught.value.hint == "did you mean 'top5'?"


def test_rates_over_classes_and_texts_stream(tmp_path: Path) -> None:
    """Segmentation and text errors are sums over all batches, and not means of the batches' means."""
    pixels = np.eye(4, dtype=np.float32)[np.array([0, 0, 0, 1, 1, 2])]
    np.savez(tmp_path / "d.npz", x=pixels, labels=np.array([0, 0, 1, 1, 1, 255]))
    data = open_data(str(tmp_path / "d.npz"), [("x", "float32", ("N", 4))], batch=2)
    assert metrics.evaluate(runner(1.0), data, "miou") == pytest.approx((2 / 3 + 2 / 3) / 2)
    np.savez(tmp_path / "t.npz", x=np.array([[1, 2, 3, 3], [1, 1, 1, 1]], np.float32),
             labels=np.array([[1, 2, 3, 3], [1, 1, -1, -1]]))  # fmt: skip
    texts = open_data(str(tmp_path / "t.npz"), [("x", "float32", ("N", 4))], batch=1)
    assert metrics.evaluate(runner(1.0), texts, "cer") == pytest.approx(2 / 6)


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'top1'"):
        metrics.find_metric("topp1")
    with pytest.raises(UsageError, match="no such file"):
        metrics.find_metric(str(tmp_path / "m.py:f"))
    (tmp_path / "m.py").write_text("def good(outputs, truth): return 1.0\n")
    with pytest.raises(UsageError, match="did you mean 'good'"):
        metrics.find_metric(str(tmp_path / "m.py:goof"))
