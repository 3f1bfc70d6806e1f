"""Latency: interleaved, relative to the first model, honest about the spread."""

from __future__ import annotations

import time

import numpy as np
import onnx
import onnx.helper as oh
import pytest

from surgeon.stats.latency import Latency, clock, compare


def chain(length: int) -> onnx.ModelProto:
    size = 128
    nodes = [oh.make_node("MatMul", [f"t{index}", f"t{index}"], [f"t{index + 1}"]) for index in range(length)]
    x = oh.make_tensor_value_info("t0", 1, [size, size])
    y = oh.make_tensor_value_info(f"t{length}", 1, [size, size])
    return oh.make_model(
        oh.make_graph(nodes, "chain", [x], [y]), ir_version=8, opset_imports=[oh.make_opsetid("", 17)]
    )


def test_more_work_takes_longer() -> None:
    feeds = {"t0": np.zeros((128, 128), np.float32)}
    short, long = compare([chain(2), chain(20).SerializeToString()], feeds, runs=9)
    assert short.ratio == short.ratio_p10 == short.ratio_p90 == 1
    assert long.ratio > 2
    assert long.ratio_p10 <= long.ratio <= long.ratio_p90
    assert 0 < long.p10_ms <= long.median_ms <= long.p90_ms


def test_each_model_may_have_its_own_feeds_and_rounds_may_end_by_time() -> None:
    feeds = [
        {"t0": np.zeros((128, 128), np.float32), "unused": np.zeros(1)},
        {"t0": np.ones((128, 128), np.float32)},
    ]
    first, second = compare([chain(2), chain(2)], feeds, runs=100_000, warm_up=0, seconds=0.001)
    assert first.rounds == second.rounds >= 3
    assert first.error == 0


def test_the_error_of_a_median_shrinks_with_the_rounds() -> None:
    few, many = (Latency(1, 1, 1, 1.0, 0.9, 1.1, rounds) for rounds in (25, 100))
    assert few.error == pytest.approx(1.25 * 0.2 / 2.56 / 5)
    assert many.error == pytest.approx(few.error / 2)


def test_one_thread_is_timed_by_the_processor() -> None:
    assert clock(2) is time.perf_counter
    assert clock(1) in (time.thread_time, time.perf_counter)
