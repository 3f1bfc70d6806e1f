"""Latency: interleaved, relative to the first model, honest about the spread."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as oh

from surgeon.stats.latency import compare


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
