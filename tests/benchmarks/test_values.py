"""The table of zeros and clusters: what failed or is worse with data is counted, and what was not fitted is named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent))  # behind all else: a file there is called coverage

import values

PAIR = values.pairs(0.75, 16)[0]


def made(error: float, why: str | None = None) -> values.Made:
    return values.Made(why, 1.0, error, 0.75)


@pytest.mark.parametrize(
    ("found", "plain", "worse"),
    [(0.1, 0.2, False), (0.2, 0.2, False), (0.3, 0.2, True), (float("nan"), 0.2, True)],
)
def test_worse_is_what_is_not_at_most_as_far_off(found: float, plain: float, worse: bool) -> None:
    assert values.is_worse(made(found), made(plain)) is worse


def test_a_failure_is_a_row_and_counts_as_worse() -> None:
    failed = made(0.1, "stopped after 3 s")
    assert values.is_worse(failed, made(0.2))
    assert "failed: stopped after 3 s" in values.line(Path("some.onnx"), PAIR, failed, made(0.2))


def test_what_a_report_says_is_taken_from_it() -> None:
    record = {
        "tensors": [
            {"node": "a", "name": "w", "elements": 10, "nonzeros": 4, "values": 3, "error_after": 0.1},
            {"node": "b", "name": "v", "elements": 10, "nonzeros": 6, "values": 5, "error_after": None},
            {"node": "c", "name": "u", "values": 5, "error_after": None},
        ],
        "left": [{"node": "b", "reason": "its weight is shared"}],
    }
    found = values.described(record, 0.25, 2.0)
    assert (found.zeros, found.values, found.error) == (0.5, 5, 0.25)
    assert found.left == ("b: its weight is shared", "c: nobody says why")


def test_a_model_is_measured(demo: Path) -> None:
    found = [bad for _, bad in values.rows(demo, values.pairs(0.5, 4)[1:], 16, 120)]
    assert found == [False]
