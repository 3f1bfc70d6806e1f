"""Prints how much memory quantizing takes with 50 and with 5,000 calibration samples.

    python tests/benchmarks/calibration_memory.py [FEW MANY]

Each row is one process of ``surgeon run MODEL --passes quantize{samples=N}`` on a small convolutional network with images of
32 by 32, which a script makes one batch at a time. "idle" is what the interpreter and the libraries take; "peak" includes it. Needs Linux.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
from memory import IDLE, RUN, peak_of
from onnx import numpy_helper as nh

SIDE, CHANNELS, LAYERS = 32, 32, 6
DATA = f"""
import numpy as np
def samples():
    random = np.random.default_rng(0)
    for _ in range({{count}} // 50):
        yield {{{{"x": random.standard_normal((50, 3, {SIDE}, {SIDE}), dtype=np.float32)}}}}
"""


def network() -> onnx.ModelProto:
    """Convolutions with Relus behind, and residual sums."""
    random = np.random.default_rng(0)
    nodes, weights, name, width = [], [], "x", 3
    for layer in range(LAYERS):
        weight = random.standard_normal((CHANNELS, width, 3, 3)).astype(np.float32) / np.sqrt(9 * width)
        weights.append(nh.from_array(weight.astype(np.float32), f"w{layer}"))
        nodes.append(oh.make_node("Conv", [name, f"w{layer}"], [f"c{layer}"], pads=[1] * 4))
        nodes.append(oh.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
        total = f"s{layer}" if layer else "r0"
        if layer:
            nodes.append(oh.make_node("Add", [f"r{layer}", name], [total]))
        name, width = total, CHANNELS
    nodes.append(oh.make_node("GlobalAveragePool", [name], ["y"]))
    x = oh.make_tensor_value_info("x", 1, ["N", 3, SIDE, SIDE])
    y = oh.make_tensor_value_info("y", 1, ["N", CHANNELS, 1, 1])
    graph = oh.make_graph(nodes, "g", [x], [y], weights)
    return oh.make_model(graph, ir_version=8, opset_imports=[oh.make_opsetid("", 17)])


def main(counts: list[int]) -> None:
    idle = peak_of(IDLE)
    print(f"{'samples':>8s} {'idle MB':>8s} {'peak MB':>8s} {'x first':>8s} {'s':>8s}")
    first = 0
    with tempfile.TemporaryDirectory() as folder:
        model, data = Path(folder) / "model.onnx", Path(folder) / "data.py"
        onnx.save(network(), str(model))
        for count in counts:
            data.write_text(DATA.format(count=count), encoding="utf-8")
            passes = f"quantize{{samples={count}}}"
            start = time.perf_counter()
            output = Path(folder) / "out.onnx"
            peak = peak_of(
                RUN,
                "run",
                model,
                "-o",
                output,
                "--passes",
                passes,
                "--data",
                f"{data}:samples",
                "--no-latency",
            )
            first = first or peak
            seconds = time.perf_counter() - start
            print(f"{count:8d} {idle / 1e6:8.0f} {peak / 1e6:8.0f} {peak / first:8.3f} {seconds:8.1f}")


if __name__ == "__main__":
    main([int(each) for each in sys.argv[1:]] or [50, 5000])
