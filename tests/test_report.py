"""Reports: strict JSON, and words for people."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from surgeon import report


def test_everything_becomes_strict_json():
    value = {
        1: np.float32(0.5), "a": np.arange(3), "b": (np.int64(2), np.nan, float("inf"), True, None), "c": {"y", "x"},
        "d": Path("p"), "e": np.bool_(True), "f": 2**80, "g": "ü\n",
    }  # fmt: skip
    assert json.loads(report.to_json(value)) == {
        "1": 0.5, "a": [0, 1, 2], "b": [2, None, None, True, None], "c": ["x", "y"], "d": "p", "e": True, "f": 2**80, "g": "ü\n",
    }  # fmt: skip


def test_reasons_are_counted():
    whole = [{"reason": "b"}, {"reason": "a"}, {"reason": "b"}]
    assert report.reasons({"whole": whole}) == [("b", 2), ("a", 1)]


@pytest.fixture
def facts():
    figures = {"params": 1000, "macs": 2_000_000, "bytes": 4000, "latency_ms": None, "metric": None}
    return {
        "model": "a|b.onnx", "output": "c.onnx", "seconds": 1.0,
        "before": figures, "after": {**figures, "params": 500, "metric": None},
        "passes": [{"name": "prune", "seconds": 0.1, "options": {"score": "l1|l2"}}],
        "groups": {"total": 9, "cut": 1, "whole": [{"reason": f"r{i}"} for i in range(8)]},
        "certificate": {"status": "exact", "max_rel_err": 1e-7, "probes": 3}, "warnings": ["careful"],
    }  # fmt: skip


def test_rows_leave_out_what_was_not_measured(facts):
    assert [row[0] for row in report.rows(facts)] == ["parameters", "MACs", "bytes"]
    assert report.rows(facts)[0] == ("parameters", "1.00 k", "500", "× 0.500")


def test_zero_before_has_no_ratio(facts):
    facts["before"] = {**facts["before"], "macs": 0}
    assert report.rows(facts)[1][3] == ""


def test_sentences(facts):
    lines = report.sentences(facts, limit=6)
    assert lines[0] == "cut 1 of 9 channel groups"
    assert lines[-2] == "left whole: 2 × other reasons, see the report"
    assert lines[-1] == "proved: equal to the masked original, largest relative error 1.0e-07 on 3 probes"


@pytest.mark.parametrize(("status", "said"), [("structural", "structural only"), ("none", "no cut to prove")])
def test_other_certificates(facts, status, said):
    facts["certificate"] = {"status": status, "max_rel_err": None, "probes": 0}
    assert said in report.sentences(facts)[-1]


def test_the_curve_of_a_budget(facts):
    point = {
        "asked": 0.25,
        "macs": 1500,
        "params": 200,
        "metric": 0.8,
        "within": False,
        "quick": True,
        "taken": False,
    }
    fine = point | {"asked": 0.5, "metric": 0.9, "within": True}
    points = [point, fine | {"quick": False, "taken": True}, fine, point | {"metric": None, "quick": False},
              point | {"asked": 0.75, "metric": 1.0, "within": True, "quick": False}]  # fmt: skip
    facts["passes"][0]["budget"] = {
        "metric": "top1", "before": 0.95, "max_drop": 0.1, "by": "macs", "curve": points,
    }  # fmt: skip
    ((head, body),) = report.budgets(facts)
    assert head == ("asked", "MACs", "parameters", "top1", "change", "")
    assert body[0] == ("macs=0.25", "1.50 k", "200", "0.8000", "-0.1500", "costs too much (quick refit)")
    said = [
        "costs too much (quick refit)",
        "taken",
        "within (quick refit)",
        "costs too much",
        "within",
        "original",
    ]
    assert [row[-1] for row in body] == said
    assert body[3][3:5] == ("-", "-")
    assert body[-1] == ("", "2.00 M", "1.00 k", "0.9500", "", "original")
    assert "| macs=0.5 | 1.50 k | 200 | 0.9000 | -0.0500 | taken |" in report.markdown(facts)


def test_markdown_tables_are_not_broken_by_contents(facts):
    text = report.markdown(facts)
    assert "score=l1\\|l2" in text
    assert "careful" in text
    assert "<" not in text


def test_what_was_measured_for_accuracy_is_told(facts):
    point = {
        "asked": 0.5,
        "macs": 100,
        "params": 10,
        "bytes": 900,
        "metric": 0.85,
        "bound": 0.2,
        "within": False,
        "quick": False,
        "taken": False,
    }
    budget = {"metric": "top1", "before": 0.9, "max_drop": 0.1, "by": "macs", "judged_after": ["quantize"]}
    worse = {**point, "metric": 0.7}
    facts["passes"] = [
        {
            "name": "prune",
            "seconds": 0.1,
            "budget": {
                **budget,
                "curve": [worse, point, {**point, "metric": None}, {**point, "within": True, "taken": True}],
            },
        },
        {
            "name": "quantize",
            "seconds": 0.1,
            "left_float": [{"node": "head", "operator": "Gemm", "reason": "accuracy: too much"}],
            "control": {
                **budget,
                "float": [{"node": "head", "weights": "stored", "reason": "accuracy"}],
                "curve": [
                    {"float": 0, "nodes": [], **worse},
                    {"float": None, "nodes": [], **point},
                    {"float": 1, "nodes": ["head"], **point, "within": True},
                ],
            },
        },
    ]
    ((_, rows),) = report.budgets(facts)
    assert [row[-1].split(", ")[0] for row in rows] == [
        "costs too much", "not for sure", "costs too much", "taken", "original",
    ]  # fmt: skip
    assert rows[0][-1] == "costs too much, 900 B after quantize"
    ((_, rows),) = report.controls(facts)
    assert [row[0] for row in rows] == ["0", "all, as it came", "1"]
    assert [row[-1] for row in rows] == ["costs too much", "not for sure", "taken"]
    text = report.markdown(facts).splitlines()
    assert "| head | Gemm | accuracy: too much |" in text[text.index("## Left in float") :]
    assert "| 1 | 900 B | 0.8500 | -0.0500 | taken |" in text
